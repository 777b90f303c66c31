"""What decoding a data set cost: the one-line summary and ``compute.json``."""

import contextlib
import json
import os
from collections import Counter

import numpy as np
import torch

from fairseq_speedup.profiling.clock import now
from fairseq_speedup.profiling.environment import hardware, peak_memory_bytes, versions
from fairseq_speedup.profiling.fvcore_count import check_macs
from fairseq_speedup.profiling.macs import MacCounter, UncountableError

FILE_NAME = "compute.json"


class ComputeMeter:
    """Adds up time and audio while a data set is decoded.

    Args:
        models: the models that decode it, on their device
        sample_rate: of the audio, in Hz
    """

    def __init__(self, models, sample_rate: int):
        self.models = models
        self.sample_rate = sample_rate
        self.device = next(models[0].parameters()).device
        self.encoder_seconds = 0.0
        self.decoder_seconds = 0.0  # wherever it runs
        self.wait_seconds = 0.0  # in which nothing but the decoder ran
        self.num_samples: list[int] = []
        self.layer_frames: list[list[int]] = []  # only of models with exits or merging

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

    def count(self, num_samples: torch.Tensor, layer_frames: torch.Tensor | None = None) -> None:
        """
        Args:
            num_samples: (B,), true lengths of a batch
            layer_frames: (B, layers), frames that each layer was given of each utterance, of a
                model with exits or merging
        """
        self.num_samples.extend(num_samples.tolist())
        if layer_frames is not None:
            self.layer_frames.extend(layer_frames.tolist())

    def report(self) -> dict:
        """Everything measured; MACs are at each utterance's true length, padding not counted."""
        peak_memory = peak_memory_bytes(self.device)  # first: counting MACs runs the model again
        audio_seconds = sum(self.num_samples) / self.sample_rate
        seconds = self.encoder_seconds + self.wait_seconds
        return {
            "parameters": sum(p.numel() for m in self.models for p in m.parameters()),
            "num_utterances": len(self.num_samples),
            "audio_seconds": audio_seconds,
            **macs_report(
                self.models, np.array(self.num_samples), self.sample_rate, self.layer_frames
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
    """With exits, the mean and the histogram of the layers that utterances ran; with merging, the
    share of the first layer's frames that each layer was given. Empty without."""
    if not layer_frames:
        return {}
    frames = np.array(layer_frames)
    (model,) = models
    report = {}
    if model.w2v_encoder.exit is not None:
        num_layers_run = (frames > 0).sum(axis=1)
        histogram = Counter(num_layers_run.tolist())
        report["mean_layers_run"] = float(num_layers_run.mean())
        report["layers_run_histogram"] = {str(n): histogram[n] for n in sorted(histogram)}
    if model.w2v_encoder.merging is not None:
        shares = frames.sum(axis=0) / frames[:, 0].sum()
        report["share_of_frames_by_layer"] = [round(float(share), 4) for share in shares]
    return report


def macs_report(
    models, num_samples: np.ndarray, sample_rate: int, layer_frames: list[list[int]]
) -> dict:
    """MACs per second of audio, in all and by stage, and their check against fvcore on the
    shortest utterance, through all layers."""
    if len(num_samples) == 0:
        return {"macs_per_second": None}
    try:
        counters = [MacCounter(model) for model in models]
    except UncountableError as error:
        return {"macs_per_second": None, "macs_note": str(error)}
    audio_seconds = num_samples.sum() / sample_rate
    frames = np.array(layer_frames) if layer_frames else None
    counts = [counter.count(num_samples, frames).sum().as_dict() for counter in counters]
    by_stage = {stage: sum(count[stage] for count in counts) / audio_seconds for stage in counts[0]}
    return {
        "macs_per_second": sum(by_stage.values()),
        "macs_per_second_by_stage": by_stage,
        "macs_check": check_macs(models, int(num_samples.min())),
    }


def summary_line(report: dict) -> str:
    """One line for a person."""
    macs = report["macs_per_second"]
    return (
        f"decoded {report['num_utterances']} utterances, {report['audio_seconds']:.1f} s of audio: "
        f"{report['parameters'] / 1e6:.1f} M parameters, "
        + (f"{macs / 1e9:.3f} GMACs per second of audio, " if macs else "")
        + f"encoder {report['encoder_seconds']:.2f} s, decoder {report['decoder_seconds']:.2f} s, "
        f"real-time factor {report['real_time_factor']:.5f}, "
        f"peak memory {report['peak_memory_bytes'] / 2**20:.0f} MiB"
        + (f", {report['mean_layers_run']:.2f} layers" if "mean_layers_run" in report else "")
    )


def write_report(report: dict, folder: str) -> str:
    """Writes ``compute.json`` into ``folder`` and returns its path."""
    path = os.path.join(folder, FILE_NAME)
    part = f"{path}.part"
    with open(part, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2)
        file.write("\n")
    os.replace(part, path)
    return path


def clear_report(folder: str, subset: str) -> None:
    """Makes way for a new report before decoding starts: one of the same subset is deleted, as
    fairseq empties its results file; one of another is kept as ``compute-{its subset}.json``."""
    path = os.path.join(folder, FILE_NAME)
    try:
        with open(path, encoding="utf-8") as file:
            earlier = json.load(file).get("gen_subset")
    except (OSError, ValueError, AttributeError):
        return
    if earlier == subset:
        os.remove(path)
    else:
        kept = path.replace(".json", f"-{earlier}.json")
        os.replace(path, kept)
        print(f"kept the report of {earlier} as {kept}")
