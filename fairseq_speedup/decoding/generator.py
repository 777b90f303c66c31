"""The generator that stock ``fairseq-generate`` drives for CTC models."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fairseq import utils
from fairseq.data import Dictionary
from torch import nn

from fairseq_speedup.decoding.decoder import Decoder
from fairseq_speedup.decoding.hypothesis import without_empty_words
from fairseq_speedup.decoding.language.words import Words
from fairseq_speedup.decoding.results.generated import ResultFile
from fairseq_speedup.decoding.windows import Windows
from fairseq_speedup.lengths import lengths_of, padding_mask_of
from fairseq_speedup.models.exported_ctc import ExportedCtc
from fairseq_speedup.profiling.compute import ComputeMeter

# what else gives NaN in fairseq-generate
OF_FP16 = (
    ", or values are beyond the range of fp16 (then decode without --fp16, or with --inference "
    "bf16 or fp32)"
)


def symbols_to_strip(dictionary: Dictionary, blank: int) -> set[int]:
    """Symbols that are no part of a transcript, should a model emit them."""
    return {dictionary.eos(), dictionary.pad(), blank}


class CtcGenerator:
    """Runs the model on a batch and decodes its logits; measures both apart.

    Args:
        decoder: see :class:`~fairseq_speedup.decoding.decoder.Decoder`
        dictionary: the labels
        blank: index of the blank, dropped from printed lines
        meter: receives what each batch cost
        files: written beside fairseq's results (see
            :func:`~fairseq_speedup.decoding.results.files.result_files`)
        windows: that long recordings are cut into; None for whole ones
        words: which fairseq makes of the labels; None where it prints them as they are

    Attributes:
        progress: called with the samples of audio that each forward pass went on by
    """

    def __init__(
        self,
        decoder: Decoder,
        dictionary: Dictionary,
        blank: int,
        meter: ComputeMeter,
        files: Sequence[ResultFile] = (),
        windows: Windows | None = None,
        words: Words | None = None,
    ):
        self.files = files
        self.words = words
        self.windows = windows
        self.progress = _unseen
        self.upcoming: dict | None = None  # the next batch, where it is known
        # that batch and what the models gave for it
        self._ahead: tuple[torch.Tensor, Encoded] | None = None
        self.decoder = decoder
        self.meter = meter
        self.warm = False
        self.symbols_to_strip_from_output = symbols_to_strip(dictionary, blank)

    @torch.no_grad()
    def generate(
        self, models: Sequence[nn.Module], sample: dict, **unused: Any
    ) -> list[list[dict]]:
        """
        Args:
            models: CTC models whose posteriors are averaged; their frames must agree
            sample: a batch of fairseq's audio dataset
        Returns:
            for each utterance a list of hypotheses, best first
        """
        with threads_left_to_engines(models):
            return self._generate(models, sample)

    def _generate(self, models: Sequence[nn.Module], sample: dict) -> list[list[dict]]:
        encoded = self._encoded(models, sample)
        check_numbers(encoded.log_probs, encoded.lengths, sample, OF_FP16)
        with self.meter.decoding():
            batch = self.decoder.start(encoded.log_probs, encoded.lengths)
        if self.decoder.overlaps:
            self._encode_ahead(models)
        with self.meter.waiting():
            batch.wait()
        with self.meter.decoding():
            hypotheses = batch.hypotheses()
        self.meter.decoded_elsewhere(batch.seconds_elsewhere)
        self.meter.count(encoded.num_samples, encoded.layer_frames, encoded.pieces)
        for file in self.files:
            file.add(sample["id"].tolist(), hypotheses)
        if self.words is None:
            return hypotheses
        return [[without_empty_words(each, self.words) for each in nbest] for nbest in hypotheses]

    def _encoded(self, models: Sequence[nn.Module], sample: dict) -> "Encoded":
        if self._ahead is not None:
            (ids, encoded), self._ahead = self._ahead, None
            if torch.equal(ids, sample["id"].cpu()):
                return encoded
        if not self.warm:  # not timed: first calls allocate and tune
            encode(models, _first_window(sample["net_input"], self.windows), self.windows)
            self.warm = True
        return self._encode(models, sample)

    def _encode(self, models: Sequence[nn.Module], sample: dict) -> "Encoded":
        with self.meter.encoding():
            return encode(models, sample["net_input"], self.windows, self.progress)

    def _encode_ahead(self, models: Sequence[nn.Module]) -> None:
        """The next batch, while this one is searched elsewhere."""
        upcoming, self.upcoming = self.upcoming, None
        if not upcoming or "net_input" not in upcoming:
            return
        if self.meter.device.type == "cuda":
            upcoming = utils.move_to_cuda(upcoming)
        try:
            self._ahead = (upcoming["id"].cpu(), self._encode(models, upcoming))
        except Exception:  # it comes again when it is that batch's turn, after this one is written
            self._ahead = None


@dataclass
class Encoded:
    """What the models gave for a batch.

    log_probs: (T, B, V)
    lengths: (B,), valid frames
    num_samples: (B,)
    pieces: (P,), samples of each piece of audio that the models were given: an utterance or window
    layer_frames: (P, layers), see :func:`log_posteriors`, or None
    """

    log_probs: torch.Tensor
    lengths: torch.Tensor
    num_samples: torch.Tensor
    pieces: torch.Tensor
    layer_frames: torch.Tensor | None


class NoNumbersError(ValueError):
    """Log-probabilities that are NaN.

    rows: of the batch, that have some
    """

    def __init__(self, rows: list[int], of: str, more: str = ""):
        super().__init__(f"the model gives no numbers (NaN){of}: its training diverged{more}")
        self.rows = rows


def check_numbers(
    log_probs: torch.Tensor, lengths: torch.Tensor, sample: dict, more: str = ""
) -> None:
    """
    Args:
        log_probs: (T, B, V)
        lengths: (B,), valid frames
        sample: the batch, whose ``id`` (B,) numbers its utterances where it has one
        more: that may have led to it, for the message
    Raises:
        NoNumbersError: log-probabilities that are no numbers, naming an utterance
    """
    nan = log_probs.isnan()
    if not nan.any():
        return
    nan = nan.any(dim=2)  # (T, B)
    valid = ~padding_mask_of(lengths.to(nan.device), len(nan)).T
    rows = (nan & valid).any(dim=0).nonzero().flatten().tolist()
    if rows:
        named = int(sample["id"][rows[0]]) if "id" in sample else None
        of = "" if named is None else f" for utterance {named}, counted from 0"
        raise NoNumbersError(rows, of, more)


def _unseen(num_samples: int) -> None:
    """Shows no progress."""


@contextlib.contextmanager
def threads_left_to_engines(models: Sequence[nn.Module]) -> Iterator[None]:
    """Keeps PyTorch to one thread while other engines compute: its threads spin for a while after
    each operation that they share, on cores that the engine's threads wait for."""
    num_threads = torch.get_num_threads()
    if num_threads == 1 or not any(isinstance(model, ExportedCtc) for model in models):
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def encode(
    models: Sequence[nn.Module],
    net_input: dict,
    windows: Windows | None = None,
    progress: Callable[[int], Any] = _unseen,
) -> Encoded:
    """Runs the models, in windows where the batch is longer than one.

    Args:
        net_input: ``source`` (B, S) and ``padding_mask`` (B, S) or None
        progress: called with the samples that each forward pass went on by
    """
    source = net_input["source"]
    num_samples = lengths_of(net_input.get("padding_mask"), source)
    if windows is None or source.size(1) <= windows.size:
        log_probs, lengths, layer_frames = log_posteriors(models, net_input)
        progress(int(num_samples.sum()))
        return Encoded(log_probs, lengths, num_samples, num_samples, layer_frames)
    recordings, pieces, layer_frames = [], [], []
    for waveform, length in zip(source, num_samples.tolist(), strict=True):
        emissions = []
        spans = windows.spans(length)
        for start in range(0, len(spans), windows.at_once):
            batch = spans[start : start + windows.at_once]
            net_input = batch_of([waveform[begin:end] for begin, end in batch])
            log_probs, lengths, frames = log_posteriors(models, net_input)
            by_window = zip(log_probs.unbind(1), lengths.tolist(), strict=True)
            emissions += [each[:count].clone() for each, count in by_window]
            pieces += [end - begin for begin, end in batch]
            layer_frames += [] if frames is None else [frames]
            begin, end = batch[0][0], batch[-1][1]
            progress((end if end == length else batch[-1][0] + windows.hop) - begin)
        recordings.append(windows.joined(emissions))
    return Encoded(
        nn.utils.rnn.pad_sequence(recordings),
        torch.tensor([len(each) for each in recordings]),
        num_samples,
        torch.tensor(pieces),
        torch.cat(layer_frames) if layer_frames else None,
    )


def batch_of(waveforms: list[torch.Tensor]) -> dict:
    """The models' input of waveforms (S,); no copy is made of one alone."""
    if len(waveforms) == 1:
        return {"source": waveforms[0][None], "padding_mask": None}
    source = nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    lengths = torch.tensor([len(each) for each in waveforms], device=source.device)
    padded = bool((lengths < source.size(1)).any())
    return {
        "source": source,
        "padding_mask": padding_mask_of(lengths, source.size(1)) if padded else None,
    }


def _first_window(net_input: dict, windows: Windows | None) -> dict:
    """The beginning of a batch."""
    if windows is None:
        return net_input
    return {
        name: None if values is None else values[:, : windows.size]
        for name, values in net_input.items()
    }


def log_posteriors(
    models: Sequence[nn.Module], net_input: dict
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """
    Returns:
        log-probabilities (T, B, V) averaged over ``models``; valid frames (B,); frames
        (B, layers) that the layers of the one model with exits or merging were given, or None
    """
    outputs = []
    for model in models:
        net_output = model(**net_input)
        log_probs = model.get_normalized_probs(net_output, log_probs=True)
        batch_first = log_probs.transpose(0, 1)  # T x B x V -> B x T x V
        lengths = lengths_of(net_output["padding_mask"], batch_first)
        outputs.append((log_probs, lengths))
    log_probs, lengths = outputs[0]
    if len(outputs) == 1:
        return log_probs, lengths, net_output.get("layer_frames")
    shapes = {tuple(each.shape) for each, _ in outputs}
    if len(shapes) > 1:
        raise ValueError(
            "the models of an ensemble must give the same frames and labels; "
            f"(frames, batch, labels) are {sorted(shapes)}"
        )
    stacked = torch.stack([each for each, _ in outputs])
    log_probs = utils.log_softmax(torch.logsumexp(stacked, dim=0), dim=-1)
    return log_probs, lengths, None
