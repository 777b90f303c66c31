"""Language models: estimated by the examples, read, compared with the labels."""

import gzip
import itertools
import math
import os
import sys
from collections import Counter

import pytest
from helpers.commands import REPO
from helpers.processes import run_forked

from fairseq_speedup.decoding.language.language_model import (
    LanguageModelError,
    check_vocabulary,
    known_tokens,
    load_kenlm,
    read_unigrams,
)

SENTENCES = ["the cat sat", "the cat ran", "a dog ran", "the dog sat on the cat", "cat", "a a dog"]


@pytest.fixture(scope="module")
def make_lm():
    sys.path.insert(0, str(REPO / "examples/quickstart"))
    try:
        import make_lm

        return make_lm
    finally:
        sys.path.remove(str(REPO / "examples/quickstart"))


@pytest.fixture(scope="module")
def arpa(tmp_path_factory, make_lm):
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    make_lm.write_arpa(path, *make_lm.estimate([line.split() for line in SENTENCES], 3))
    return path


@pytest.mark.parametrize("order", [2, 3])
def test_each_context_of_an_estimated_model_sums_to_one(make_lm, order):
    sentences = [line.split() for line in SENTENCES]
    probabilities, backoffs = make_lm.estimate(sentences, order)
    vocabulary = [token for (token,) in probabilities[0]]

    def probability(context, token):
        ngram = (*context, token)
        if ngram in probabilities[len(ngram) - 1]:
            return probabilities[len(ngram) - 1][ngram]
        return backoffs.get(context, 1) * probability(context[1:], token)

    contexts = [(), ("<s>",), ("the",), ("<s>", "the"), ("never", "cat"), ("on", "the")]
    for context in contexts:
        context = context[len(context) - min(len(context), order - 1) :]
        assert sum(probability(context, token) for token in vocabulary) == pytest.approx(1)


def test_modified_kneser_ney_by_hand(make_lm):
    # bigram "a b" twice, "a c" once, "b </s>" twice, "c </s>" once, "<s> a" three times
    sentences = [["a", "b"], ["a", "b"], ["a", "c"]]
    probabilities, backoffs = make_lm.estimate(sentences, 2)
    # unigrams count what they follow: a 1, b 1, c 1, </s> 2; discounts 0.5 and 1 (too little text)
    lower = {"a": 1, "b": 1, "c": 1, "</s>": 2}
    saved = (3 * 0.5 + 1.0) / 5
    assert backoffs[()] == pytest.approx(saved)
    for token, count in lower.items():
        expected = (count - {1: 0.5, 2: 1.0}[count]) / 5 + saved / 5  # five with <unk>
        assert probabilities[0][(token,)] == pytest.approx(expected)
    # bigrams: two occur once, two twice, one three times: 1 / (1 + 2) and discounts 1/3, 1.5 and 3
    saved = (1.5 + 1 / 3) / 3
    assert backoffs[("a",)] == pytest.approx(saved)
    expected = (2 - 1.5) / 3 + saved * probabilities[0][("b",)]
    assert probabilities[1][("a", "b")] == pytest.approx(expected)


def test_a_model_is_written_whole_or_not_at_all(tmp_path, make_lm):
    probabilities, backoffs = make_lm.estimate([line.split() for line in SENTENCES], 2)
    probabilities[1][("a", "b")] = 0.0  # which has no logarithm
    with pytest.raises(ValueError):
        make_lm.write_arpa(tmp_path / "words.arpa", probabilities, backoffs)
    assert not list(tmp_path.iterdir())


def test_kenlm_reads_what_the_example_writes(arpa, make_lm):
    probabilities, _ = make_lm.estimate([line.split() for line in SENTENCES], 3)
    vocabulary = ["the", "cat", "sat"]
    lm = load_kenlm(str(arpa), vocabulary)
    state, total = lm.start(False), 0.0
    for index in range(3):
        state, score = lm.score(state, index)
        total += score
    total += lm.finish(state)[1]
    tokens = ["<s>", *vocabulary, "</s>"]
    expected = probabilities[1][("<s>", "the")]
    for trigram in zip(tokens, tokens[1:], tokens[2:], strict=False):
        expected *= probabilities[2][trigram]
    assert total == pytest.approx(math.log10(expected), abs=1e-4)


def corrupted(text: str) -> dict[str, bytes]:
    lines = text.splitlines()
    return {
        "cut": text[: len(text) // 2].encode(),
        "no end": "\n".join(lines[:-1]).encode(),
        "empty": b"",
        "other text": b"hello\n",
        "bytes": bytes(range(256)) * 8,
        "a wrong count": text.replace("ngram 1=", "ngram 1=9").encode(),
        "no number": text.replace("\tcat\t", "\tcat\tx", 1).encode(),
        "a probability above 1": "\n".join(
            line[1:] if line.endswith("\tthe") or "\tthe\t" in line else line for line in lines
        ).encode(),
        "a binary's beginning": b"mmap lm http://kheafield.com/code format version 5\n\0" * 3,
    }


@pytest.mark.parametrize("kind", list(corrupted("x")))
def test_a_corrupt_model_is_refused_in_words(arpa, tmp_path, kind):
    path = tmp_path / "bad.arpa"
    path.write_bytes(corrupted(arpa.read_text())[kind])
    with pytest.raises(LanguageModelError, match="cannot be read: ") as raised:
        load_kenlm(str(path), ["cat"])
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("order", [7, 12])
def test_a_model_of_too_high_an_order_is_refused_with_both_orders(tmp_path, make_lm, order):
    path = tmp_path / "high.arpa"
    sentences = [["a", "b"] * order] * 3
    make_lm.write_arpa(path, *make_lm.estimate(sentences, order))
    message = f"its order is {order}, and the highest that this build of KenLM takes is 6: estimate"
    with pytest.raises(LanguageModelError, match=message) as raised:
        load_kenlm(str(path), ["a"])
    assert str(raised.value).endswith(f"or build flashlight-text with -DKENLM_MAX_ORDER={order}")
    make_lm.write_arpa(path, *make_lm.estimate(sentences, 6))
    assert load_kenlm(str(path), ["a"])


def test_all_of_kenlms_reason_is_told(monkeypatch, tmp_path):
    lm = tmp_path / "lm"
    lm.write_bytes(b"\n")

    def refuse(path, dictionary):
        raise RuntimeError("model.cc:1 in void f() threw X because `y'.\nNo room for it.\n Byte: 9")

    monkeypatch.setattr("fairseq_speedup.decoding.language.language_model.KenLM", refuse)
    with pytest.raises(LanguageModelError, match=r"lm cannot be read: No room for it. Byte: 9$"):
        load_kenlm(str(lm), ["a"])


def test_the_vocabulary_is_read_from_plain_and_gzipped_files(arpa, tmp_path):
    vocabulary = {token for line in SENTENCES for token in line.split()}
    vocabulary |= {"<s>", "</s>", "<unk>"}
    assert read_unigrams(str(arpa)) == vocabulary
    zipped = tmp_path / "lm.arpa.gz"
    zipped.write_bytes(gzip.compress(arpa.read_bytes()))
    assert read_unigrams(str(zipped)) == vocabulary
    assert load_kenlm(str(zipped), ["cat"])
    (tmp_path / "words.txt").write_text("cat\n")
    assert read_unigrams(str(tmp_path / "words.txt")) is None


def test_a_damaged_gzip_file_has_no_vocabulary(arpa, tmp_path):
    zipped = bytearray(gzip.compress(arpa.read_bytes()))
    zipped[20:60] = bytes(40)
    (tmp_path / "lm.arpa.gz").write_bytes(zipped)
    assert read_unigrams(str(tmp_path / "lm.arpa.gz")) is None


def test_of_another_format_unknown_tokens_score_like_the_unknown_one(arpa, monkeypatch):
    expected = known_tokens(str(arpa), ["cat", "cow", "dog", "Cat"])
    assert expected == {"cat", "dog"}
    monkeypatch.setattr(
        "fairseq_speedup.decoding.language.language_model.read_unigrams", lambda path: None
    )
    assert known_tokens(str(arpa), ["cat", "cow", "dog", "Cat"]) == expected


def test_words_out_of_vocabulary_are_warned_of_and_refused(arpa, capsys):
    def check(**counts):
        check_vocabulary(str(arpa), Counter(counts), "train.ltr", over_labels=False)
        return capsys.readouterr().out

    assert check(cat=8, cow=2) == ""
    printed = check(cat=7, cow=2, hen=1)
    assert "warning" in printed
    assert "30.0 % of the words of train.ltr are out of its vocabulary, such as cow, hen" in printed
    with pytest.raises(LanguageModelError, match=r"100.0 % .*It knows 'cat': the casing"):
        check(CAT=3, DOG=1)
    with pytest.raises(LanguageModelError, match=r"100.0 % .*It must be over words"):
        check(COW=3, HEN=1)


def test_a_model_over_other_units_is_refused(arpa, tmp_path, make_lm):
    letters = tmp_path / "letters.arpa"
    lines = [list("the|cat|"), list("a|hat|")]
    make_lm.write_arpa(letters, *make_lm.estimate(lines, 2))
    with pytest.raises(LanguageModelError, match="is over labels: it knows the boundary"):
        check_vocabulary(str(letters), Counter(a=3, cat=1), "train.ltr", over_labels=False)
    check_vocabulary(str(letters), Counter({"a": 3, "|": 1}), "train.ltr", over_labels=True)
    # "a" is a word too
    with pytest.raises(LanguageModelError, match="--lexicon-free needs a model over the labels"):
        check_vocabulary(str(arpa), Counter({"a": 9, "|": 1}), "train.ltr", over_labels=True)


def test_the_example_is_a_command(tmp_path):
    text = tmp_path / "text"
    text.write_text("\n".join(SENTENCES))
    script = REPO / "examples/quickstart/make_lm.py"
    done = run_forked(script, text, tmp_path / "lm.arpa", "--order", "2")
    bigrams = set()
    for line in SENTENCES:
        bigrams |= set(itertools.pairwise(["<s>", *line.split(), "</s>"]))
    assert f"{len(SENTENCES)} sentences, 9 1-grams, {len(bigrams)} 2-grams" in done.stdout
    load_kenlm(str(tmp_path / "lm.arpa"), ["cat"])


def test_a_model_is_loaded_once_and_in_silence_until_its_file_changes(arpa, tmp_path, capfd):
    path, words = tmp_path / "lm.arpa", ["the", "cat"]
    path.write_bytes(arpa.read_bytes())
    loaded = load_kenlm(str(path), words)
    assert load_kenlm(str(path), words) is loaded
    assert capfd.readouterr().err == ""
    os.utime(path, ns=(0, 0))
    assert load_kenlm(str(path), words) is not loaded
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_a_byte_order_mark_is_named_where_kenlm_stumbles_over_it(tmp_path, arpa):
    marked = tmp_path / "marked.arpa"
    marked.write_bytes(b"\xef\xbb\xbf" + arpa.read_bytes())
    assert read_unigrams(str(marked)) == read_unigrams(str(arpa))
    with pytest.raises(LanguageModelError, match=r"marked.arpa .*begins with a byte order mark"):
        load_kenlm(str(marked), ["the"])
