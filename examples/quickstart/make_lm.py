"""Estimates a small n-gram language model and writes it in ARPA form.

    python make_lm.py TEXT LM.arpa [--order 3]

TEXT has a sentence of tokens in each line: words for --lexicon, labels for --lexicon-free. Modified
Kneser-Ney smoothing, interpolated (Chen and Goodman 1999), every n-gram kept. It counts in memory:
for a large text take KenLM's lmplz.
"""

import argparse
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path

from fairseq_speedup.files import written_whole

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # where the text is too small to estimate them
LOWEST = -99.0  # log10-probability of the start, which is never predicted


def count(sentences: list[list[str]], order: int) -> list[Counter]:
    """For each order from 1, what its n-grams count for: how often they occur at the highest order
    and after the start of a sentence, else how many different tokens they follow."""
    occurrences = [Counter() for _ in range(order)]
    for sentence in sentences:
        tokens = [START, *sentence, END]
        for size in range(1, order + 1):
            for start in range(len(tokens) - size + 1):
                occurrences[size - 1][tuple(tokens[start : start + size])] += 1
    counts = [occurrences[-1]]
    for size in range(order - 1, 0, -1):
        follows = Counter(ngram[1:] for ngram in occurrences[size])
        lower = Counter()
        for ngram, number in occurrences[size - 1].items():
            lower[ngram] = number if ngram[0] == START else follows[ngram]
        counts.insert(0, lower)
    del counts[0][(START,)]  # it is never predicted
    return counts


def discounts_of(counts: Counter) -> tuple[float, float, float]:
    """What is taken off counts of 1, of 2, and of 3 or more."""
    of_counts = Counter(counts.values())
    once, twice, thrice, often = (of_counts[number] for number in (1, 2, 3, 4))
    if not (once and twice and thrice):
        return FALLBACK_DISCOUNTS
    share = once / (once + 2 * twice)
    found = (
        1 - 2 * share * twice / once,
        2 - 3 * share * thrice / twice,
        3 - 4 * share * often / thrice,
    )
    in_range = all(0 < discount <= number for number, discount in enumerate(found, start=1))
    return found if in_range else FALLBACK_DISCOUNTS


def estimate(sentences: list[list[str]], order: int):
    """
    Returns:
        for each order from 1, the probability of each n-gram's last token after the others; and the
        back-off weight of each context
    """
    counts = count(sentences, order)
    vocabulary = len(counts[0]) + 1  # with the unknown token
    probabilities: list[dict] = []
    backoffs: dict[tuple, float] = {}
    for size, level in enumerate(counts, start=1):
        discounts = discounts_of(level)
        total, saved = defaultdict(int), defaultdict(float)
        for ngram, number in level.items():
            total[ngram[:-1]] += number
            saved[ngram[:-1]] += discounts[min(number, 3) - 1]
        backoffs |= {context: saved[context] / total[context] for context in total}
        found = {}
        for ngram, number in level.items():
            context = ngram[:-1]
            lower = probabilities[-1][ngram[1:]] if size > 1 else 1 / vocabulary
            discounted = number - discounts[min(number, 3) - 1]
            found[ngram] = discounted / total[context] + backoffs[context] * lower
        probabilities.append(found)
    probabilities[0][(UNKNOWN,)] = backoffs[()] / vocabulary
    return probabilities, backoffs


def write_arpa(path: Path, probabilities: list[dict], backoffs: dict) -> None:
    with written_whole(str(path)) as part, open(part, "w", encoding="utf-8") as file:
        file.write("\\data\\\n")
        for size, level in enumerate(probabilities, start=1):
            file.write(f"ngram {size}={len(level) + (size == 1)}\n")  # the start is added below
        for size, level in enumerate(probabilities, start=1):
            file.write(f"\n\\{size}-grams:\n")
            if size == 1:
                file.write(f"{LOWEST}\t{START}\t{math.log10(backoffs.get((START,), 1)):.6f}\n")
            for ngram, probability in sorted(level.items()):
                line = f"{math.log10(probability):.6f}\t{' '.join(ngram)}"
                if ngram in backoffs:
                    line += f"\t{math.log10(backoffs[ngram]):.6f}"
                file.write(f"{line}\n")
        file.write("\n\\end\\\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("arpa", type=Path)
    parser.add_argument("--order", type=int, default=3)
    args = parser.parse_args()
    sentences = [line.split() for line in args.text.read_text(encoding="utf-8-sig").splitlines()]
    sentences = [sentence for sentence in sentences if sentence]
    if args.order < 2 or not sentences:  # KenLM reads nothing below bigrams
        sys.exit(f"--order must be 2 or more and {args.text} must have a sentence in it")
    probabilities, backoffs = estimate(sentences, args.order)
    write_arpa(args.arpa, probabilities, backoffs)
    sizes = ", ".join(f"{len(level)} {n}-grams" for n, level in enumerate(probabilities, start=1))
    print(f"wrote {args.arpa}: {len(sentences)} sentences, {sizes}")


if __name__ == "__main__":
    main()
