"""Layer removal: keep some of the transformer's layers."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fairseq.dataclass import FairseqDataclass
from torch import nn


@dataclass
class LayerRemovalConfig(FairseqDataclass):
    keep_layers: str = field(
        default="all",
        metadata={
            "help": "transformer layers to keep: all, a number N for the first N, or a list of "
            "indices from 0, such as '0,2,4,6'"
        },
    )


def parse_keep_layers(keep_layers: str, num_layers: int) -> list[int]:
    """Indices of the layers that ``keep_layers`` names, of a model with ``num_layers``.

    Raises:
        ValueError: not of the form above, out of range, repeated, out of order or none
    """
    if keep_layers == "all":
        return list(range(num_layers))
    numbers = parse_indices("keep_layers", keep_layers, "'all', a number of layers")
    if "," not in keep_layers:
        if not 1 <= numbers[0] <= num_layers:
            raise ValueError(
                f"keep_layers={keep_layers} is out of range: it must be 1 to {num_layers}, "
                "the layers that the model has"
            )
        return list(range(numbers[0]))
    if numbers[-1] >= num_layers:
        raise ValueError(
            f"keep_layers={keep_layers} is out of range: the model has layers 0 to {num_layers - 1}"
        )
    return numbers


def parse_indices(option: str, value: str, other_values: str) -> list[int]:
    """``"0,2,4"`` as numbers; a ValueError where it is no list, repeats or is out of order.

    Args:
        option: name of the option, for messages
        other_values: what else the option may be, for messages
    """
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*,?\s*", value):
        raise ValueError(
            f"{option}={value} is neither {other_values} nor a list of indices such as '0,2,4,6'"
        )
    numbers = [int(number) for number in value.split(",") if number.strip()]
    if sorted(set(numbers)) != numbers:
        raise ValueError(f"{option}={value} repeats a layer or is not in rising order")
    return numbers


def numbers(place: Mapping[int, int], indices: list[int]) -> str:
    """``indices`` as an option names them, by their places."""
    return ",".join(str(place[index]) for index in sorted(indices))


class KeptLayers(nn.ModuleList):
    """Some layers of a model under the names that they had in it, so that a checkpoint tells
    which they are and can be read with fewer of them.

    Args:
        layers: all layers of the model
        kept: indices of those to keep
    """

    def __init__(self, layers: Sequence[nn.Module], kept: list[int]):
        super().__init__()
        self.depth = len(kept)  # a loop over the layers ends after so many
        for index in kept:
            self.add_module(str(index), layers[index])

    def __iter__(self):
        return itertools.islice(super().__iter__(), self.depth)

    def __getitem__(self, position):
        return list(self._modules.values())[position]


def drop_removed_layers(state_dict: dict, prefix: str, kept: list[int]) -> None:
    """Deletes, in place, the weights of layers that are not kept.

    Args:
        prefix: of the layers' names, such as ``w2v_encoder.w2v_model.encoder.layers.``
    Raises:
        ValueError: a kept layer is not in ``state_dict``
    """
    found = {name[len(prefix) :].split(".")[0] for name in state_dict if name.startswith(prefix)}
    missing = sorted({str(index) for index in kept} - found, key=int)
    if missing:
        raise ValueError(
            f"keep_layers names layers that the checkpoint lacks: {', '.join(missing)}; "
            f"it holds {', '.join(sorted(found, key=int))}"
        )
    for name in list(state_dict):
        if name.startswith(prefix) and int(name[len(prefix) :].split(".")[0]) not in kept:
            del state_dict[name]
