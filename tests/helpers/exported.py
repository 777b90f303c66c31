"""ONNX files beside the models that they were made of."""

import dataclasses

import numpy as np
import torch
from fairseq.data import Dictionary

from fairseq_speedup.decoding.generator import log_posteriors
from fairseq_speedup.export import OnnxModel
from fairseq_speedup.export.command import metadata_of
from fairseq_speedup.export.onnx_file import export_onnx
from fairseq_speedup.lengths import lengths_of

from .models import batch_of

# lengths that neither recording nor the check at writing has
BATCHES = [[5000, 15000, 7200], [11111], [16321, 16321]]


class Task:
    """What the metadata are made of."""

    blank_symbol = "<s>"

    @dataclasses.dataclass
    class cfg:
        labels = "ltr"
        sample_rate = 16000
        normalize = True

    def __init__(self, num_labels: int):
        self.target_dictionary = Dictionary()
        while len(self.target_dictionary) < num_labels:
            self.target_dictionary.add_symbol(f"label{len(self.target_dictionary)}")


def given(model, counts):
    """Waveforms, lengths, and the model's log-probabilities of each utterance (T, V)."""
    net_input = batch_of(counts)
    lengths = lengths_of(net_input["padding_mask"], net_input["source"])
    with torch.no_grad():
        log_probs, frames, _ = log_posteriors([model], net_input)
    expected = [log_probs[:count, i].numpy() for i, count in enumerate(frames.tolist())]
    return net_input["source"], lengths, expected


def export(model, path, int8=False, with_cnn=False):
    """The file, and its difference from the model."""
    metadata = metadata_of(model, Task(14), "some/model.pt")
    found = export_onnx(model, str(path), metadata, int8, with_cnn)
    return OnnxModel(str(path), num_threads=1), found


def largest_difference(file, batches) -> float:
    differences = []
    for waveform, lengths, expected in batches:
        log_probs, frames = file.log_probs(waveform, lengths)
        assert frames.tolist() == [len(each) for each in expected]
        differences += [
            np.abs(ours[:count] - theirs).max()
            for ours, count, theirs in zip(log_probs, frames, expected, strict=True)
        ]
    return max(differences)
