"""What fairseq-generate has written, and what it would leave."""

import json
import re
from pathlib import Path

import editdistance
import numpy as np
import pytest

NUM_UTTERANCES = 60  # of write_results


def words_of(results: Path, kind: str) -> dict[str, list[str]]:
    lines = results.read_text().splitlines()
    rows = [line.split("\t") for line in lines if line.startswith(kind)]
    return {row[0][len(kind) :]: row[-1].split() for row in rows}


def check_results(folder: Path, corpus: Path, split: str = "test") -> dict:
    """Every utterance once; fairseq's WER is the one of its own lines; returns compute.json."""
    results = folder / f"generate-{split}.txt"
    references, hypotheses = words_of(results, "T-"), words_of(results, "H-")
    num_utterances = len((corpus / f"{split}.tsv").read_text().splitlines()) - 1
    assert references.keys() == hypotheses.keys() == {str(i) for i in range(num_utterances)}
    labels = (corpus / f"{split}.ltr").read_text().splitlines()
    for index, words in references.items():
        assert words == labels[int(index)].replace(" ", "").replace("|", " ").split()
    errors = sum(editdistance.eval(words, hypotheses[i]) for i, words in references.items())
    wer = 100 * errors / sum(map(len, references.values()))
    printed = re.search(r"WER: ([\d.]+)", results.read_text().splitlines()[-1])
    assert float(printed[1]) == pytest.approx(wer, abs=0.006)
    compute = json.loads((folder / "compute.json").read_text())
    assert compute["num_utterances"] == num_utterances
    assert compute["gen_subset"] == split
    assert compute["macs_check"]["closed_form"] == compute["macs_check"]["fvcore"]
    return compute


def write_results(folder, error_rate, seed=0, macs=1e9, rtf=0.01, subset="test", **compute):
    """What fairseq-generate leaves of utterances of ten words, some of them wrong."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    lines, num_errors = [], 0
    for number in rng.permutation(NUM_UTTERANCES):
        words = [f"W{number}X{k}" for k in range(10)]
        wrong = rng.random(10) < error_rate
        num_errors += wrong.sum()
        said = ["NO" if bad else word for word, bad in zip(words, wrong, strict=True)]
        lines += [f"T-{number}\t{' '.join(words)}", f"H-{number}\t-1.0\t{' '.join(said)}"]
        lines += [f"D-{number}\t-1.0\t{' '.join(said)}", f"P-{number}\t-1.0"]
    wer = 100 * num_errors / (10 * NUM_UTTERANCES)
    lines.append(f"Generate {subset} with beam=5: WER: {wer:.2f}")
    (folder / f"generate-{subset}.txt").write_text("\n".join(lines) + "\n")
    report = {
        "gen_subset": subset,
        "num_utterances": NUM_UTTERANCES,
        "macs_per_second": macs,
        "real_time_factor": rtf,
        "options": {},
        "decoding": {"ctc_decoder": "greedy"},
        "hardware": {"device": "cpu", "threads": 2},
        **compute,
    }
    (folder / "compute.json").write_text(json.dumps(report))
    return wer
