"""One process that loads candidates, one after another, and runs them: its memory and threads are
its own, and if it is killed, the others go on."""

import contextlib
import copy
import ctypes
import gc
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.dataclass.configs import GenerationConfig

from fairseq_speedup.console import library_warnings
from fairseq_speedup.console.refusals import reason
from fairseq_speedup.data.utterances import Labelled, Recordings
from fairseq_speedup.decoding.generator import Encoded, batch_of, encode
from fairseq_speedup.decoding.run import padding_gets_in
from fairseq_speedup.importance.layers import influence_of_layers
from fairseq_speedup.inference.form import check_device
from fairseq_speedup.inference.linear import LINEARS, multiplies_bf16
from fairseq_speedup.models.loading import load_finetuned
from fairseq_speedup.models.speedup_encoder import SpeedupEncoder
from fairseq_speedup.optimize.candidates import Candidate, Subject
from fairseq_speedup.optimize.made import checkpoint_of, name_parts, path_of
from fairseq_speedup.optimize.setup import Setup
from fairseq_speedup.profiling.clock import now
from fairseq_speedup.profiling.compute import ComputeMeter, macs_report
from fairseq_speedup.pruning.gates import can_be_pruned
from fairseq_speedup.pruning.widths import WHOLE, widths_of
from fairseq_speedup.tasks.dictionaries import check_same_dictionary
from fairseq_speedup.tasks.speedup_finetuning import SpeedupFinetuningTask
from fairseq_speedup.transformer.reused_attention import shares_map
from fairseq_speedup.transformer.stages import layers_named_by
from fairseq_speedup.without_training.factorize import can_have_low_ranks

BATCH_SECONDS = 100  # of audio, where nothing is timed
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass
class Transcribed:
    """What a candidate gave for utterances.

    texts: of each
    macs_per_second: of audio, None where they are not known
    layers: mean number of layers run, where utterances leave
    """

    texts: list[str]
    macs_per_second: float | None
    layers: float | None


class Worker:
    """
    Args:
        setup: what every candidate has in common
        tells: whether it is said what audio is left out
    """

    def __init__(self, setup: Setup, tells: bool = True):
        self.setup, self.tells = setup, tells
        self.model: Any = None
        self.task: Any = None
        self.generator: Any = None
        self.use_cuda = setup.device.type == "cuda"
        self.batch_size = 1
        self.kept: dict[tuple, Encoded] = {}  # of the model that is loaded, by batch
        self.kept_of: tuple | None = None  # what model that is
        self.utterances: Labelled | Recordings
        self._open()

    # -- the model and its data ------------------------------------------------------------------

    def _open(self) -> None:
        """The data, read as the model takes it."""
        _, cfg, self.task = self._load_checkpoint(Candidate())
        if self.setup.data is not None:
            in_data = self.task.load_target_dictionary()
            check_same_dictionary(in_data, self.task.target_dictionary, self.task.cfg.data)
            self.task.load_dataset(self.setup.subset, task_cfg=cfg.task)
            self.utterances = Labelled(self.task, self.setup.subset, self.setup.post_process)
        else:
            needed = self.task.lengths.needed_samples()
            self.utterances = Recordings(self.task, self.setup.audio, needed, self.tells)
        self.dictionary = self.task.target_dictionary

    def _load_checkpoint(self, candidate: Candidate):
        """Model, its config, and a task of ours."""
        path = checkpoint_of(self.setup, candidate)
        model, cfg, task = load_finetuned(path, "", self.setup.options_of(candidate))
        return model, cfg, SpeedupFinetuningTask.around(model, cfg, task)

    def data_found(self):
        """Samples and reference texts (None without labels) of all utterances."""
        return list(self.utterances.num_samples), self.utterances.references()

    def subject(self) -> Subject:
        """What can be tried."""
        model, _, _ = self._load_checkpoint(Candidate())
        gets_in = padding_gets_in(model)
        if not isinstance(model.w2v_encoder, SpeedupEncoder):
            model, _, _ = self._load_checkpoint(Candidate({"padding": "stock"}))
        encoder = model.w2v_encoder
        return Subject(
            kept_layers=list(encoder.kept_layers),
            exits=encoder.exit_layers,
            can_merge=_can_merge(model.cfg, encoder),
            can_prune=can_be_pruned(model),
            many=_many(encoder, model.cfg.w2v_args),
            padding_gets_in=gets_in,
            forms=_forms(self.setup.device),
            engines=[] if self.use_cuda else _engines(),
            decoder=self.setup.decoding.get("ctc_decoder", "greedy"),
            beam=self.setup.decoding.get("beam", 1),
            can_lower_ranks=can_have_low_ranks(model),
            staying=sorted({*_map_sources(encoder), *layers_named_by(encoder.stages)}),
        )

    def influence(self, indices: list[int]) -> dict[int, float]:
        """How much each layer changes its input, of these utterances."""
        model, _, _ = self._load_checkpoint(Candidate())
        waveforms = (self.utterances.waveform(index) for index in indices)
        return influence_of_layers(model.eval(), waveforms)

    def make(self, candidate: Candidate) -> bool:
        """Makes a candidate's checkpoint; whether it was not there."""
        self.model = self.generator = None
        torch.set_num_threads(candidate.threads)
        is_there = os.path.exists(path_of(self.setup.folder, candidate))
        checkpoint_of(self.setup, candidate)
        return not is_there

    def load(self, candidate: Candidate) -> None:
        """Makes a candidate ready; peak memory is counted from here on."""
        self.model = self.generator = None
        torch.set_num_threads(candidate.threads)
        path = None
        if candidate.engine != "torch":
            path = exported_path(self.setup.folder, candidate)
            if not os.path.exists(path):
                export(self.setup, candidate)
        _forget_peak()
        decoding = {**self.setup.decoding, **candidate.decoding}
        generation = GenerationConfig()
        for name in ("beam", "nbest", "lm_weight"):
            if name in decoding:
                setattr(generation, name, decoding.pop(name))
        if path is None:
            self.model, _, task = self._load_checkpoint(candidate)
            if self.use_cuda:
                self.model.cuda()
            self.model.eval()
        else:
            from fairseq_speedup.export.engines import open_exported
            from fairseq_speedup.models.exported_ctc import ExportedCtc

            task = copy.copy(self.task)  # of the data, and of every engine's candidate
            task.cfg = copy.deepcopy(self.task.cfg)
            self.model = ExportedCtc(open_exported(path, candidate.threads))
        task.cfg.inference = candidate.form
        for name, value in decoding.items():
            setattr(task.cfg, name, value)
        self.generator = task.build_generator([self.model], generation)
        self.batch_size = candidate.batch_size
        model = (candidate.macs_key, candidate.form, candidate.engine, candidate.int8_budget)
        if self.kept_of != model:
            self.kept, self.kept_of = {}, model

    # -- runs ------------------------------------------------------------------------------------

    def transcribe(self, indices: list[int], alone: bool) -> Transcribed:
        """Texts of utterances, in batches that are quick.

        Args:
            alone: one utterance at a time
        """
        generator, parts = self.generator, {}
        meter = ComputeMeter([self.model], self.task.sample_rate)
        num_samples = self.utterances.num_samples
        most = BATCH_SECONDS * self.task.sample_rate
        for batch in batches_of(indices, num_samples, 1 if alone else len(indices), most):
            encoded = self._encoded(batch)
            search = generator.decoder.start(encoded.log_probs, encoded.lengths)
            search.wait()
            for index, nbest in zip(batch, search.hypotheses(), strict=True):
                parts[index] = self._text(nbest[0]["tokens"])
            meter.count(encoded.num_samples, encoded.layer_frames, encoded.pieces)
        seconds = sum(meter.num_samples) / self.task.sample_rate
        macs = layers = None
        if isinstance(self.model, torch.nn.Module) and hasattr(self.model, "w2v_encoder"):
            found = macs_report(
                [self.model], np.array(meter.pieces), seconds, meter.layer_frames, can_trace=False
            )
            macs = found["macs_per_second"]
        if meter.layer_frames:
            layers = float((np.array(meter.layer_frames) > 0).sum(axis=1).mean())
        return Transcribed([parts[index] for index in indices], macs, layers)

    def seconds(self, indices: list[int]) -> float:
        """That utterances take, longest first, in batches of the candidate's size."""
        num_samples = self.utterances.num_samples
        batches = batches_of(indices, num_samples, self.batch_size)
        samples = [self._sample(batch) for batch in batches]  # reading is not timed
        device = self.setup.device
        start = now(device)
        for sample in samples:
            self.generator.generate([self.model], sample)
        return now(device) - start

    @torch.no_grad()
    def _encoded(self, batch: list[int]) -> Encoded:
        """What the model gives; kept for other options of a beam search over the same."""
        if tuple(batch) not in self.kept:
            sample = self._sample(batch)
            encoded = encode([self.model], sample["net_input"], self.generator.windows)
            if self.setup.decoding.get("ctc_decoder") != "beam":
                return encoded
            self.kept[tuple(batch)] = replace(encoded, log_probs=encoded.log_probs.cpu())
        return self.kept[tuple(batch)]

    def _sample(self, batch: list[int]) -> dict:
        net_input = batch_of([self.utterances.waveform(index) for index in batch])
        if self.use_cuda:
            net_input = {k: v if v is None else v.cuda() for k, v in net_input.items()}
        return {"id": torch.tensor(batch), "net_input": net_input}

    def _text(self, tokens) -> str:
        strip = self.generator.symbols_to_strip_from_output
        return self.dictionary.string(
            tokens, self.setup.post_process, extra_symbols_to_ignore=strip
        )

    def peak_memory(self) -> int | None:
        """Most bytes since the candidate was loaded, None where the system does not tell."""
        if self.use_cuda:
            return torch.cuda.max_memory_allocated()
        with contextlib.suppress(OSError):
            for line in STATUS.read_text().splitlines():
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024
        return None


def export(setup: Setup, candidate: Candidate) -> None:
    """Writes the file of an engine's candidate."""
    from fairseq_speedup.export.command import load_whole, metadata_of
    from fairseq_speedup.export.int8_audio import DEFAULT_MINUTES, Int8Audio
    from fairseq_speedup.export.onnx_file import export_onnx
    from fairseq_speedup.export.openvino_file import export_openvino
    from fairseq_speedup.export.openvino_int8 import Int8

    start = checkpoint_of(setup, candidate)
    model, cfg, task = load_whole(start, setup.data, setup.options_of(candidate))
    path = exported_path(setup.folder, candidate)
    engine, *precision = candidate.engine.split()
    metadata = metadata_of(model, task, setup.path, engine)
    if engine == "onnx":
        export_onnx(model, path, metadata, int8=bool(precision))
        return
    int8 = None
    if precision:
        given = (setup.data, setup.subset, setup.audio, DEFAULT_MINUTES)
        int8 = Int8(Int8Audio.of(model, cfg, task, *given), candidate.int8_budget)
    export_openvino(model, path, metadata, int8)


def exported_path(folder: str, candidate: Candidate) -> str:
    """Where the file of an engine's candidate is kept."""
    options = name_parts(candidate, candidate.overrides)
    if candidate.int8_budget is not None:
        options.append(f"within-{candidate.int8_budget:g}")
    name = "_".join([candidate.engine.replace(" ", "-"), *options])
    return os.path.join(folder, name + exported_ending(candidate))


def exported_ending(candidate: Candidate) -> str:
    return {"onnx": ".onnx", "openvino": ".xml"}[candidate.engine.split()[0]]


def batches_of(indices, num_samples, most_utterances: int, most_samples: float = float("inf")):
    """Batches of at most so many utterances and samples, padding counted; longest first."""
    batches: list[list[int]] = []
    batch: list[int] = []
    for index in sorted(indices, key=lambda each: -num_samples[each]):
        longest = num_samples[batch[0]] if batch else num_samples[index]
        full = len(batch) == most_utterances or (len(batch) + 1) * longest > most_samples
        if batch and full:
            batches.append(batch)
            batch = []
        batch.append(index)
    return [*batches, batch] if batch else batches


def _map_sources(encoder: SpeedupEncoder) -> list[int]:
    """Indices of the layers whose attention maps others reuse."""
    layers = zip(encoder.kept_layers, encoder.w2v_model.encoder.layers, strict=True)
    return [index for index, layer in layers if shares_map(layer)]


def _can_merge(cfg, encoder: SpeedupEncoder) -> bool:
    return cfg.merge_ratio == 0 and len(encoder.kept_layers) > 1 and not _map_sources(encoder)


def _many(encoder: SpeedupEncoder, pretraining) -> dict:
    """Options of a model of many speeds, by name the values and the one that is chosen.

    Args:
        pretraining: the config of the encoder's
    """
    speeds = encoder.speeds
    found = {}
    if len(speeds.factors) > 1:
        found["downsample_factor"] = (list(speeds.factors), speeds.default.factor)
    if len(speeds.frame_pools) > 1:
        found["frame_pool"] = (list(speeds.frame_pools), speeds.default.frame_pool)
    if len(speeds.depths) > 1:
        found["keep_layers"] = (list(speeds.depths), speeds.default.depth)
    widths = widths_of(pretraining)
    if widths:
        found["width"] = ([WHOLE, *widths], WHOLE)
    return found


def _forms(device: torch.device) -> list[str]:
    """Forms that this machine runs, and not slower than fp32."""
    found = []
    for form in LINEARS:
        with contextlib.suppress(ValueError):
            check_device(form, device)
            if form != "bf16" or device.type != "cpu" or multiplies_bf16():
                found.append(form)
    return found


def _engines() -> list[str]:
    """Engines that are installed, by what writes their files."""
    from fairseq_speedup.export.exported import MissingExtraError
    from fairseq_speedup.export.openvino_file import check_openvino
    from fairseq_speedup.export.session import check_installed

    checks: list[tuple[list[str], Callable[[], None]]] = [
        (["onnx", "onnx int8"], check_installed),
        (["openvino"], lambda: check_openvino(int8=False)),
        (["openvino int8"], lambda: check_openvino(int8=True)),
    ]
    found = []
    for names, check in checks:
        with contextlib.suppress(MissingExtraError):
            check()
            found += names
    return found


def _forget_peak() -> None:
    """The system's count of peak memory begins anew, where it lets itself be told so."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        CLEAR_REFS.write_text("5")


def serve(connection, setup: Setup, user_dir: str | None, tells: bool) -> None:
    """Answers calls of a Worker's methods until the connection ends.

    Args:
        connection: gives ``(method, arguments)``, is given ``(True, result)`` or ``(False, words)``
        user_dir: package with the user's own reductions
        tells: whether the worker says what audio it leaves out
    """
    sys.stdout = sys.stderr  # what is printed here is no result
    import argparse

    from fairseq.utils import import_user_module

    from fairseq_speedup import plugin  # noqa: F401

    library_warnings.leave_out()
    import_user_module(argparse.Namespace(user_dir=user_dir))
    worker = None
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            method, arguments = connection.recv()
            try:
                if worker is None:
                    worker = Worker(setup, tells)
                connection.send((True, getattr(worker, method)(*arguments)))
            except (ValueError, OSError) as error:
                connection.send((False, reason(error, whole=True)))
            except Exception as error:
                traceback.print_exc()
                connection.send((False, f"{type(error).__name__}: {error}"))
