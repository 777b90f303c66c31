"""n-gram language models: reading them, and whether they are of the labels' words."""

import gzip
import os
import re
import zlib
from collections import Counter
from functools import lru_cache
from typing import Any

from fairseq_speedup.console.library_warnings import native_code_on_terminals_alone
from fairseq_speedup.data.manifest import TEXT, begins_with_mark
from fairseq_speedup.decoding.language.words import LETTER_BOUNDARY, PIECE_BOUNDARY

try:
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary
except ImportError:
    KenLM = None

WARN_OOV_SHARE = 0.2
MAX_NAMED = 5
UNKNOWN = "<unk>"
BOUNDARIES = (LETTER_BOUNDARY, PIECE_BOUNDARY)  # what labels that tell words apart begin with
ARPA_START = "\\data\\"
UNIGRAMS = "\\1-grams:"
# of KenLM's messages
THROWN = " threw "
TOO_HIGH = re.compile(r"order (\d+) but KenLM was compiled to support up to (\d+)")


class LanguageModelError(ValueError):
    """A language model that cannot be used."""


def load_kenlm(path: str, vocabulary: list[str]) -> Any:
    """A KenLM model whose indices are those of ``vocabulary``.

    Raises:
        LanguageModelError: the file is no language model, in KenLM's words
    """
    try:
        changed_ns = os.stat(path).st_mtime_ns if os.path.exists(path) else 0
        return _load(path, changed_ns, tuple(vocabulary))
    except UnicodeDecodeError:  # KenLM quotes what it cannot read
        reason = "it is neither an ARPA file nor a KenLM binary"
    except RuntimeError as error:
        reason = _reason(str(error))
    if begins_with_mark(path):
        reason = "it begins with a byte order mark: sed '1s/^\\xEF\\xBB\\xBF//' takes that away"
    raise LanguageModelError(f"--kenlm-model {path} cannot be read: {reason}")


@lru_cache(maxsize=1)  # decoders are built anew for each option, and a large file takes minutes
def _load(path: str, changed_ns: int, vocabulary: tuple[str, ...]) -> Any:
    with native_code_on_terminals_alone():
        return KenLM(path, Dictionary(list(vocabulary)))


def _reason(message: str) -> str:
    """KenLM's words on one line, without the place in its source that comes first."""
    order = TOO_HIGH.search(message)
    if order:
        return (
            f"its order is {order[1]}, and the highest that this build of KenLM takes is "
            f"{order[2]}: estimate one of order {order[2]} or lower, or build flashlight-text with "
            f"-DKENLM_MAX_ORDER={order[1]}"
        )
    lines = [line.strip() for line in message.strip().split("\n")]
    if len(lines) > 1 and THROWN in lines[0]:
        lines = lines[1:]
    return " ".join(lines)


def known_tokens(path: str, tokens: list[str]) -> set[str]:
    """Those of ``tokens`` that are in a model's vocabulary.

    An ARPA file lists its vocabulary. Of a binary, a token is taken as unknown where it has the
    score of an unknown one at the start of a sentence and without context.
    """
    unigrams = read_unigrams(path)
    if unigrams is not None:
        return unigrams & set(tokens)
    lm = load_kenlm(path, [*tokens, UNKNOWN])
    contexts = [lm.start(False), lm.start(True)]

    def scores(index: int) -> list[float]:
        return [lm.score(context, index)[1] for context in contexts]

    unknown = scores(len(tokens))
    return {token for index, token in enumerate(tokens) if scores(index) != unknown}


def read_unigrams(path: str) -> set[str] | None:
    """The vocabulary of an ARPA file, plain or gzipped; None for another file."""
    with open(path, "rb") as file:
        magic = file.read(2)
    opened = gzip.open if magic == b"\x1f\x8b" else open
    unigrams = set()
    try:
        with opened(path, "rt", encoding=TEXT) as file:
            lines = (line.strip() for line in file)
            if next((line for line in lines if line), None) != ARPA_START:
                return None
            for line in lines:
                if line == UNIGRAMS:
                    break
            for line in lines:
                if line.startswith("\\"):
                    break
                if line:
                    unigrams.add(line.split()[1])
    except (UnicodeDecodeError, IndexError, EOFError, gzip.BadGzipFile, zlib.error):
        return None
    return unigrams


def check_vocabulary(path: str, tokens: Counter, source: str, over_labels: bool) -> None:
    """Compares a model's vocabulary with tokens that it will score; warns where the share of
    running tokens out of it is above 20 %.

    Args:
        tokens: words, or labels where ``over_labels``, and how often they occur
        source: where they are from, for messages
    Raises:
        LanguageModelError: it knows none, or its units are others
    """
    unit = "labels" if over_labels else "words"
    known = known_tokens(path, [*tokens, LETTER_BOUNDARY])
    if not over_labels and LETTER_BOUNDARY in known:
        raise LanguageModelError(
            f"--kenlm-model {path} is over labels: it knows the boundary {LETTER_BOUNDARY!r}. Give "
            "--lexicon-free in place of --lexicon, or a model over words"
        )
    missing = [token for token, _ in tokens.most_common() if token not in known]
    share = sum(tokens[token] for token in missing) / max(1, tokens.total())
    if not missing:
        return
    examples = ", ".join(missing[:MAX_NAMED])
    message = (
        f"--kenlm-model {path}: {100 * share:.1f} % of the {unit} of {source} are out of its "
        f"vocabulary, such as {examples}"
    )
    boundaries = {token for token in tokens if token.startswith(BOUNDARIES)}
    no_boundary = over_labels and boundaries and boundaries.issubset(missing)
    if len(missing) == len(tokens) or no_boundary:
        raise LanguageModelError(f"{message}. {_advice(path, missing, over_labels)}")
    if share > WARN_OOV_SHARE:
        print(f"warning: {message}. {_advice(path, missing, over_labels)}", flush=True)


def _advice(path: str, missing: list[str], over_labels: bool) -> str:
    for change in (str.lower, str.upper):
        changed = [change(token) for token in missing]
        if changed != missing and known_tokens(path, changed) - set(missing):
            return f"It knows {changed[0]!r}: the casing of its words must be that of the labels"
    if over_labels:
        return "--lexicon-free needs a model over the labels, the boundary between words included"
    return "It must be over words, written as in the training transcripts"
