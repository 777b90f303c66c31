"""One run of ``fairseq-generate``: that no utterance is lost, and what it cost."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from fairseq.data import FairseqDataset
from torch import nn

from fairseq_speedup.config import reduction_options
from fairseq_speedup.decoding.generator import CtcGenerator
from fairseq_speedup.decoding.results import scoring
from fairseq_speedup.decoding.results.files import clear_files
from fairseq_speedup.decoding.results.generated import generate_path
from fairseq_speedup.frontend import MaskedGroupNorm
from fairseq_speedup.profiling.compute import summary_line
from fairseq_speedup.profiling.compute_file import clear_report, write_report
from fairseq_speedup.transformer.conformer import ConformerLayer

FAIRSEQ_DEFAULT_MAX_TOKENS = 12000  # what fairseq-generate sets when no batch size is given
DEFAULT_MAX_SAMPLES = 1_600_000  # 100 s at 16 kHz


class LostUtterancesError(RuntimeError):
    """Some utterances were not decoded, or were decoded twice."""


class DecodingRun:
    """Watches the batches of a ``fairseq-generate`` run from outside its loop.

    Args:
        cfg: the config of fairseq-generate
    """

    def __init__(self, cfg: Any):
        self.cfg = cfg
        self.generator: CtcGenerator  # set when it is built
        self.decoding: dict = {}  # how it decodes, for compute.json
        self.max_samples: int | None = None  # of a batch; set when batches are made
        self.num_shards, self.shard_id = shard_of(cfg)
        if cfg.common_eval.results_path is not None:
            clear_report(cfg.common_eval.results_path, cfg.dataset.gen_subset)
            clear_files(cfg.common_eval.results_path, cfg.dataset.gen_subset)
            self._claim(cfg.common_eval.results_path)

    def _claim(self, folder: str) -> None:
        """Marks a folder as this shard's; ValueError where it is another's."""
        path = os.path.join(folder, f"shard-{self.cfg.dataset.gen_subset}")
        if self.num_shards == 1:
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
            return
        name = f"{self.shard_id} of {self.num_shards}"
        with open(path, "a+", encoding="utf-8") as file:
            file.seek(0)
            owner = file.read().strip() or name
            if owner != name:
                raise ValueError(
                    f"--results-path {folder} is that of shard {owner}, whose results fairseq has "
                    f"just emptied: give shard {name} another folder and decode that one again (if "
                    f"it is not needed, remove {path})"
                )
            file.truncate(0)
            file.write(f"{name}\n")

    def admit_longest(
        self,
        dataset: FairseqDataset,
        max_samples: int | None,
        max_utterances: int | None,
        in_windows: bool,
    ) -> int | None:
        """The batch size in samples, checked: it must admit the longest utterance, unless that is
        cut into windows."""
        if max_samples == FAIRSEQ_DEFAULT_MAX_TOKENS and max_utterances is None:
            max_samples = DEFAULT_MAX_SAMPLES
            print(
                f"no batch size is given: batches of up to {max_samples} samples; set "
                "--batch-size (utterances) or --max-tokens (samples)"
            )
        if max_samples is not None:
            longest = int(max(dataset.num_tokens(i) for i in range(len(dataset))))
            if longest > max_samples and in_windows:
                max_samples = longest
            elif longest > max_samples:
                raise ValueError(
                    f"--max-tokens {max_samples} is smaller than the longest utterance, which has "
                    f"{longest} samples: give at least that many, --batch-size instead, or "
                    "--window-seconds 30 to cut long recordings into windows"
                )
        self.max_samples = max_samples
        return max_samples

    def watch(self, iterator: Any, dataset: FairseqDataset) -> None:
        """Reports when the epoch iterator's one epoch ends.

        Args:
            iterator: fairseq's EpochBatchIterator
            dataset: what it iterates over
        """
        num_batches = len(iterator.frozen_batches)
        if self.num_shards > num_batches:
            raise ValueError(
                f"--num-shards {self.num_shards}: there are {num_batches} batches, which cannot be "
                "shared out so; use fewer shards or smaller batches"
            )
        next_epoch_itr = iterator.next_epoch_itr

        def watched(*args: Any, **kwargs: Any) -> "_Watched":
            epoch = next_epoch_itr(*args, **kwargs)
            return _Watched(epoch, self._begin, lambda: self._end(dataset))

        iterator.next_epoch_itr = watched

    def _begin(self, upcoming: dict | None) -> None:
        """A batch is handed out; ``upcoming`` is the one after it, None at the end."""
        self.generator.upcoming = upcoming

    def _end(self, dataset: FairseqDataset) -> None:
        self.generator.decoder.close()
        meter, files = self.generator.meter, self.generator.files
        for file in files:
            file.close()
        report = meter.report()
        self._check_count(report["num_utterances"], len(dataset))
        model = meter.models[0]
        report = {
            "gen_subset": self.cfg.dataset.gen_subset,
            "checkpoint": self.cfg.common_eval.path,
            "model": type(model).__name__,
            "options": reduction_options(model.cfg),
            "decoding": self.decoding,
            scoring.FIELD: scoring.of_generate(self.cfg),
            **self.generator.decoder.report(),
            "num_shards": self.num_shards,
            "shard_id": self.shard_id,
            "utterances_in_subset": len(dataset),
            "batch_size": self.cfg.dataset.batch_size,
            "max_tokens": self.max_samples,
            **report,
        }
        # fairseq configures logging when it is imported, so that fairseq-generate's own
        # configuration comes too late and its log is lost: print
        print(summary_line(report), flush=True)
        if padding_gets_in(model) and self.cfg.dataset.batch_size != 1:
            print(
                "note: this model normalises or convolves over padding, as fairseq's base models "
                "and Conformers do: transcripts can differ with the batch; --batch-size 1 avoids it"
            )
        folder = self.cfg.common_eval.results_path
        if folder is not None:
            path = write_report(report, folder)
            fairseqs = generate_path(folder, self.cfg.dataset.gen_subset)
            written = [path, *(file.path for file in files), fairseqs]
            print(f"wrote {', '.join(written[:-1])} and {written[-1]}", flush=True)

    def _check_count(self, decoded: int, expected: int) -> None:
        if self.num_shards > 1:
            shard = f"shard {self.shard_id} of {self.num_shards}"
            print(f"{shard}: {decoded} of {expected} utterances were decoded")
        elif decoded == expected:
            print(f"every utterance was decoded: {decoded} of {expected}")
        else:
            raise LostUtterancesError(
                f"{self.cfg.dataset.gen_subset}: {decoded} utterances were decoded, "
                f"the manifest has {expected}"
            )


def padding_gets_in(model: nn.Module) -> bool:
    """Whether an utterance's numbers depend on its padding, as in fairseq: by statistics of a group
    norm over the padded length, or by a Conformer's convolutions."""
    w2v_model = getattr(getattr(model, "w2v_encoder", None), "w2v_model", None)
    modules = list(w2v_model.modules()) if w2v_model is not None else []
    return any(
        not (isinstance(module, MaskedGroupNorm) or getattr(module, "masked", False))
        for module in modules
        if isinstance(module, nn.GroupNorm | ConformerLayer)
    )


def shard_of(cfg: Any) -> tuple[int, int]:
    """How many shards there are and which one is decoded, from the config of fairseq-generate;
    fairseq itself looks at its options for distributed training alone."""
    num_shards, shard_id = cfg.dataset.num_shards, cfg.dataset.shard_id
    if num_shards == 1 and cfg.distributed_training.distributed_world_size > 1:
        distributed = cfg.distributed_training
        return distributed.distributed_world_size, distributed.distributed_rank
    if not 0 <= shard_id < num_shards:
        raise ValueError(
            f"--shard-id {shard_id} is out of range: with --num-shards {num_shards} it must be 0 "
            f"to {max(num_shards, 1) - 1}"
        )
    return num_shards, shard_id


class _Watched:
    """An iterator that looks one item ahead: calls ``begin`` with the next item before it hands one
    out, and ``at_end`` after the last."""

    def __init__(
        self,
        iterator: Any,
        begin: Callable[[dict | None], None],
        at_end: Callable[[], None],
    ):
        self.iterator = iterator
        self.begin = begin
        self.at_end = at_end
        self.n = getattr(iterator, "n", 0)

    def __len__(self) -> int:
        return len(self.iterator)

    def __iter__(self) -> Iterator[dict]:
        items = iter(self.iterator)
        item = next(items, None)
        while item is not None:
            upcoming = next(items, None)
            self.begin(upcoming)
            yield item
            item = upcoming
        self.at_end()
