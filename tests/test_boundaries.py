"""Labels without a boundary between words: everything that scores says so, and counts labels."""

import logging
import re

import pytest
from helpers.commands import USER_DIR, generate_here, generate_with, train
from helpers.corpora import LETTERS, write_arpa, write_dictionary, write_split, write_unbounded
from helpers.models import task_of, write_finetuned

from fairseq_speedup.__main__ import main
from fairseq_speedup.decoding.language.boundaries import LabelWords, NoWordsError

SYMBOLS = {"without": LETTERS[1:], "unused": LETTERS}  # the boundary, in the dictionary


@pytest.fixture(scope="module", params=list(SYMBOLS))
def unbounded(request, tmp_path_factory, pretrained):
    """A data folder whose label lines have no boundary, and a model with exits for it."""
    folder = tmp_path_factory.mktemp(request.param)
    for split, count in [("train", 13), ("valid", 5), ("test", 7)]:
        write_split(folder, split, count, seed=count)
    write_unbounded(folder)
    dictionary = write_dictionary(folder, SYMBOLS[request.param])
    exits = {"exit_layers": "0", "exit_criterion": "entropy", "exit_threshold": 0.0}
    return folder, write_finetuned(folder / "model.pt", pretrained, dictionary, **exits)


def printed(results) -> str:
    """The error rate in fairseq's last line"""
    return (results / "generate-test.txt").read_text().rpartition("WER: ")[2].strip()


def test_decoding_refuses_to_score_words_and_names_what_counts(unbounded, tmp_path):
    folder, model = unbounded
    message = (
        rf"{folder}/test.ltr: no line has the word boundary '\|', so that --post-process letter "
        "makes one word of each utterance; use --post-process none.* or add --wer-char-level"
    )
    with pytest.raises(NoWordsError, match=message):
        generate_here(folder, model, tmp_path / "words")
    generate_here(folder, model, tmp_path / "labels", "--post-process", "none")
    generate_here(folder, model, tmp_path / "characters", "--wer-char-level")
    references = [line.split() for line in (folder / "test.ltr").read_text().splitlines()]
    scored = (tmp_path / "characters/generate-test.txt").read_text()
    assert {f"{''.join(line)}" for line in references} == set(re.findall(r"T-\d+\t(.+)", scored))
    assert 0 < float(printed(tmp_path / "labels")) < 300


def test_tuning_counts_labels_and_prints_a_command_that_does(unbounded, tmp_path, capsys):
    folder, model = unbounded
    arpa = write_arpa(tmp_path / "labels.arpa", LETTERS)
    command = ["tune-lm", str(folder), "--path", str(model), "--gen-subset", "test", "--cpu"]
    command += ["--kenlm-model", str(arpa), "--beam", "8", "--rounds", "0", "--workers", "1"]
    emissions = ["--emissions", str(tmp_path / "emissions.npz")]
    assert main([*command, *emissions, "--lexicon-free"]) == 0
    out = capsys.readouterr().out
    assert f"{folder}/test.ltr: no line has a boundary between words: errors are counted in" in out
    num_labels = len((folder / "test.ltr").read_text().split())
    assert f"7 utterances of test, {num_labels} labels" in out
    found = re.search(r"best of \d+ settings .*: UER ([\d.]+) %", out)[1]
    words = out.splitlines()[-1].split()
    assert words[words.index("--post-process") + 1] == "none"
    start = words.index("--scoring")
    results = words.index("--results-path")
    del words[results : results + 2]
    generate_here(folder, model, tmp_path / "results", *words[start:])
    assert printed(tmp_path / "results") == found

    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("TEA\tT E A |\n" if "|" in (folder / "dict.ltr.txt").read_text() else
                       "TEA\tT E A\n")  # fmt: skip
    assert main([*command, *emissions, "--lexicon", str(lexicon)]) == 1
    assert "--lexicon-free" in capsys.readouterr().err


def test_calibration_follows_the_labels(unbounded, tmp_path, capsys):
    folder, model = unbounded
    generate_here(folder, model, tmp_path / "labels", "--post-process", "none")
    capsys.readouterr()
    command = ["calibrate", str(folder), "--path", str(model), "--gen-subset", "test", "--cpu"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "UER %" in out
    assert "WER" not in out
    (full,) = [line.split() for line in out.splitlines() if line.strip().startswith("no exit")]
    assert full[2] == printed(tmp_path / "labels")
    assert main([*command, "--post-process", "letter"]) == 1
    assert "no line has the word boundary '|'" in capsys.readouterr().err


def test_a_lexicon_of_sentences_is_refused(tmp_path, capsys):
    (tmp_path / "train.ltr").write_text("T E A\nE A T A T\n")
    write_dictionary(tmp_path)
    output = tmp_path / "lexicon.txt"
    assert main(["lexicon", str(tmp_path), "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}/train.ltr: no line has the word boundary '|', so that a lexicon" in error
    assert "give --words" in error
    assert not output.exists()


def test_training_is_not_chosen_by_whole_utterances(unbounded, pretrained, tmp_path):
    folder, _ = unbounded
    done = train(tmp_path, folder, pretrained, check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert (
        f"{folder}/valid.ltr: no line has the word boundary '|', so that the wer of "
        "criterion.post_process=letter makes one word of each utterance, and "
        "checkpoint.best_checkpoint_metric=wer would choose by that: set "
        "criterion.post_process=none"
    ) in said
    done = train(tmp_path, folder, pretrained, "criterion.post_process=none")
    log = (tmp_path / "hydra_train.log").read_text()
    values = re.findall(r'"valid_uer": "([\d.]+)", "valid_wer": "([\d.]+)"', log)
    assert values
    for uer, wer in values:  # uer alone counts </s> and the like, which no transcript has
        assert float(wer) == pytest.approx(float(uer), abs=10)


def test_training_that_is_chosen_by_something_else_warns(unbounded, caplog):
    folder, _ = unbounded
    task = task_of(folder)
    task.post_process = "letter"
    with caplog.at_level(logging.WARNING):
        task.load_dataset("valid")
    (warning,) = [each.message for each in caplog.records if "boundary" in each.message]
    assert "criterion.post_process=letter makes one word of each utterance; look at uer" in warning


def test_words_that_labels_tell_apart_are_no_fault():
    bounded = LabelWords.of("x", [["T", "O", "|", "A", "|"], ["T", "E", "A"]])
    assert bounded.post_process == "letter"
    assert bounded.fault("letter", "letter") is None
    assert bounded.note("letter") is None
    assert "'\u2581'" in bounded.fault("sentencepiece", "x")
    pieces = LabelWords.of("x", [["\u2581T", "O", "\u2581A"]])
    assert (pieces.post_process, pieces.fault("sentencepiece", "x")) == ("sentencepiece", None)
    single = LabelWords.of("x", [["YES"], ["NO"]])  # a label is a word
    assert (single.post_process, single.fault("letter", "x")) == ("none", None)
    assert single.fault("none", "x") is None
    assert single.fault(None, "x") is None


@pytest.mark.parametrize("lines", [[["T", "E", "A", "|"]], [["\u2581T", "E", "A"]]])
def test_sentences_that_are_one_word_are_noted(lines):
    labels = LabelWords.of("x.ltr", lines)
    assert "each line of x.ltr is one word" in labels.note(labels.post_process)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (["--wer-char-level", "--post-process", "none"], "counts the blanks"),
        (["--post-process", "none"], "--post-process letter makes words of them"),
        ([], None),
    ],
    ids=str,
)
def test_what_may_be_meant_otherwise_is_noted(corpus, tmp_path, pretrained, capsys, options, note):
    model = write_finetuned(tmp_path / "model.pt", pretrained, write_dictionary(tmp_path))
    generate_here(corpus, model, tmp_path / "results", *options)
    out = capsys.readouterr().out
    assert ("note: " in out or "warning: " in out) == (note is not None)
    assert note is None or note in out


@pytest.mark.parametrize(
    ("options", "printed"),
    [([], "WER: "), (["--wer-char-level"], "WER: "), (["--scoring", "bleu"], "BLEU")],
    ids=str,
)
def test_error_rates_are_the_default(corpus, tmp_path, pretrained, options, printed):
    model = write_finetuned(tmp_path / "model.pt", pretrained, write_dictionary(tmp_path))
    arguments = [corpus, "--user-dir", USER_DIR, "--task", "speedup_finetuning", "--cpu"]
    arguments += ["--path", model, "--gen-subset", "test", "--labels", "ltr", "--num-workers", "0"]
    arguments += ["--post-process", "letter", "--results-path", tmp_path / "results"]
    generate_with(*arguments, *options)
    *_, last = (tmp_path / "results/generate-test.txt").read_text().splitlines()
    assert printed in last
