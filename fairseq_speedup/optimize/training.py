"""What fine-tuning would add: commands for this model and data, those first that save most for what
they are expected to lose."""

import os
import shlex
from dataclasses import dataclass

from fairseq_speedup.optimize.candidates import Subject

MOST = 4


@dataclass(frozen=True)
class Suggestion:
    """
    options: of fairseq-hydra-train
    share: of the MACs that are left
    expectation: words about what it loses, with their source
    then: what comes after the training, in words; empty where nothing does
    matches: a new front-end first, in a quarter of twice the updates
    """

    options: tuple[str, ...]
    share: float
    expectation: str
    then: str = ""
    matches: bool = False


STUDY = "arXiv 2303.06740, WavLM Large, 100 h of labels"
HERE = "examples/study/RESULTS.md, a small HuBERT, one hour of labels"
RECORDED = "examples/recorded/RESULTS.md, a small HuBERT, 0.6 h of labels, three seeds"
TWO_SEEDS = "examples/recorded/RESULTS.md, a small HuBERT, 0.6 h of labels, two seeds"
ONE_SEED = "examples/recorded/RESULTS.md, a small HuBERT, 0.6 h of labels, one seed"

OF_FILTERBANKS = (
    "in noise more is lost, less where training hears it, by task.noise_snr=[0,25] "
    "(docs/fine-tune.md#noise); with more audio of synthetic voices filterbanks gained nothing "
    f"({HERE})"
)


def suggestions(subject: Subject, reduced: dict, hours: float) -> list[Suggestion]:
    """
    Args:
        reduced: options of the model that are on already; those of one stage are not offered again
        hours: of labelled audio that there is to train with, 0 where it is not known
    """
    num_layers = len(subject.kept_layers)
    kept = max(1, round(2 * num_layers / 3))
    found = []
    if subject.can_prune:
        found.append(
            Suggestion(
                ("model.prune_target=0.5",),
                0.5,
                f"WER 15.5 to 15.3, -2.4 to +2.1 points, with a teacher as here, 17.2 without "
                f"({RECORDED})",
                "python -m fairseq_speedup prune checkpoints/checkpoint_last.pt --output "
                "pruned.pt, in Hydra's folder of that training; then train on, with "
                "model.w2v_path=$PWD/pruned.pt, without model.prune_target and with the teacher",
            )
        )
    can_lose_layers = "keep_layers" not in reduced and num_layers > 2 and not subject.exits
    has_all_frames = not {"downsample", "frontend", "frame_pool"} & reduced.keys()
    if has_all_frames:
        found.append(
            Suggestion(
                ("model.frontend=fbank", "model.frame_pool=2"),
                0.54,
                f"WER 14.7 to 11.8, -5.7 to -0.0 points, with a teacher as here, 16.6 in half the "
                f"updates ({RECORDED}); {OF_FILTERBANKS}",
                matches=True,
            )
        )
    if has_all_frames and can_lose_layers:
        found.append(
            Suggestion(
                ("model.frontend=fbank", "model.frame_pool=2", f"model.keep_layers={kept}"),
                0.41,
                f"WER 14.7 to 12.2, -5.4 to +0.1 points, with a teacher as here ({TWO_SEEDS}); "
                f"{OF_FILTERBANKS}",
                matches=True,
            )
        )
    if "downsample" not in reduced and "frontend" not in reduced:
        found.append(
            Suggestion(
                ("model.downsample=conv", "model.downsample_factor=2"),
                0.5,
                f"WER 4.09 to 4.61 ({STUDY}); 15.5 to 22.9 ({RECORDED}): it needs many labels and "
                "updates; with few, model.frontend_match_updates has the CNN learn the shorter "
                "waveform first, from audio alone (docs/fine-tune.md)",
            )
        )
    if "frame_pool" not in reduced:
        found.append(
            Suggestion(
                ("model.frame_pool=2",),
                0.59,
                f"WER 15.5 to 14.8, -2.7 to +1.4 points, with a teacher as here, 16.7 without "
                f"({RECORDED}); 39.3 to 48.2 after 500 short updates ({HERE})",
            )
        )
    if "frame_pool" not in reduced and not has_all_frames and can_lose_layers:
        found.append(
            Suggestion(
                ("model.frame_pool=2", f"model.keep_layers={kept}"),
                0.47,
                f"WER 16.7 to 16.3, on valid 17.0 to 19.8, with a teacher as here ({ONE_SEED})",
            )
        )
    if can_lose_layers:
        expected = f"WER 15.5 to 17.4, without a teacher ({RECORDED}); 39.3 to 41.5 ({HERE})"
        found.append(Suggestion((f"model.keep_layers={kept}",), 0.74, expected))
    few = 0 < hours < 10
    # with few labels a shorter waveform comes last
    by_need = ["frame_pool", "frontend", "prune_target", "keep_layers", "downsample"]
    if few or not hours:
        found.sort(key=lambda each: by_need.index(each.options[0].split(".")[1].split("=")[0]))
    return found[:MOST]


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
