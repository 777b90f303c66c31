"""What a model costs: parameters, MACs, time and memory, without data."""

import json
import os
from pathlib import Path

import numpy as np
import torch
import yaml
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fairseq_speedup.architectures import architecture_config
from fairseq_speedup.config import REDUCTION_OPTIONS, SpeedupCtcConfig, switched_on
from fairseq_speedup.console import progress
from fairseq_speedup.console.refusals import reason
from fairseq_speedup.data.manifest import ManifestError
from fairseq_speedup.lengths import padding_mask_of
from fairseq_speedup.macs import MacCounter
from fairseq_speedup.models.loading import load_finetuned
from fairseq_speedup.models.speedup_ctc import SpeedupCtc
from fairseq_speedup.profiling.clock import now
from fairseq_speedup.profiling.environment import hardware, peak_memory_bytes, versions
from fairseq_speedup.profiling.fvcore_count import check_macs
from fairseq_speedup.profiling.utterance_lengths import read_lengths
from fairseq_speedup.sampling import SAMPLE_RATE_HZ


def run(args) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    batches = batch_lengths(read_lengths(args), args.batch_size, args.sort)
    with progress.step("making the model"):
        model, name = load_model(args)
    device = torch.device("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    model.to(device).eval()
    with progress.step("counting multiply-accumulates"):
        figures = {"model": name, **profile(model, batches, args.count)}
    figures |= measure_time(model, batches, args.time, device)
    figures |= {"hardware": hardware(device), "versions": versions()}
    print(table(figures))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)
            file.write("\n")


def batch_lengths(num_samples: np.ndarray, batch_size: int, sort: bool) -> list[np.ndarray]:
    """Splits lengths into batches, in order or sorted from long to short."""
    if sort:
        num_samples = np.sort(num_samples)[::-1]
    return [num_samples[i : i + batch_size] for i in range(0, len(num_samples), batch_size)]


class Labels:
    """Stands for the task when a model is built without one: only its dictionary is asked for."""

    def __init__(self, num_labels: int):
        self.target_dictionary = Dictionary()
        for index in range(num_labels - len(self.target_dictionary)):
            self.target_dictionary.add_symbol(f"label{index}")


def load_model(args):
    """The model to profile, and a line that names it."""
    options = {}
    if args.config:
        options = read_model_options(args.config)
    options |= parse_options(args.options)
    if args.checkpoint:
        model, cfg, _ = load_finetuned(args.checkpoint, "--checkpoint ", options)
        return model, describe(os.path.basename(args.checkpoint), cfg.model)
    arch = args.arch or ("large" if "large" in os.path.basename(args.config or "") else "base")
    cfg = OmegaConf.structured(SpeedupCtcConfig)
    unknown = sorted(set(options) - set(cfg) - {"_name"})
    if unknown:
        raise ValueError(
            f"unknown model options: {', '.join(unknown)}; reductions: "
            f"{', '.join(REDUCTION_OPTIONS)} (any option of wav2vec_ctc is valid too)"
        )
    for name, value in options.items():
        try:
            cfg[name] = value
        except OmegaConfBaseException as error:
            raise ValueError(f"{name}={value}: {reason(error)}") from None
    model = random_model(architecture_config(arch), args.num_labels, cfg)
    return model, describe(f"{arch}, random weights", cfg)


def random_model(w2v_args, num_labels: int, cfg=None) -> SpeedupCtc:
    """A CTC model without a checkpoint.

    Args:
        w2v_args: config of its pretraining
        cfg: model options; default: no reduction
    """
    cfg = OmegaConf.structured(SpeedupCtcConfig) if cfg is None else cfg
    cfg.w2v_path, cfg.data, cfg.ddp_backend = "", "", "legacy_ddp"
    cfg.normalize = w2v_args.task.normalize
    cfg.w2v_args = w2v_args
    return SpeedupCtc.build_model(cfg, Labels(num_labels))


def read_model_options(path: str) -> dict:
    """The ``model:`` section of a YAML config, with those of the files that its defaults name."""
    try:
        config = OmegaConf.load(path)
        beside = [f"{os.path.dirname(path)}/{name}.yaml" for name in _named(config)]
        sections = [_model_section(each) for each in beside]
        if "model" in config or not sections:
            sections.append(config.model)
        return OmegaConf.to_container(OmegaConf.merge(*sections))
    except (yaml.YAMLError, AttributeError, ValueError, OSError):
        raise ManifestError(
            f"--config {path} is not a YAML config with a 'model:' section, such as those of "
            "config/finetuning"
        ) from None


def _named(config) -> list[str]:
    """The files that the defaults of a config name: ``setting/every``, ``reduction: pool2``."""
    named = []
    for each in config.get("defaults", []):
        named += [each] if isinstance(each, str) else [f"{k}/{v}" for k, v in each.items()]
    return [name for name in named if name != "_self_"]


def _model_section(path: str):
    text = Path(path).read_text(encoding="utf-8")
    config = OmegaConf.create(text)
    return config if text.startswith("# @package model\n") else config.get("model", {})


def parse_options(options: list[str]) -> dict:
    """``["model.downsample=conv", "downsample_factor=2"]`` as a dict of typed values."""
    for option in options:
        if "=" not in option:
            raise ValueError(f"{option!r} is not of the form option=value")
    return dict(OmegaConf.from_dotlist([option.removeprefix("model.") for option in options]))


def describe(name: str, cfg) -> str:
    options = " ".join(f"{option}={value}" for option, value in switched_on(cfg).items())
    return f"{name}: {options or 'no reduction'}"


def profile(model, batches: list[np.ndarray], count: str) -> dict:
    """Parameters and MACs by stage; padding inside a batch is counted."""
    counter = MacCounter(model, count)
    padded = np.concatenate([np.full(len(batch), batch.max()) for batch in batches])
    macs = counter.count(padded).sum().as_dict()
    audio_seconds = sum(int(batch.sum()) for batch in batches) / SAMPLE_RATE_HZ
    return {
        "count": count,
        "merging_by_similarity": not all(stage.known_lengths for stage in counter.stages),
        "num_utterances": len(padded),
        "num_batches": len(batches),
        "audio_seconds": audio_seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "stages": {
            stage: {
                "parameters": num_parameters,
                "macs_per_second": macs[stage] / audio_seconds,
                "macs_per_batch": macs[stage] / len(batches),
            }
            for stage, num_parameters in stage_parameters(model).items()
        },
        "macs_per_second": sum(macs.values()) / audio_seconds,
        "macs_per_batch": sum(macs.values()) / len(batches),
        "macs_check": check_macs([model], int(min(batch.min() for batch in batches))),
    }


def stage_parameters(model) -> dict[str, int]:
    """Parameters of each stage of a CTC model, under the names of :class:`Macs`."""
    encoder = model.w2v_encoder
    w2v = encoder.w2v_model
    stages = {
        "waveform_reduction": [getattr(encoder, "waveform_reduction", None)],
        "front_end": [
            w2v.feature_extractor,
            getattr(encoder, "fbank", None),
            w2v.layer_norm,
            w2v.post_extract_proj,
        ],
        "frame_reduction": [getattr(encoder, "frame_reduction", None)],
        "transformer": [w2v.encoder],
        "head": [encoder.proj, getattr(encoder, "exit_heads", None)],
    }
    return {
        stage: sum(p.numel() for m in modules if m for p in m.parameters())
        for stage, modules in stages.items()
    }


@torch.no_grad()
def measure_time(model, batches: list[np.ndarray], num_timed: int, device) -> dict:
    """Seconds in the model on noise, for batches spread evenly over the lengths."""
    if num_timed < 1:
        return {"timed_batches": 0}
    order = sorted(batches, key=lambda batch: batch.max())
    picked = [order[int(i)] for i in np.linspace(0, len(order) - 1, min(num_timed, len(order)))]
    generator = torch.Generator().manual_seed(0)
    seconds = []
    runs = [picked[0], *picked]  # the first runs twice, once to warm up
    for index, lengths in enumerate(progress.bar(runs, "timing", unit=" batches")):
        size = int(lengths.max())
        source = torch.randn(len(lengths), size, generator=generator).to(device)
        padding_mask = padding_mask_of(torch.tensor(lengths.tolist(), device=device), size)
        source = source.masked_fill(padding_mask, 0)
        start = now(device)
        model(source=source, padding_mask=padding_mask)
        if index > 0:
            seconds.append(now(device) - start)
    timed_audio = sum(int(batch.sum()) for batch in picked) / SAMPLE_RATE_HZ
    return {
        "timed_batches": len(picked),
        "timed_audio_seconds": timed_audio,
        "encoder_seconds": sum(seconds),
        "real_time_factor": sum(seconds) / timed_audio,
        "peak_memory_bytes": peak_memory_bytes(device),
    }


def table(figures: dict) -> str:
    """The figures for a person."""
    check = figures["macs_check"]
    lines = [
        f"{figures['model']}",
        f"{figures['num_utterances']} utterances in {figures['num_batches']} batches, "
        f"{figures['audio_seconds']:.1f} s of audio",
        "",
        f"{'stage':<20}{'parameters':>14}{'GMACs/s audio':>16}{'GMACs/batch':>14}{'share':>8}",
    ]
    total = {
        "parameters": figures["parameters"],
        "macs_per_second": figures["macs_per_second"],
        "macs_per_batch": figures["macs_per_batch"],
    }
    for stage, row in [*figures["stages"].items(), ("total", total)]:
        lines.append(
            f"{stage:<20}{row['parameters']:>14,}{row['macs_per_second'] / 1e9:>16.3f}"
            f"{row['macs_per_batch'] / 1e9:>14.3f}"
            f"{row['macs_per_second'] / figures['macs_per_second']:>8.1%}"
        )
    if figures["merging_by_similarity"]:
        lines.append(
            "merge_threshold: what merges depends on the frames; counted without merging, and the "
            "check with what merged in noise"
        )
    if figures["count"] == "modules":
        lines.append("counted: nn.Module layers only, no attention products or projections")
    lines.append(
        f"check at {check['num_samples']} samples: closed form {check['closed_form']:,}, "
        f"fvcore {check['fvcore']:,}"
    )
    if figures["timed_batches"]:
        lines.append(
            f"encoder time {figures['encoder_seconds']:.3f} s for "
            f"{figures['timed_audio_seconds']:.1f} s of audio in {figures['timed_batches']} "
            f"batches: real-time factor {figures['real_time_factor']:.5f}, "
            f"peak memory {figures['peak_memory_bytes'] / 2**20:.0f} MiB"
        )
    where = figures["hardware"]
    lines.append(f"on {where.get('gpu', where['cpu'])}, {where['threads']} threads")
    return "\n".join(lines)
