"""What fine-tuning would add to a model: commands, for the data that there is."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch

from fairseq_speedup.config import switched_on
from fairseq_speedup.data.manifest import read_manifest
from fairseq_speedup.models.loading import load_finetuned
from fairseq_speedup.optimize.candidates import Subject
from fairseq_speedup.optimize.setup import Setup, plugin_folder
from fairseq_speedup.optimize.suggestions import Suggestion, suggestions

CONFIGS = Path(__file__).parents[2] / "config/finetuning"

UPDATES, SECONDS = 5000, 200  # of config/finetuning/faster.yaml, and of audio in each
PASSES = 20  # through the training audio, as in RECORDED; fewer where there is so much of it


@dataclass(frozen=True)
class Recipe:
    """What the commands need to know.

    path: of the fine-tuned checkpoint, which is the start and the teacher
    data: folder with manifests and labels
    valid_subset: split for validation
    config_dir: of ``config/finetuning``
    user_dir: this package, or the user's own
    normalize: it takes waveforms of zero mean and unit variance, as large ones do
    hours: of labelled audio in ``train``, 0 where it is not known
    has_gpu: a GPU is there
    """

    path: str
    data: str
    valid_subset: str
    config_dir: str
    user_dir: str
    normalize: bool
    hours: float
    has_gpu: bool

    @classmethod
    def of(cls, setup: Setup, cfg, user_dir: str | None) -> "Recipe":
        """
        Args:
            setup: with a data folder
            cfg: of the checkpoint
            user_dir: the user's own, if it is another than this package
        """
        assert setup.data is not None
        train = os.path.join(setup.data, "train.tsv")
        hours = 0.0
        if os.path.isfile(train):
            hours = sum(read_manifest(train).num_samples) / cfg.task.sample_rate / 3600
        return cls(
            path=setup.path,
            data=setup.data,
            valid_subset=setup.subset,
            config_dir=str(CONFIGS) if CONFIGS.is_dir() else "config/finetuning",
            user_dir=plugin_folder(user_dir),
            normalize=bool(cfg.task.normalize),
            hours=hours,
            has_gpu=torch.cuda.is_available(),
        )

    def command(self, suggestion: Suggestion) -> str:
        """As it is typed."""
        updates = min(round(PASSES * self.hours * 3600 / SECONDS) or UPDATES, UPDATES)
        if suggestion.matches:
            updates *= 2
        on_cpu = ["common.cpu=true", "common.fp16=false"]
        return shlex.join(
            [
                *("fairseq-hydra-train", "--config-dir", self.config_dir),
                *("--config-name", "faster", f"common.user_dir={self.user_dir}"),
                f"task.data={os.path.abspath(self.data)}",
                *(["task.normalize=true"] if self.normalize else []),
                f"dataset.valid_subset={self.valid_subset}",
                f"model.w2v_path={os.path.abspath(self.path)}",
                *("reduction=none", *suggestion.options),
                *([f"model.frontend_match_updates={updates // 4}"] if suggestion.matches else []),
                *([f"optimization.max_update={updates}"] if updates != UPDATES else []),
                *([] if self.has_gpu else on_cpu),
            ]
        )


def trainings_of(
    setup: Setup, subject: Subject, user_dir: str | None
) -> list[tuple[str, Suggestion]]:
    """Commands, and what each is of; see :meth:`Recipe.of`."""
    model, cfg, _ = load_finetuned(setup.path, "", setup.options())
    recipe = Recipe.of(setup, cfg, user_dir)
    offered = suggestions(subject, switched_on(model.cfg), recipe.hours)
    return [(recipe.command(each), each) for each in offered]
