"""What fairseq-generate has written."""

import json
import re
from pathlib import Path

import editdistance
import pytest


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
