"""What is checked before training: that it starts from what it is told to, and that the criterion
goes with the model and the labels."""

import logging
import os
from collections.abc import Mapping
from dataclasses import fields

from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.decoding.language.boundaries import LabelWords, NoWordsError

logger = logging.getLogger(__name__)

DISTILLATION_CRITERIONS = ["ctc_distillation", "ctc_in_place_distillation"]
EXIT_CRITERIONS = ["ctc_exits", *DISTILLATION_CRITERIONS]
PRUNING_CRITERIONS = ["ctc_pruning", *EXIT_CRITERIONS]
STARTS = ("checkpoint.finetune_from_model", "checkpoint.restore_file")


def check_start(paths: Mapping[str, str | None]) -> None:
    """fairseq takes a folder for a checkpoint that is not there yet, and says nothing.

    Args:
        paths: of ``STARTS``, by option
    Raises:
        CheckpointError: naming the option
    """
    for name, path in paths.items():
        if path and os.path.isdir(path):
            raise CheckpointError(
                f"{name}={path} is a folder, which fairseq would pass over; it must "
                "be a file. Of a folder in Hugging Face's form, python -m fairseq_speedup "
                f"convert {path} MODEL.pt makes one, and model.w2v_path takes it as it is, "
                "with its head where the labels agree"
            )


def check_criterion_options(cfg) -> None:
    """Raises ValueError for an option that another criterion has: fairseq would only tell that it
    is not known."""
    options = {
        name: {field.name for field in fields(each)}
        for name, each in CRITERION_DATACLASS_REGISTRY.items()
    }
    for option in sorted(set(cfg) - options.get(cfg._name, set(cfg))):
        owners = [name for name, known in options.items() if option in known]
        remedy = f", which {', '.join(owners)} has" if owners else ""
        raise ValueError(
            f"criterion.{option} is no option of criterion._name={cfg._name}{remedy}: leave it out"
        )


def check_trains_all(name: str, has_exits: bool, has_gates: bool, exit_heads_only: bool) -> None:
    """Raises ValueError where a criterion leaves what a model has untrained, or trains what it
    freezes."""
    if has_exits and name not in EXIT_CRITERIONS:
        raise ValueError(
            f"criterion={name} does not train the heads of model.exit_layers: "
            f"set criterion._name={' or '.join(EXIT_CRITERIONS)}"
        )
    if has_gates and name not in PRUNING_CRITERIONS:
        raise ValueError(
            f"criterion={name} does not train the gates of model.prune_target: "
            f"set criterion._name={' or '.join(PRUNING_CRITERIONS)}"
        )
    if exit_heads_only and name in DISTILLATION_CRITERIONS:
        raise ValueError(
            f"criterion={name} teaches the last head, which model.exit_heads_only=true "
            "freezes: set criterion._name=ctc_exits, or model.exit_heads_only=false"
        )


def check_wer_of_validation(labels: LabelWords, post_process: str | None) -> None:
    """That the criterion's wer counts words.

    Args:
        labels: of the split
        post_process: the criterion's
    Raises:
        NoWordsError: it does not, and checkpoints would be chosen by it
    """
    fault = labels.fault(post_process, f"the wer of criterion.post_process={post_process}")
    if not fault:
        note = labels.note(post_process)
        if note:
            logger.warning("%s; uer counts labels", note)
        return
    remedy = (
        "set criterion.post_process=none, by which wer counts labels (phonemes, characters), "
        "as uer does"
    )
    if best_checkpoint_metric() != "wer":
        logger.warning("%s; look at uer, or %s", fault, remedy)
        return
    raise NoWordsError(
        f"{fault}, and checkpoint.best_checkpoint_metric=wer would choose by that: {remedy}, "
        "or checkpoint.best_checkpoint_metric=uer"
    )


def best_checkpoint_metric() -> str | None:
    """What fairseq-hydra-train chooses checkpoints by, which it does not tell its task. None in
    another command, and in the processes of several GPUs."""
    hydra = HydraConfig.instance().cfg
    if hydra is None:
        return None
    return OmegaConf.select(hydra.hydra._get_parent(), "checkpoint.best_checkpoint_metric")
