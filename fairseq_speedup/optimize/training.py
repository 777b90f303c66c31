"""What fine-tuning would add to a model: commands, for the data that there is."""

import os
import shlex
from dataclasses import dataclass

from fairseq_speedup.optimize.suggestions import Suggestion

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
