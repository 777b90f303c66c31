"""Small corpora in fairseq's formats, made on the spot."""

from pathlib import Path

import numpy as np
import soundfile
from fairseq.data import Dictionary

from fairseq_speedup.data.dictionary import SPECIALS, dictionary_of

SAMPLE_RATE = 16000


LETTERS = ["|", "E", "T", "A", "O", "N", "I", "H", "S", "R"]


def tones(word_symbols: list[str], rng: np.random.Generator) -> np.ndarray:
    """A waveform that says its symbols: each a tone of its own, 60 to 100 ms long."""
    pieces = []
    for symbol in word_symbols:
        num_samples = int(rng.integers(960, 1600))
        frequency_hz = 200 * (2 + LETTERS.index(symbol))
        time_seconds = np.arange(num_samples) / SAMPLE_RATE
        pieces.append(0.3 * np.sin(2 * np.pi * frequency_hz * time_seconds))
    waveform = np.concatenate(pieces)
    return (waveform + 0.01 * rng.standard_normal(len(waveform))).astype(np.float32)


def write_split(folder: Path, split: str, num_utterances: int, seed: int = 0) -> None:
    """``split`` in ``folder``: audio, ``.tsv``, ``.ltr``."""
    rng = np.random.default_rng(seed)
    audio = folder / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    rows, labels = [], []
    for index in range(num_utterances):
        symbols = []
        for _ in range(int(rng.integers(2, 5))):
            symbols += [*rng.choice(LETTERS[1:], size=int(rng.integers(1, 4))), "|"]
        waveform = tones(symbols, rng)
        name = f"{split}-{index}.wav"
        soundfile.write(audio / name, waveform, SAMPLE_RATE)
        rows.append(f"{name}\t{len(waveform)}")
        labels.append(" ".join(symbols))
    (folder / f"{split}.tsv").write_text("\n".join([str(audio), *rows]) + "\n")
    (folder / f"{split}.ltr").write_text("\n".join(labels) + "\n")


def write_unbounded(folder: Path) -> None:
    """Takes the boundary between words out of the label files of ``folder``."""
    for path in folder.glob("*.ltr"):
        path.write_text(path.read_text().replace(" |", ""))


def letters_dictionary() -> Dictionary:
    """Of LETTERS, in memory."""
    return dictionary_of([*SPECIALS, *LETTERS])


def write_noise(folder: Path, **seconds: int) -> Path:
    """A recording of noise of each name, so long."""
    rng = np.random.default_rng(0)
    for name, length in seconds.items():
        samples = 0.1 * rng.standard_normal(SAMPLE_RATE * length)
        soundfile.write(folder / f"{name}.wav", samples, SAMPLE_RATE)
    return folder


def write_dictionary(folder: Path, symbols=tuple(LETTERS)) -> Dictionary:
    path = folder / "dict.ltr.txt"
    path.write_text("".join(f"{symbol} {10 - i}\n" for i, symbol in enumerate(symbols)))
    return Dictionary.load(str(path))


ARPA = """\\data\\
ngram 1={count}
ngram 2=1

\\1-grams:
-2\t<unk>
-99\t<s>\t-0.1
-1\t</s>
{rows}

\\2-grams:
-1\t<s> </s>

\\end\\
"""


def write_arpa(path: Path, tokens) -> Path:
    """A language model of ``tokens``, each with a probability of its own or of a third of them."""
    rows = "\n".join(f"-{1 + number % 3}\t{token}" for number, token in enumerate(tokens))
    path.write_text(ARPA.format(count=len(tokens) + 3, rows=rows))
    return path
