"""Error rates: the same in decoding, merge and report, whatever fairseq's scorer was told."""

import csv
import json
import shutil

import pytest
import torch
from fairseq.data import Dictionary
from helpers.commands import generate_here
from helpers.corpora import LETTERS, write_dictionary, write_split, write_unbounded
from helpers.models import write_finetuned

from fairseq_speedup.__main__ import main
from fairseq_speedup.decoding.language.words import Words
from fairseq_speedup.decoding.results.scoring import Scoring


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Labels without a boundary between words"""
    folder = tmp_path_factory.mktemp("unbounded")
    write_split(folder, "test", 7)
    write_dictionary(folder, LETTERS[1:])
    write_unbounded(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory, pretrained, data):
    path = tmp_path_factory.mktemp("model") / "model.pt"
    return write_finetuned(path, pretrained, Dictionary.load(str(data / "dict.ltr.txt")))


def printed(results) -> str:
    """The error rate in fairseq's last line"""
    return (results / "generate-test.txt").read_text().rpartition("WER: ")[2].strip()


def rows_of(path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("options", "measure"),
    [
        (["--wer-char-level"], "CER"),
        (["--wer-char-level", "--wer-lowercase"], "CER"),
        (["--post-process", "none"], "UER"),
        (["--wer-tokenizer", "char"], "CER"),
    ],
    ids=str,
)
def test_a_report_and_a_merge_have_the_error_rate_that_decoding_printed(
    data, model, tmp_path, options, measure
):
    runs = tmp_path / "runs"
    generate_here(data, model, runs / "full", *options)
    expected = printed(runs / "full")
    assert main(["report", str(runs)]) == 0
    (row,) = rows_of(runs / "report/report.csv")
    assert f"{float(row[measure.lower()]):.2f}" == expected
    text = (runs / "report/report.md").read_text()
    assert f"| {measure} % |" in text
    assert "WER" not in text
    assert (runs / f"report/test_{measure.lower()}_vs_macs.png").is_file()

    shards = [tmp_path / f"shard{number}" for number in range(2)]
    for number, folder in enumerate(shards):
        shard = ["--num-shards", 2, "--shard-id", number, "--batch-size", 3]
        generate_here(data, model, folder, *options, *shard)
    merged = tmp_path / "merged"
    assert main(["merge", *map(str, shards), "--output", str(merged / "full")]) == 0
    assert printed(merged / "full") == expected
    assert main(["report", str(merged), "--no-pictures"]) == 0
    (again,) = rows_of(merged / "report/report.csv")
    assert again[measure.lower()] == row[measure.lower()]


def test_compute_json_tells_the_scoring(data, model, tmp_path):
    generate_here(data, model, tmp_path, "--wer-char-level", "--wer-remove-punct")
    assert json.loads((tmp_path / "compute.json").read_text())["scoring"] == {
        "scorer": "wer",
        "wer_tokenizer": "none",
        "wer_remove_punct": True,
        "wer_char_level": True,
        "wer_lowercase": False,
        "post_process": "letter",
    }


def test_a_mixture_of_measures_is_refused(data, model, tmp_path, capsys):
    runs, other = tmp_path / "runs", tmp_path / "other"
    generate_here(data, model, runs / "a", "--wer-char-level")
    generate_here(data, model, other / "b", "--post-process", "none")
    capsys.readouterr()
    saved = tmp_path / "saved.json"
    assert main(["report", str(runs), "--no-pictures", "--save", str(saved)]) == 0
    capsys.readouterr()
    for first in (runs, saved):
        assert main(["report", str(first), str(other), "--no-pictures"]) == 1
        error = capsys.readouterr().err
        assert f"a of {first} is scored as CER (--wer-char-level) and b of {other} as UER" in error
    (other / "b").rename(runs / "b")
    assert main(["report", str(runs), "--no-pictures"]) == 1
    error = capsys.readouterr().err
    assert f"{runs / 'a'} is scored as CER (--wer-char-level) and {runs / 'b'} as UER" in error

    # an earlier version told no scoring
    shutil.rmtree(runs / "b")
    compute = json.loads((runs / "a/compute.json").read_text())
    del compute["scoring"]
    (runs / "a/compute.json").write_text(json.dumps(compute))
    assert main(["report", str(runs), "--no-pictures"]) == 0
    assert "| WER % |" in (runs / "report/report.md").read_text()
    assert main(["merge", str(runs / "a"), "--output", str(tmp_path / "merged")]) == 1
    assert "by an earlier version, whose compute.json does not tell them" in capsys.readouterr().err
    compute["scoring"] = {"wer_char_level": "yes"}
    (runs / "a/compute.json").write_text(json.dumps(compute))
    assert main(["report", str(runs), "--no-pictures"]) == 1
    error = capsys.readouterr().err
    assert f"{runs / 'a/compute.json'} is no report of" in error
    assert "scoring has wer_char_level: 'yes'" in error


@pytest.mark.parametrize(
    ("scoring", "errors", "units"),
    [
        (Scoring(), 2, 3),
        (Scoring(wer_lowercase=True), 1, 3),
        (Scoring(wer_char_level=True), 3, 9),  # a blank between words is one
        (Scoring(wer_remove_punct=True), 2, 2),
    ],
)
def test_what_is_counted(scoring, errors, units):
    assert scoring.counts([("AB , CDEF", "ab , CDEG")]) == ([errors], [units])


def test_of_no_labels_none_is_left_out():
    assert Words(["|", "A"], ()).says_something([]) == []


@pytest.mark.parametrize("boundary", ["|", "▁"])
def test_boundaries_in_a_row_leave_one_blank(pretrained, tmp_path, monkeypatch, boundary):
    write_split(tmp_path, "test", 1)
    dictionary = write_dictionary(tmp_path, [boundary, "A", "B"])
    (tmp_path / "test.ltr").write_text(f"{boundary} A {boundary} B\n")
    model = write_finetuned(tmp_path / "model.pt", pretrained, dictionary)
    path = [dictionary.index(each) for each in (boundary, "A", boundary, "<s>", boundary, "B")]
    log_probs = torch.eye(len(dictionary))[path][:, None].log()
    monkeypatch.setattr(
        "fairseq_speedup.decoding.generator.log_posteriors",
        lambda *unused: (log_probs, torch.tensor([len(path)]), None),
    )
    name = {"|": "letter", "▁": "sentencepiece"}[boundary]
    options = ["--post-process", name, "--wer-char-level", "--print-alignment", "hard"]
    generate_here(tmp_path, model, tmp_path / "joined", *options)
    assert printed(tmp_path / "joined") == "0.00"
    lines = (tmp_path / "joined/generate-test.txt").read_text().splitlines()
    found = {line.split("\t")[0]: line.split("\t")[-1] for line in lines}
    assert found["H-0"] == "A B"
    assert found["A-0"] == "0-0 1-1 4-2 5-3"
    assert len(found["P-0"].split()) == 4

    # where labels stay as they are, each is one
    generate_here(tmp_path, model, tmp_path / "apart", "--post-process", "none")
    assert printed(tmp_path / "apart") == "25.00"
