"""The dictionary of the data, which must be that of the checkpoint."""

import os

from fairseq.data import Dictionary
from torch import nn

from fairseq_speedup.console.relative_paths import looked_for
from fairseq_speedup.data.dictionary import FORM, difference, read_dictionary
from fairseq_speedup.data.manifest import ManifestError

REMEDY = "use the dict file that the model was fine-tuned with"


def read_target_dictionary(cfg) -> Dictionary:
    """
    Args:
        cfg: a SpeedupFinetuningConfig, whose labels are known
    Raises:
        FileNotFoundError, ManifestError: naming the file
    """
    path = os.path.join(cfg.target_dictionary or cfg.data, f"dict.{cfg.labels}.txt")
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"dictionary {path} does not exist (task.labels={cfg.labels}); {FORM}{looked_for(path)}"
        )
    dictionary = read_dictionary(path)
    if len(dictionary) == dictionary.nspecial:
        raise ManifestError(f"dictionary {path} is empty")
    return dictionary


def check_same_dictionary(ours: Dictionary | None, theirs: Dictionary | None, folder: str) -> None:
    """
    Args:
        ours: of the data in ``folder``, None where it is not known
        theirs: likewise, of a checkpoint
    Raises:
        ManifestError: they differ
    """
    if ours is not None and theirs is not None and ours.symbols != theirs.symbols:
        found = difference(ours.symbols, theirs.symbols)
        raise _not_theirs(folder, len(ours), len(theirs), f": {found}")


def check_size_of_head(head: nn.Module, dictionary: Dictionary, folder: str) -> None:
    """When weights are loaded. Old checkpoints have no dictionary: the size of their head tells
    whether it is that of the data in ``folder``."""

    def check(module, state_dict, prefix, *unused):
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and weight.size(0) != len(dictionary):
            raise _not_theirs(folder, len(dictionary), weight.size(0))

    head.register_load_state_dict_pre_hook(check)


def _not_theirs(folder: str, num_ours: int, num_theirs: int, found: str = "") -> ManifestError:
    return ManifestError(
        f"the dictionary in {folder} has {num_ours} symbols and is not the checkpoint's, which has "
        f"{num_theirs}{found}; {REMEDY}"
    )
