"""Measures, on some audio, what each part of a model is worth, and closes those worth least."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from omegaconf import open_dict
from torch import nn

from fairseq_speedup.importance.readers import Reader, Readers
from fairseq_speedup.importance.reconstruction import reconstruct
from fairseq_speedup.importance.scores import SCORES
from fairseq_speedup.importance.selection import Selection
from fairseq_speedup.low_rank.outputs import OutputStatistics
from fairseq_speedup.pruning.gates import PruningGates
from fairseq_speedup.pruning.hard_concrete import HardConcrete
from fairseq_speedup.sampling import SAMPLE_RATE_HZ

NEARLY_ALL = 0.999999  # a target that any model keeps with a gate closed


@dataclass
class Seen:
    """Of a layer that reads what a group of gates can close.

    inputs: what it was given
    score: (size,), of the gates, float64, on the CPU
    """

    inputs: OutputStatistics
    score: torch.Tensor


def add_gates(model, parts: str, length_seconds: float) -> None:
    """Gives a SpeedupCtc gates that are all open, in place: it gives what it gave.

    Args:
        parts: as ``prune_parts``
        length_seconds: of the utterance whose MACs count
    """
    encoder = model.w2v_encoder
    cfg = copy.deepcopy(model.cfg)
    with open_dict(cfg):
        cfg.prune_target, cfg.prune_parts, cfg.prune_lr_scale = NEARLY_ALL, parts, 1.0
        cfg.prune_length_seconds = length_seconds
    encoder.w2v_model.feature_grad_mult = 1.0  # nothing is trained: gates need no CNN that learns
    gates = PruningGates(encoder, cfg).to(next(model.parameters()).device)
    gates.place(encoder)
    encoder.pruning = gates
    for gate in gates.all():
        gate.decide(torch.ones(gate.size, dtype=torch.bool))


def measure(model, pieces: Iterable[torch.Tensor], by: str) -> dict[str, Seen]:
    """
    Args:
        model: with gates that are all open
        pieces: waveforms (S,)
        by: one of SCORES
    Returns:
        by the names of the layers that read
    Raises:
        TooLittleAudioError: fewer frames than a layer has inputs
    """
    watched = Readers(model.w2v_encoder)
    readers = watched.by_name
    score = SCORES[by](list(readers.values()))
    device = next(model.parameters()).device
    seconds = 0.0
    with watched.watching():
        for piece in pieces:
            score.learn(model, piece.to(device))
            seconds += len(piece) / SAMPLE_RATE_HZ
    for name, reader in readers.items():
        reader.inputs.check_enough(seconds, name, "inputs")
    return {name: Seen(reader.inputs, score.of(reader)) for name, reader in readers.items()}


def scores_of(
    readers: dict[str, Reader], seen: dict[str, Seen]
) -> dict[HardConcrete, torch.Tensor]:
    """(size,) of each of a model's gates.

    Args:
        readers: of the model, by name
        seen: of :func:`measure`
    """
    return {reader.gate: seen[name].score for name, reader in readers.items()}


def close(model, seen: dict[str, Seen], target: float) -> None:
    """Closes the gates of the parts that are worth least per MAC, in place, until ``target`` of the
    MACs is left; what stays takes over what it can of the work of what goes.

    Args:
        model: with gates that are all open, or a copy of it
        seen: of :func:`measure`
    Raises:
        TargetError: nothing as small can be left
    """
    encoder = model.w2v_encoder
    readers = Readers(encoder).by_name
    encoder.pruning.prune_target = target
    chosen = Selection(encoder.pruning, scores_of(readers, seen))
    if any(isinstance(reader.layer, nn.Conv1d) for reader in readers.values()):
        _give_biases(encoder.w2v_model.feature_extractor)
    for name, reader in readers.items():
        is_open = torch.tensor(chosen.masks[reader.gate])
        reader.gate.decide(is_open)
        reconstruct(reader.layer, seen[name].inputs, is_open.repeat_interleave(reader.repeats))


def _give_biases(cnn) -> None:
    """fairseq's CNN has one in every convolution, or in none."""
    for block in cnn.conv_layers:
        if block[0].bias is None:
            block[0].bias = nn.Parameter(block[0].weight.new_zeros(block[0].out_channels))
