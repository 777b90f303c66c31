"""Building and reading lexicons."""

import re

import pytest
from helpers.corpora import write_dictionary

from fairseq_speedup.__main__ import main
from fairseq_speedup.data.manifest import ManifestError
from fairseq_speedup.decoding.language.boundaries import LabelWords
from fairseq_speedup.decoding.language.lexicon import lexicon_of_labels, read_lexicon
from fairseq_speedup.decoding.language.words import Words

LETTERS = Words(["<s>", "A", "B", "C", "|"])
PIECES = Words(["<s>", "\u2581", "\u2581A", "B", "\u2581BA", "C"])


@pytest.mark.parametrize(
    ("words", "line", "expected", "spans"),
    [
        (LETTERS, "A B | C |", ["AB", "C"], [(0, 2), (3, 4)]),
        (LETTERS, "| A | | B", ["A", "B"], [(1, 2), (4, 5)]),
        (LETTERS, "", [], []),
        (PIECES, "\u2581A B \u2581BA", ["AB", "BA"], [(0, 2), (2, 3)]),
        (PIECES, "B \u2581 C B \u2581A", ["B", "CB", "A"], [(0, 1), (1, 4), (4, 5)]),
        (PIECES, "\u2581 \u2581A \u2581", ["A"], [(1, 2)]),
        (Words(["<s>", "x", "y"]), "x y", ["x", "y"], [(0, 1), (1, 2)]),
        (LETTERS, "<pad> | A <pad> B | </s> <unk>", ["AB", "<unk>"], [(2, 5), (6, 8)]),
        (Words(["<s>", "x", "y"]), "<pad> x", ["x"], [(1, 2)]),
        (
            PIECES,
            "B\u2581A\u2581C \u2581 B",
            ["B", "A", "C", "B"],
            [(0, 1), (0, 1), (0, 1), (1, 3)],
        ),
        (PIECES, "C B\u2581 A \u2581BA", ["CB", "A", "BA"], [(0, 2), (2, 3), (3, 4)]),
        (PIECES, "\u2581A B\u2581C B", ["AB", "CB"], [(0, 2), (1, 3)]),
        (LETTERS, "A B|C |", ["AB", "C"], [(0, 2), (1, 2)]),
        (LETTERS, "A\u3000B | \xa0 C", ["A", "B", "C"], [(0, 1), (0, 1), (3, 4)]),
    ],
)
def test_labels_make_words(words, line, expected, spans):
    assert words.of(line.split(" ")) == expected
    assert words.spans(line.split(" ")) == spans


def test_a_lexicon_of_labels_has_every_word_as_it_is_labelled():
    lines = [line.split() for line in ["A B | C |", "C | A |"]]
    lexicon = lexicon_of_labels(lines, LETTERS, "train.ltr")
    assert lexicon.spellings == {"A": [["A", "|"]], "AB": [["A", "B", "|"]], "C": [["C", "|"]]}
    lines = [line.split() for line in ["\u2581 B C", "\u2581BA \u2581 BA", "\u2581 BA"]]
    lexicon = lexicon_of_labels(lines, Words([*PIECES.symbols, "BA"]), "train.spm")
    assert lexicon.words == ["BA", "BC"]
    assert lexicon.spellings["BA"] == [["\u2581", "BA"], ["\u2581BA"]]


def test_a_label_of_two_words_is_refused_and_named(tmp_path, capsys):
    (tmp_path / "dict.spm.txt").write_text("\u2581A 1\nB\u2581C 1\n")
    (tmp_path / "train.spm").write_text("\u2581A B\u2581C \u2581A\n")
    output = tmp_path / "lexicon.txt"
    assert main(["lexicon", str(tmp_path), "--output", str(output)]) == 1
    message = f"{tmp_path}/train.spm: the label 'B\u2581C' has a boundary between words within"
    assert message in capsys.readouterr().err
    assert not output.exists()
    assert main(["lexicon", str(tmp_path), "--output", str(tmp_path / "no/lexicon.txt")]) == 1
    assert f"folder {tmp_path}/no does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("symbols", "boundary", "post_process"),
    [
        (["A", "|"], "|", "letter"),
        (["\u2581A", "|", "B"], "\u2581", "sentencepiece"),  # of transcripts that have a |
        (["A\u2581", "B"], "\u2581", "sentencepiece"),  # white space as a suffix
        (["A\u2581B", "|"], "|", "letter"),
        (["A", "B"], None, "none"),
    ],
)
def test_words_and_their_scoring_agree_on_the_boundary(symbols, boundary, post_process):
    assert Words(["<s>", *symbols]).boundary == boundary
    assert LabelWords.of("train.x", [symbols]).post_process == post_process


def test_the_command_makes_what_decoding_reads(tmp_path, capsys):
    write_dictionary(tmp_path)
    (tmp_path / "train.ltr").write_text("T O | E |\nN O T E | T O |\n")
    output = tmp_path / "lexicon.txt"
    command = ["lexicon", str(tmp_path), "--output", str(output)]
    assert main(command) == 0
    assert output.read_text() == "E\tE |\nNOTE\tN O T E |\nTO\tT O |\n"
    assert "3 words of" in capsys.readouterr().out
    assert main(command) == 1
    assert "exists; give --overwrite" in capsys.readouterr().err

    listed = tmp_path / "words.txt"
    listed.write_text("NOTE 17\nRESIN 2\nBLUE 5\n\n")
    assert main([*command, "--overwrite", "--words", str(listed)]) == 0
    assert output.read_text() == "NOTE\tN O T E |\nRESIN\tR E S I N |\n"
    printed = capsys.readouterr().out
    assert "warning" in printed
    assert "1 of 3 words have characters that the labels lack: BLUE" in printed
    listed.write_text("note\nresin\n")
    assert main([*command, "--overwrite", "--words", str(listed)]) == 1
    assert "Words must be written as in the training transcripts" in capsys.readouterr().err
    assert output.read_text().startswith("NOTE")  # nothing is lost

    arpa = "\\data\\\nngram 1=4\n\n\\1-grams:\n-1\t<unk>\n-99\t<s>\n-1\t</s>\n-1\tTO\n\n\\end\\\n"
    listed.write_text(arpa)
    assert main([*command, "--overwrite", "--words", str(listed)]) == 0
    assert output.read_text() == "TO\tT O |\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("CAB\tC A B |\nB\tB | |\nD\tD |\n", "line 3: 'D' is spelled with D, which the dictionary"),
        ("CAB\tC A B |\nA\t\n", "line 2: 'A' has no spelling"),
        ("CAB\tC A |\n", "line 1: 'CAB' is spelled C A |: fairseq-generate prints the labels"),
        ("CAB\tC A B\n", "line 1: 'CAB' is spelled C A B: .* the word and its |"),
        ("\n", "has no words"),
    ],
)
def test_a_bad_lexicon_is_named_with_its_line(tmp_path, text, words):
    path = tmp_path / "lexicon.txt"
    path.write_text(text)
    with pytest.raises(ManifestError) as raised:
        read_lexicon(str(path), LETTERS)
    assert re.search(words.replace("|", r"\|"), str(raised.value))
    assert str(path) in str(raised.value)


def test_a_lexicon_that_is_not_there_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m fairseq_speedup lexicon"):
        read_lexicon(str(tmp_path / "lost.txt"), LETTERS)


def test_words_need_a_sentencepiece_model_for_pieces(tmp_path, capsys):
    (tmp_path / "dict.spm.txt").write_text("\u2581A 1\nB 1\n")
    (tmp_path / "words.txt").write_text("AB\n")
    command = ["lexicon", str(tmp_path), "--output", str(tmp_path / "lexicon.txt")]
    assert main([*command, "--words", str(tmp_path / "words.txt")]) == 1
    assert "spm.model does not exist" in capsys.readouterr().err


def test_byte_order_marks_are_no_characters_of_words(tmp_path, capsys):
    write_dictionary(tmp_path)
    dictionary = tmp_path / "dict.ltr.txt"
    dictionary.write_text("\ufeff" + dictionary.read_text())
    (tmp_path / "train.ltr").write_text("\ufeffT O | E |\n")
    output = tmp_path / "lexicon.txt"
    command = ["lexicon", str(tmp_path), "--output", str(output), "--overwrite"]
    assert main(command) == 0
    assert output.read_text() == "E\tE |\nTO\tT O |\n"
    listed = tmp_path / "words.txt"
    for text in ("NOTE 17\n", "\\data\\\nngram 1=1\n\n\\1-grams:\n-1\tNOTE\n\n\\end\\\n"):
        listed.write_text("\ufeff" + text)
        assert main([*command, "--words", str(listed)]) == 0
        assert output.read_text() == "NOTE\tN O T E |\n"
    listed.write_text("NOTE\nE\u0301TE\n")
    capsys.readouterr()
    assert main([*command, "--words", str(listed)]) == 0
    assert "they lack \u0301 (U+0301)" in capsys.readouterr().out
    output.write_text("\ufeffTO\tT O |\n")
    assert read_lexicon(str(output), Words(["T", "O", "|"])).words == ["TO"]
