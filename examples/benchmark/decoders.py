"""Times the decoders on made-up emissions: what they cost, and what pruning and processes save.

    python examples/benchmark/decoders.py [--words 5000] [--beam 50] ...

A random lexicon and sentences, a language model of such sentences, and emissions that spell some of
them with noise, mostly blank as CTC's are. Real-time factors are seconds of decoding per second of
audio, at 20 ms a frame.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import editdistance
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "quickstart"))
from make_lm import estimate, write_arpa

from fairseq_speedup.decoding.beam_search.decoder import BeamDecoder
from fairseq_speedup.decoding.beam_search.flashlight import LexiconSearch
from fairseq_speedup.decoding.beam_search.prefix_beam import PrefixBeamSearch
from fairseq_speedup.decoding.greedy import GreedyDecoder
from fairseq_speedup.decoding.language.lexicon import Lexicon
from fairseq_speedup.decoding.language.words import Words
from fairseq_speedup.decoding.options import DecodingOptions

BLANK = 0
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", "|", *LETTERS]
FRAME_SECONDS = 0.02
BATCH_SIZE = 8


def make_sentences(words: list[str], count: int, rng) -> list[list[str]]:
    """Words by Zipf's law, eight to twelve in a sentence."""
    weights = 1 / np.arange(1, len(words) + 1)
    weights /= weights.sum()
    return [
        [words[i] for i in rng.choice(len(words), size=rng.integers(8, 13), p=weights)]
        for _ in range(count)
    ]


def emission_of(sentence: list[str], noise: float, rng) -> np.ndarray:
    """Log-probabilities (T, V) that spell a sentence, a label every two to five frames."""
    rows = []
    for letter in "|".join(sentence) + "|":
        rows += [BLANK] * int(rng.integers(1, 5)) + [SYMBOLS.index(letter)]
    logits = noise * rng.standard_normal((len(rows), len(SYMBOLS)))
    logits[np.arange(len(rows)), rows] += 6.0
    logits[:, BLANK] += 2.0
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def batches_of(emissions: list[np.ndarray]):
    """(log-probabilities (T, B, V), lengths (B,))"""
    in_order = sorted(emissions, key=len)
    for start in range(0, len(in_order), BATCH_SIZE):
        batch = [torch.from_numpy(each).float() for each in in_order[start : start + BATCH_SIZE]]
        padded = torch.nn.utils.rnn.pad_sequence(batch)
        yield padded, torch.tensor([len(each) for each in batch])


def measure(name: str, decoder, emissions, references, words: Words) -> None:
    seconds, errors, pending = 0.0, 0, []
    start = time.perf_counter()
    for log_probs, lengths in batches_of(emissions):
        pending.append(decoder.start(log_probs, lengths))
    nbest = [hypotheses for batch in pending for hypotheses in batch.hypotheses()]
    seconds = time.perf_counter() - start
    for (best, *_), reference in zip(nbest, references, strict=True):
        found = words.of([SYMBOLS[token] for token in best["tokens"].tolist()])
        errors += editdistance.eval(found, reference)
    audio = sum(map(len, emissions)) * FRAME_SECONDS
    wer = 100 * errors / sum(map(len, references))
    share = decoder.report().get("share_of_frames_searched", 1.0)
    print(f"{name:<52}{seconds / audio:>10.5f}{100 * share:>10.1f}{wer:>8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--words", type=int, default=5000, help="in the lexicon")
    parser.add_argument("--sentences", type=int, default=5000, help="of the language model")
    parser.add_argument("--utterances", type=int, default=64)
    parser.add_argument("--noise", type=float, default=1.6, help="of logits, standard deviation")
    parser.add_argument("--beam", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    spelled = {
        "".join(rng.choice(list(LETTERS[:26]), size=rng.integers(2, 10))) for _ in range(args.words)
    }
    listed = sorted(spelled)
    rng.shuffle(listed)
    text = make_sentences(listed, args.sentences, rng)
    references = make_sentences(listed, args.utterances, rng)
    emissions = [emission_of(sentence, args.noise, rng) for sentence in references]
    order = sorted(range(len(emissions)), key=lambda i: len(emissions[i]))
    references = [references[i] for i in order]
    words = Words(SYMBOLS, (1, 2, 3))
    lexicon = Lexicon(listed, {word: [words.closed(list(word))] for word in listed})
    audio = sum(map(len, emissions)) * FRAME_SECONDS
    print(f"{len(emissions)} utterances, {audio:.0f} s, {len(listed)} words, beam {args.beam}")
    print(f"{'':<52}{'RTF':>10}{'frames %':>10}{'WER %':>8}")

    def beam(search, threshold=1.0, workers=0):
        return BeamDecoder(search, words, BLANK, threshold, workers)

    with tempfile.TemporaryDirectory() as folder:
        arpa = Path(folder) / "lm.arpa"
        write_arpa(arpa, *estimate(text, 3))

        def lexicon_search(tokens=0, beam_threshold=25.0):
            options = DecodingOptions(beam_size_token=tokens, beam_threshold=beam_threshold)
            return LexiconSearch(words, BLANK, options, args.beam, 1, 1.0, lexicon, str(arpa))

        rows = {
            "greedy": GreedyDecoder(BLANK),
            "beam, no language model": beam(PrefixBeamSearch(words, BLANK, args.beam)),
            "beam, no language model, 10 labels a frame": beam(
                PrefixBeamSearch(words, BLANK, args.beam, beam_size_token=10)
            ),
            "lexicon and language model": beam(lexicon_search()),
            "the same, 10 labels a frame": beam(lexicon_search(10)),
            "the same, 10 labels, --beam-threshold 10": beam(lexicon_search(10, 10.0)),
        }
        for threshold in (0.999, 0.99, 0.95):
            name = f"10 labels, --blank-skip-threshold {threshold}"
            rows[name] = beam(lexicon_search(10), threshold)
        rows[f"10 labels, --decoder-workers {args.workers}"] = beam(
            lexicon_search(10), workers=args.workers
        )
        for name, decoder in rows.items():
            measure(name, decoder, emissions, references, words)


if __name__ == "__main__":
    main()
