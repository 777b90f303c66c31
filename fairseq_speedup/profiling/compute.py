"""What decoding a data set cost: what ``compute.json`` says, and a summary in one line."""

import contextlib

import numpy as np
import torch

from fairseq_speedup.macs import MacCounter, UncountableError
from fairseq_speedup.profiling.clock import now
from fairseq_speedup.profiling.environment import hardware, peak_memory_bytes, versions
from fairseq_speedup.profiling.fvcore_count import check_macs


class ComputeMeter:
    """Adds up time and audio while a data set is decoded.

    Args:
        models: the models that decode it, on their device
        sample_rate: of the audio, in Hz
    """

    def __init__(self, models, sample_rate: int):
        self.models = models
        self.sample_rate = sample_rate
        parameter = next(models[0].parameters(), None)  # an exported model shows none
        self.device = torch.device("cpu") if parameter is None else parameter.device
        self.num_parameters = sum(p.numel() for model in models for p in model.parameters())
        self.inference: list[dict] = []  # what each model's inference form switched on
        self.encoder_seconds = 0.0
        self.decoder_seconds = 0.0  # wherever it runs
        self.wait_seconds = 0.0  # in which nothing but the decoder ran
        self.num_samples: list[int] = []
        self.pieces: list[int] = []  # samples of what the models were given: utterances or windows
        self.layer_frames: list[list[int]] = []  # of pieces; only of models with exits or merging

    @contextlib.contextmanager
    def encoding(self):
        start = now(self.device)
        yield
        self.encoder_seconds += now(self.device) - start

    @contextlib.contextmanager
    def decoding(self):
        start = now(self.device)
        yield
        seconds = now(self.device) - start
        self.decoder_seconds += seconds
        self.wait_seconds += seconds

    @contextlib.contextmanager
    def waiting(self):
        """For decoding in other processes."""
        start = now(self.device)
        yield
        self.wait_seconds += now(self.device) - start

    def decoded_elsewhere(self, seconds: float) -> None:
        """Adds the time of other processes."""
        self.decoder_seconds += seconds

    def count(
        self,
        num_samples: torch.Tensor,
        layer_frames: torch.Tensor | None = None,
        pieces: torch.Tensor | None = None,
    ) -> None:
        """
        Args:
            num_samples: (B,), true lengths of a batch
            layer_frames: (P, layers), frames that each layer was given of each piece, of a model
                with exits or merging
            pieces: (P,), samples of each utterance or window that the models were given; None where
                they were given whole utterances
        """
        self.num_samples.extend(num_samples.tolist())
        self.pieces.extend((num_samples if pieces is None else pieces).tolist())
        if layer_frames is not None:
            self.layer_frames.extend(layer_frames.tolist())

    def report(self) -> dict:
        """Everything measured; MACs are at each utterance's true length, padding not counted."""
        peak_memory = peak_memory_bytes(self.device)  # first: counting MACs runs the model again
        audio_seconds = sum(self.num_samples) / self.sample_rate
        seconds = self.encoder_seconds + self.wait_seconds
        return {
            "parameters": self.num_parameters or None,  # of an exported file
            "inference": self.inference[0] if self.inference else {},
            "num_utterances": len(self.num_samples),
            "num_windows": len(self.pieces),
            "audio_seconds": audio_seconds,
            **macs_report(
                self.models,
                np.array(self.pieces),
                audio_seconds,
                self.layer_frames,
                can_trace=not any(self.inference),
            ),
            **layer_report(self.models, self.layer_frames),
            "encoder_seconds": self.encoder_seconds,
            "decoder_seconds": self.decoder_seconds,
            "decoder_wait_seconds": self.wait_seconds,
            "real_time_factor": seconds / audio_seconds if audio_seconds else None,
            "peak_memory_bytes": peak_memory,
            "hardware": hardware(self.device),
            "versions": versions(),
        }


def layer_report(models, layer_frames: list[list[int]]) -> dict:
    """What stages between layers say of the frames (pieces, layers) that layers were given; empty
    without stages."""
    if not layer_frames:
        return {}
    (model,) = models
    report: dict = {}
    frames = np.array(layer_frames)
    for stage in model.w2v_encoder.stages:
        report |= stage.report(frames)
    return report


def macs_report(
    models,
    pieces: np.ndarray,
    audio_seconds: float,
    layer_frames: list[list[int]],
    can_trace: bool = True,
) -> dict:
    """MACs per second of audio, in all and by stage, and their check against fvcore on the
    shortest piece, through all layers; fvcore cannot trace an inference form.

    Args:
        pieces: samples of the utterances or windows that the models were given
    """
    if len(pieces) == 0:
        return {"macs_per_second": None}
    try:
        counters = [MacCounter(model) for model in models]
    except UncountableError as error:
        return {"macs_per_second": None, "macs_note": str(error)}
    frames = np.array(layer_frames) if layer_frames else None
    counts = [counter.count(pieces, frames).sum().as_dict() for counter in counters]
    by_stage = {stage: sum(count[stage] for count in counts) / audio_seconds for stage in counts[0]}
    return {
        "macs_per_second": sum(by_stage.values()),
        "macs_per_second_by_stage": by_stage,
        "macs_check": check_macs(models, int(pieces.min())) if can_trace else None,
    }


def summary_line(report: dict) -> str:
    """One line for a person."""
    macs = report["macs_per_second"]
    return (
        f"decoded {report['num_utterances']} utterances, {report['audio_seconds']:.1f} s of audio: "
        + (f"{report['parameters'] / 1e6:.1f} M parameters, " if report["parameters"] else "")
        + (f"{macs / 1e9:.3f} GMACs per second of audio, " if macs else "")
        + f"encoder {report['encoder_seconds']:.2f} s, decoder {report['decoder_seconds']:.2f} s, "
        + (f"real-time factor {rtf:.5f}, " if (rtf := report["real_time_factor"]) else "")
        + f"peak memory {report['peak_memory_bytes'] / 2**20:.0f} MiB"
        + (f", {report['mean_layers_run']:.2f} layers" if "mean_layers_run" in report else "")
    )
