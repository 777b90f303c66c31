"""Sentencepiece models of transcripts."""

import pytest
from helpers.corpora import LETTERS

from fairseq_speedup.__main__ import main
from fairseq_speedup.data import spm
from fairseq_speedup.data.dictionary import read_symbols
from fairseq_speedup.data.manifest import read_lines

SPACES = ["\u3000", "\xa0", "\u2009", "\t", "\u2028", "\x1c"]
LINES = ["TEA  TO{}ONE", "{}SHE SHONE ", "SO{0}{0}ARE TEN", "THE OTHER{}NOTES"]


@pytest.mark.parametrize("space", SPACES, ids=ascii)
@pytest.mark.parametrize("ending", ["wrd", "ltr"])
def test_any_white_space_parts_words_as_a_blank_does(tmp_path, space, ending):
    lines = [line.format(space) for line in LINES]
    expected = [" ".join(line.split()) for line in lines]
    if ending == "ltr":
        lines = [space.join("|".join(line.split())) + f"{space}|" for line in lines]
    (tmp_path / f"train.{ending}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert spm.read_transcripts(str(tmp_path), "train") == expected
    assert main(["spm", str(tmp_path), "--vocab-size", "16"]) == 0
    symbols = read_symbols(str(tmp_path / "dict.spm.txt"))
    assert all(symbol.split() == [symbol] for symbol in symbols)
    for line, words in zip(read_lines(str(tmp_path / "train.spm")), expected, strict=True):
        assert set(line.split()) <= set(symbols)
        assert "".join(line.split()).replace("\u2581", " ").strip() == words


def test_a_piece_that_holds_white_space_is_refused_and_nothing_is_written(
    tmp_path, capsys, monkeypatch
):
    train = spm.train

    def with_another_text(lines, *options):
        return train([*lines, *["TEA\u3000TEA"] * 9], *options)

    monkeypatch.setattr(spm, "train", with_another_text)
    (tmp_path / "train.wrd").write_text("\n".join(LETTERS[1:]) + "\nTEA\n")
    assert main(["spm", str(tmp_path), "--vocab-size", "16"]) == 1
    assert "(U+3000): white space parts labels, and is in none" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["train.wrd"]
