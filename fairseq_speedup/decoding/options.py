"""The options of decoding, which fairseq-generate takes with this task. The help of commands reads
them: neither fairseq nor torch is imported."""

import ast
import math
import os
from argparse import Namespace
from dataclasses import dataclass, field, fields
from typing import Any

DECODERS = ["greedy", "beam"]

# Options of fairseq-generate that decoding here takes as well, with fairseq's defaults.
OF_FAIRSEQ = {"beam": 5, "nbest": 1, "lm_weight": 0.0}

# Options of fairseq-generate that only make sense for an autoregressive decoder,
# with the value that leaves them off.
UNSUPPORTED = {
    "score_reference": False,
    "sampling": False,
    "constraints": None,
    "lm_path": None,
    "prefix_size": 0,
    "retain_iter_history": False,
}


@dataclass
class DecodingOptions:
    """A part of the task's config, which is fairseq's dataclass."""

    ctc_decoder: str = field(
        default="greedy",
        metadata={
            "help": "greedy, the best label of each frame, or beam: prefix beam search with "
            "fairseq's --beam and --nbest, and --lm-weight where a language model is given"
        },
    )
    kenlm_model: str = field(
        default="",
        metadata={
            "help": "n-gram language model, ARPA or KenLM binary: over words with --lexicon, over "
            "labels with --lexicon-free. --lm-weight multiplies its log10-probabilities"
        },
    )
    lexicon: str = field(
        default="",
        metadata={
            "help": "file with a line 'word<TAB>its labels' for each word that can be found; "
            "python -m fairseq_speedup lexicon makes one"
        },
    )
    lexicon_free: bool = field(
        default=False,
        metadata={"help": "any sequence of labels, with a language model over labels"},
    )
    word_score: float = field(
        default=0.0, metadata={"help": "added for each word, in nats; with --lexicon"}
    )
    sil_score: float = field(
        default=0.0,
        metadata={"help": "added for each frame of the boundary label |, in nats; with letters"},
    )
    beam_threshold: float = field(
        default=25.0,
        metadata={"help": "hypotheses this much worse than the best, in nats, are dropped"},
    )
    beam_size_token: int = field(
        default=50,
        metadata={"help": "labels tried in each frame, the likeliest; 0 for all"},
    )
    ctm: bool = field(
        default=False,
        metadata={
            "help": "also write the words' times, generate-{subset}.ctm, into --results-path"
        },
    )
    blank_skip_threshold: float = field(
        default=1.0,
        metadata={
            "help": "the beam search skips frames where the blank's probability is this or more; "
            "1 skips none, 0.999 is a start"
        },
    )
    decoder_workers: int = field(
        default=0,
        metadata={
            "help": "processes that search while the encoder runs on the next batch; 0 searches in "
            "the encoder's process, in turn with it"
        },
    )
    window_seconds: float = field(
        default=0.0,
        metadata={
            "help": "recordings longer than this run through the model in windows of this length, "
            "so that memory does not grow with the recording; 0 for never, 30 is a start"
        },
    )
    window_overlap: float = field(
        default=4.0,
        metadata={"help": "seconds that a window shares with the next; with --window-seconds"},
    )


FOR_GREEDY = ["ctc_decoder", "ctm", "window_seconds", "window_overlap"]
# of a beam search with a language model, beside the weights that tune-lm finds
OF_SEARCH = ["kenlm_model", "lexicon", "lexicon_free", "sil_score", "beam_threshold"]
OF_SEARCH += ["beam_size_token", "blank_skip_threshold"]
OF_SPEED = ["decoder_workers"]  # they change no result
SHORTEST_WINDOW = 2.0  # seconds
SHORTEST_OVERLAP = 0.5  # seconds
DEFAULTS = {each.name: each.default for each in fields(DecodingOptions)}


def option(name: str) -> str:
    """As it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def options_of_search(args: Namespace) -> DecodingOptions:
    """Of the arguments of tune-lm, without the weights that it finds."""
    return DecodingOptions(ctc_decoder="beam", **{name: getattr(args, name) for name in OF_SEARCH})


def read_overrides(text: str) -> dict:
    """What --model-overrides says, a Python dict as fairseq-generate takes it."""
    try:
        overrides = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        overrides = None
    if not isinstance(overrides, dict):
        raise ValueError(f"--model-overrides {text} is no Python dict such as {{'frame_pool': 2}}")
    return overrides


def given(options: DecodingOptions) -> list[str]:
    """Names of the options of the beam search that are not at their defaults."""
    return [
        name
        for name, default in DEFAULTS.items()
        if name not in FOR_GREEDY and getattr(options, name) != default
    ]


def describe(options: DecodingOptions, generation: Any) -> dict:
    """What decoded a data set, for compute.json."""
    windows = {}
    if options.window_seconds:
        windows = {name: getattr(options, name) for name in ("window_seconds", "window_overlap")}
    if options.ctc_decoder == "greedy":
        return {"ctc_decoder": "greedy", **windows}
    described = {"ctc_decoder": "beam", "beam": generation.beam, "nbest": generation.nbest}
    described |= windows
    described |= {name: getattr(options, name) for name in given(options)}
    return described | ({"lm_weight": generation.lm_weight} if options.kenlm_model else {})


def deciding(described: dict) -> dict:
    """Of what :func:`describe` gave, what results depend on."""
    return {name: value for name, value in described.items() if name not in OF_SPEED}


def check_options(options: DecodingOptions, generation: Any) -> None:
    """
    Args:
        generation: fairseq's GenerationConfig
    Raises:
        ValueError, FileNotFoundError: an option out of range, or one that would be ignored
    """
    if options.ctc_decoder not in DECODERS:
        raise ValueError(
            f"--ctc-decoder {options.ctc_decoder} is unknown; it is {' or '.join(DECODERS)}"
        )
    for name, off in UNSUPPORTED.items():
        if getattr(generation, name, off) != off:
            raise ValueError(f"{option(name)} does not apply to CTC decoding; leave it out")
    if getattr(generation, "print_alignment", None) == "soft":
        raise ValueError("--print-alignment soft: CTC alignments are hard; use 'hard'")
    _check_windows(options)
    if options.ctc_decoder == "greedy":
        _check_greedy(options, generation)
    else:
        _check_beam(options, generation)


def _check_windows(options: DecodingOptions) -> None:
    seconds, overlap = options.window_seconds, options.window_overlap
    if seconds == 0:
        if overlap != DEFAULTS["window_overlap"]:
            raise ValueError(f"--window-overlap {overlap} needs --window-seconds")
        return
    if not SHORTEST_WINDOW <= seconds < math.inf:
        raise ValueError(
            f"--window-seconds {seconds} is out of range; it must be {SHORTEST_WINDOW:g} or more, "
            "or 0 for whole recordings"
        )
    if not SHORTEST_OVERLAP <= overlap <= seconds / 2:
        raise ValueError(
            f"--window-overlap {overlap} is out of range; it must be {SHORTEST_OVERLAP:g} to half "
            f"of --window-seconds, {seconds / 2:g}"
        )


def _check_greedy(options: DecodingOptions, generation: Any) -> None:
    if getattr(generation, "nbest", 1) > 1:
        raise ValueError(
            f"--nbest {generation.nbest}: greedy decoding has one hypothesis; use --nbest 1 or "
            "--ctc-decoder beam"
        )
    ignored = [option(name) for name in given(options)]
    if getattr(generation, "lm_weight", 0) != 0:
        ignored.append("--lm-weight")
    if ignored:
        raise ValueError(
            f"{', '.join(ignored)}: greedy decoding uses none of it; add --ctc-decoder beam"
        )


def _check_beam(options: DecodingOptions, generation: Any) -> None:
    if generation.beam < 1:
        raise ValueError(f"--beam {generation.beam} is out of range; it must be 1 or more")
    if not 1 <= generation.nbest <= generation.beam:
        raise ValueError(
            f"--nbest {generation.nbest} is out of range; it must be 1 to --beam, which is "
            f"{generation.beam}"
        )
    numbers = {name: getattr(options, name) for name in ("word_score", "sil_score")}
    numbers |= {"beam_threshold": options.beam_threshold, "lm_weight": generation.lm_weight}
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"{option(name)} {value} must be a finite number")
    if options.beam_threshold <= 0:
        raise ValueError(
            f"--beam-threshold {options.beam_threshold} is out of range; it must be above 0 (nats)"
        )
    if options.beam_size_token < 0:
        raise ValueError(
            f"--beam-size-token {options.beam_size_token} is out of range; it must be 1 or more, "
            "or 0 for all labels"
        )
    if options.decoder_workers < 0:
        raise ValueError(
            f"--decoder-workers {options.decoder_workers} is out of range; it must be 0 or more"
        )
    if not 0.5 < options.blank_skip_threshold <= 1:
        raise ValueError(
            f"--blank-skip-threshold {options.blank_skip_threshold} is out of range; it is a "
            "probability above 0.5, and 1 skips nothing"
        )
    _check_language_model(options, generation.lm_weight)
    if options.kenlm_model and not os.path.isfile(options.kenlm_model):
        raise FileNotFoundError(f"--kenlm-model {options.kenlm_model} does not exist")


def _check_language_model(options: DecodingOptions, lm_weight: float) -> None:
    """That options which need each other come together."""
    if lm_weight < 0:
        raise ValueError(f"--lm-weight {lm_weight} is out of range; it must be 0 or more")
    if options.lexicon and options.lexicon_free:
        raise ValueError("--lexicon-free with --lexicon: leave one of them out")
    if not options.kenlm_model:
        if lm_weight != 0:
            raise ValueError(f"--lm-weight {lm_weight} needs a language model: give --kenlm-model")
        if options.lexicon_free:
            raise ValueError(
                "--lexicon-free needs a language model over labels: give --kenlm-model, or leave "
                "it out for a beam search without language model"
            )
    elif not options.lexicon and not options.lexicon_free:
        raise ValueError(
            "--kenlm-model needs --lexicon (python -m fairseq_speedup lexicon makes one), or "
            "--lexicon-free where the language model is over labels"
        )
    elif lm_weight == 0:
        raise ValueError(
            "--kenlm-model without --lm-weight has no say: give one above 0, such as 2 "
            "(python -m fairseq_speedup tune-lm finds one)"
        )
    if options.word_score != 0 and not options.lexicon:
        raise ValueError(f"--word-score {options.word_score} needs --lexicon")
    if options.sil_score != 0 and not options.lexicon and not options.lexicon_free:
        raise ValueError(f"--sil-score {options.sil_score} needs --lexicon or --lexicon-free")
