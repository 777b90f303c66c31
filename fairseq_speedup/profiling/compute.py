"""What decoding a data set cost: the one-line summary and ``compute.json``."""

import contextlib
import json
import os
from collections import Counter

import numpy as np
import torch

from fairseq_speedup.files import written_whole
from fairseq_speedup.profiling.clock import now
from fairseq_speedup.profiling.environment import hardware, peak_memory_bytes, versions
from fairseq_speedup.profiling.fvcore_count import check_macs
from fairseq_speedup.profiling.macs import MacCounter, UncountableError

FILE_NAME = "compute.json"
# what shards spend and have, each its own
ADDED = [
    "num_utterances",
    "num_windows",
    "audio_seconds",
    "encoder_seconds",
    "decoder_seconds",
    "decoder_wait_seconds",
    "num_frames",
    "num_searched_frames",
]


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
            "parameters": self.num_parameters,
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
        report |= frames_by_layer(frames.sum(axis=0))
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
        f"{report['parameters'] / 1e6:.1f} M parameters, "
        + (f"{macs / 1e9:.3f} GMACs per second of audio, " if macs else "")
        + f"encoder {report['encoder_seconds']:.2f} s, decoder {report['decoder_seconds']:.2f} s, "
        + (f"real-time factor {rtf:.5f}, " if (rtf := report["real_time_factor"]) else "")
        + f"peak memory {report['peak_memory_bytes'] / 2**20:.0f} MiB"
        + (f", {report['mean_layers_run']:.2f} layers" if "mean_layers_run" in report else "")
    )


def write_report(report: dict, folder: str) -> str:
    """Writes ``compute.json`` into ``folder`` and returns its path."""
    path = os.path.join(folder, FILE_NAME)
    with written_whole(path) as part, open(part, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2)
        file.write("\n")
    return path


def read_report(folder: str, subset: str) -> dict | None:
    """The report of a subset in a folder, if there is one."""
    for name in (FILE_NAME, _kept_name(subset)):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                report = json.load(file)
            if report.get("gen_subset") == subset:
                return report
    return None


def merge_reports(reports: list[dict]) -> dict:
    """The report of one run, from those of its shards: what was spent is added up, wherever and
    whenever it was; the shards' own reports are kept under ``shards``."""
    merged = {
        name: value for name, value in reports[0].items() if name not in ("shard_id", "num_shards")
    }
    merged |= {name: sum(each[name] for each in reports) for name in ADDED if name in merged}
    audio_seconds = merged["audio_seconds"]
    spent = merged["encoder_seconds"] + merged["decoder_wait_seconds"]
    merged["real_time_factor"] = spent / audio_seconds if audio_seconds else None
    merged["peak_memory_bytes"] = max(each["peak_memory_bytes"] for each in reports)
    counted = [each for each in reports if each["macs_per_second"]]
    if counted:
        weights = [each["audio_seconds"] / audio_seconds for each in counted]
        by_stage = {
            stage: sum(
                weight * each["macs_per_second_by_stage"][stage]
                for weight, each in zip(weights, counted, strict=True)
            )
            for stage in counted[0]["macs_per_second_by_stage"]
        }
        merged["macs_per_second_by_stage"] = by_stage
        merged["macs_per_second"] = sum(by_stage.values())
    merged |= _merged_layers(reports)
    if "num_frames" in merged:
        merged |= searched_share(merged["num_frames"], merged["num_searched_frames"])
    return merged | {"shards": reports}


def _merged_layers(reports: list[dict]) -> dict:
    merged = {}
    histogram = Counter()
    for report in reports:
        histogram.update(report.get("layers_run_histogram", {}))
    if histogram:
        total = sum(int(layers) * count for layers, count in histogram.items())
        merged["mean_layers_run"] = total / histogram.total()
        in_order = sorted(histogram, key=int)
        merged["layers_run_histogram"] = {layers: histogram[layers] for layers in in_order}
    by_layer = [report["frames_by_layer"] for report in reports if "frames_by_layer" in report]
    if by_layer:
        merged |= frames_by_layer(np.array(by_layer).sum(axis=0))
    return merged


def frames_by_layer(frames: np.ndarray) -> dict:
    """Of the frames (layers,) that each layer was given."""
    shares = [round(float(share), 4) for share in frames / frames[0]]
    return {"share_of_frames_by_layer": shares, "frames_by_layer": frames.tolist()}


def searched_share(num_frames: int, num_searched_frames: int) -> dict:
    """Of the frames that there were and those that a beam search went through."""
    return {
        "num_frames": num_frames,
        "num_searched_frames": num_searched_frames,
        "share_of_frames_searched": round(num_searched_frames / max(1, num_frames), 4),
    }


def _kept_name(subset: str) -> str:
    return FILE_NAME.replace(".json", f"-{subset}.json")


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
        kept = os.path.join(folder, _kept_name(earlier))
        os.replace(path, kept)
        print(f"kept the report of {earlier} as {kept}")
