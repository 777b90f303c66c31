"""What fine-tuning starts from: public speech SSL checkpoints of any family, as one kind of model.

Every family's encoder is fairseq's wav2vec 2.0 for features, with other options, weights under
other names, and for some a difference that :func:`adapt` makes. So each is read into a wav2vec 2.0
config and weights under its names.
"""

from fairseq_speedup.pretrained.encoder import (
    adapt,
    build_encoder,
    check_weights,
    keep_layer_type,
    load_weights,
)
from fairseq_speedup.pretrained.families import Pretrained
from fairseq_speedup.pretrained.finetuned import upgrade_finetuned
from fairseq_speedup.pretrained.read import read_file, read_pretrained, read_state

__all__ = [
    "Pretrained",
    "adapt",
    "build_encoder",
    "check_weights",
    "keep_layer_type",
    "load_weights",
    "read_file",
    "read_pretrained",
    "read_state",
    "upgrade_finetuned",
]
