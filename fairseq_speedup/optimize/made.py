"""Smaller checkpoints that candidates are of, made of the model's from some of the same audio:
pruned by importance, of low rank, or one after the other."""

import copy
import os
from dataclasses import replace
from pathlib import Path

from fairseq_speedup.checkpoints.opening import CheckpointError, write_checkpoint
from fairseq_speedup.importance.measure import add_gates, close, measure
from fairseq_speedup.importance.selection import TargetError
from fairseq_speedup.optimize.candidates import ENERGIES, PRUNE_TARGETS, Candidate
from fairseq_speedup.optimize.setup import Setup
from fairseq_speedup.pruning.config import PARTS
from fairseq_speedup.without_training.factorize import low_rank_state, watch
from fairseq_speedup.without_training.from_audio import AudioSource, load_ours
from fairseq_speedup.without_training.prune import cut_and_told, importance_state

MINUTES = 2  # of audio
NO_LOW_RANK = "no linear layer has so low a rank that two matrices would cost less"
NO_TARGET = "more of the MACs remain with all left out that can be"
LENGTH_SECONDS = 10  # of the utterance whose MACs are counted


def checkpoint_of(setup: Setup, candidate: Candidate) -> str:
    """The path of the checkpoint of a candidate; a smaller one is made where it is not there. What
    is seen on the audio serves all targets, or all ranks: they are made together.

    Raises:
        ValueError, OSError: it cannot be made
    """
    if not candidate.is_made:
        return setup.path
    path = path_of(setup.folder, candidate)
    if candidate.low_rank:
        make, name, none = _lower, "lower", NO_LOW_RANK
        start = replace(candidate, low_rank=[])
    else:
        make, name, none = _prune, "prune", NO_TARGET
        start = replace(candidate, pruned=None)
    done = f"{path_of(setup.folder, start)}.{name}"
    if not os.path.exists(path) and not os.path.exists(done):
        make(setup, start)
        Path(done).touch()
    if not os.path.exists(path):
        raise CheckpointError(none)
    return path


def path_of(folder: str, candidate: Candidate) -> str:
    """Where a smaller checkpoint is kept."""
    return os.path.join(folder, "_".join(["made", *name_parts(candidate, candidate.start)]) + ".pt")


def name_parts(candidate: Candidate, overrides: dict) -> list[str]:
    """Of the name of a candidate's file."""
    parts = [f"{name}-{value}".replace(",", ".") for name, value in sorted(overrides.items())]
    if candidate.pruned is not None:
        parts.append(f"pruned-{candidate.pruned:g}")
    if candidate.low_rank:
        parts.append("-".join(["low-rank", *map("{:g}".format, candidate.low_rank)]))
    return parts


def _opened(setup: Setup, candidate: Candidate):
    """The model that a smaller one is made of, its config, its task, and pieces of audio."""
    candidate = replace(candidate, overrides=candidate.start)
    audio = AudioSource(setup.data, setup.subset, setup.audio, MINUTES, leave_out=True)
    model, cfg, task = load_ours(checkpoint_of(setup, candidate), setup.options_of(candidate))
    model.to(setup.device)
    return model, cfg, task, [each.clone() for each in audio.pieces(model, cfg, task)]


def _prune(setup: Setup, start: Candidate) -> None:
    model, cfg, task, pieces = _opened(setup, start)
    add_gates(model, ",".join(PARTS), LENGTH_SECONDS)
    seen = measure(model, pieces, by="taylor")
    for target in PRUNE_TARGETS:
        small = copy.deepcopy(model)
        try:
            close(small, seen, target)
        except TargetError:
            continue  # of a model that has little else
        cut_and_told(setup.path, small)
        state = importance_state(small, cfg, task)
        write_checkpoint(state, path_of(setup.folder, replace(start, pruned=target)))


def _lower(setup: Setup, start: Candidate) -> None:
    model, cfg, task, pieces = _opened(setup, start)
    watched, _ = watch(model, pieces)
    for energies in ENERGIES:
        state = low_rank_state(model, cfg, task, watched, energies)
        if state is not None:
            made = replace(start, low_rank=list(energies))
            write_checkpoint(state, path_of(setup.folder, made))
