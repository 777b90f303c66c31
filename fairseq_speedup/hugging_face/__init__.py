"""Hugging Face's form of the models that are fairseq's wav2vec 2.0 here: names of weights, options,
labels, folders, and the command that converts between the two."""

from fairseq_speedup.hugging_face.config import wav2vec2_options
from fairseq_speedup.hugging_face.folder import read_as_checkpoint
from fairseq_speedup.hugging_face.library import library
from fairseq_speedup.hugging_face.names import from_fairseq, to_fairseq

__all__ = [
    "from_fairseq",
    "library",
    "read_as_checkpoint",
    "to_fairseq",
    "wav2vec2_options",
]
