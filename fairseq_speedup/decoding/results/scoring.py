"""How hypotheses are compared with references: the options of fairseq's WER scorer, kept in
compute.json, and what it counts with them."""

from dataclasses import dataclass, fields
from typing import Any

from fairseq_speedup.decoding.language.boundaries import BOUNDARIES, LabelWords

MEASURES = {"words": "WER", "characters": "CER", "labels": "UER"}
APART = ("none", "silence")  # values of --post-process that leave each label a word of its own
FIELD = "scoring"  # of compute.json
# of --wer-tokenizer, those of sacreBLEU that leave words as they are between blanks
OF_BLANKS = ("none", "13a", "intl")
TEXTS = ("wer_tokenizer", "post_process")  # the other options are on or off


@dataclass(frozen=True)
class Scoring:
    """fairseq-generate's options of these names, which tell what an error rate is of.

    post_process: None in results of an earlier version, which do not tell
    """

    wer_tokenizer: str = "none"
    wer_remove_punct: bool = False
    wer_char_level: bool = False
    wer_lowercase: bool = False
    post_process: str | None = None

    @classmethod
    def of_compute(cls, compute: dict) -> "Scoring":
        """
        Args:
            compute: what compute.json holds
        Raises:
            ValueError: naming what is no record of a scoring
        """
        found = compute.get(FIELD, {})
        if not isinstance(found, dict):
            raise ValueError(f"{FIELD} is {found!r:.50}, not a JSON object")
        known = {each.name: found[each.name] for each in fields(cls) if each.name in found}
        for name, value in known.items():
            if not isinstance(value, str if name in TEXTS else bool):
                raise ValueError(f"{FIELD} has {name}: {value!r:.50}")
        return cls(**known)

    @property
    def unit(self) -> str:
        """What errors are counted in: one of MEASURES."""
        if self.wer_char_level or self.wer_tokenizer == "char":
            return "characters"
        return "labels" if self.post_process in APART else "words"

    @property
    def measure(self) -> str:
        """WER, CER or, of labels, fairseq's UER."""
        return MEASURES[self.unit]

    @property
    def options(self) -> str:
        """Those of the scorer that are not at their defaults, as they are given."""
        given = {name: value for name, value in self._options.items() if value != DEFAULTS[name]}
        return " ".join(
            f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
            for name, value in given.items()
        )

    def __str__(self) -> str:
        return f"{self.measure} ({self.options})" if self.options else self.measure

    def agrees(self, other: "Scoring") -> bool:
        """Whether their error rates can be compared. Where one of them does not tell its
        post-processing, the other options decide."""
        if None in (self.post_process, other.post_process):
            return self._options == other._options
        return (self.unit, self._options) == (other.unit, other._options)

    @property
    def _options(self) -> dict:
        return {name: getattr(self, name) for name in DEFAULTS}

    def counts(self, pairs: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """Edit distance, and length of the reference, of each (reference, hypothesis), in units, as
        fairseq's scorer has them."""
        if self._options == DEFAULTS:
            import editdistance

            words = [(reference.split(), hypothesis.split()) for reference, hypothesis in pairs]
            return [editdistance.eval(*each) for each in words], [len(each) for each, _ in words]
        from fairseq.scoring.wer import WerScorer, WerScorerConfig

        scorer = WerScorer(WerScorerConfig(**self._options))
        errors, lengths = [], []
        for reference, hypothesis in pairs:
            scorer.reset()
            scorer.add_string(reference, hypothesis)
            errors.append(scorer.distance)
            lengths.append(scorer.ref_length)
        return errors, lengths

    def error_rate(self, pairs: list[tuple[str, str]]) -> float:
        """In percent, over (reference, hypothesis) pairs."""
        errors, lengths = self.counts(pairs)
        return 100 * sum(errors) / sum(lengths) if sum(lengths) else 0.0


# of the scorer's own options
DEFAULTS = {each.name: each.default for each in fields(Scoring) if each.name != "post_process"}


def of_generate(cfg: Any) -> dict:
    """How fairseq-generate scores, for compute.json.

    Args:
        cfg: its config
    """
    scorer = cfg.scoring
    name = scorer if isinstance(scorer, str) else scorer and scorer.get("_name")
    found = {"scorer": name}
    if name == "wer":
        found |= {name: scorer.get(name, default) for name, default in DEFAULTS.items()}
    return found | {"post_process": cfg.common_eval.post_process or "none"}


def check_scoring(labels: LabelWords, scoring: dict) -> None:
    """That fairseq-generate's error rate is of what its labels have; prints what may be meant
    otherwise.

    Args:
        labels: of the split that is decoded
        scoring: see :func:`of_generate`
    Raises:
        NoWordsError: words are counted in labels that have none
    """
    if scoring["scorer"] != "wer":
        return
    given, fits = scoring["post_process"], labels.post_process
    if scoring["wer_char_level"]:
        if given in APART and labels.most_labels > 1:
            print(
                "warning: --wer-char-level counts the blanks that --post-process "
                f"{given} leaves between labels, which are never wrong: leave one of the two out, "
                f"or give --post-process {fits if fits in BOUNDARIES else 'letter'}"
            )
        return
    if scoring["wer_tokenizer"] not in OF_BLANKS:  # it finds words, or characters, by itself
        return
    labels.check(
        given,
        f"--post-process {given}",
        "use --post-process none, which counts labels (phonemes, characters, pieces), or add "
        "--wer-char-level, which counts characters",
    )
    note = labels.note(given)
    if note:
        print(f"note: {note}; --wer-char-level counts characters")
    elif given == "none" and fits in BOUNDARIES:
        print(
            f"note: what is printed as WER counts each label as a word; --post-process {fits} "
            "makes words of them"
        )
