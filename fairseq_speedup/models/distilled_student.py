"""``distilled_student``: a small encoder that learns to predict a large one's layers."""

from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from omegaconf import II, MISSING, OmegaConf
from torch import nn

from fairseq_speedup.pretrained import build_encoder, load_weights, read_pretrained
from fairseq_speedup.sweeps import forget_earlier_training
from fairseq_speedup.transformer.layer_removal import drop_removed_layers, parse_indices
from fairseq_speedup.transformer.reused_attention import check_own_attention


@dataclass
class DistilledStudentConfig(FairseqDataclass):
    w2v_path: str = field(default=MISSING, metadata={"help": "pretrained checkpoint: the teacher"})
    student_layers: int = field(
        default=2,
        metadata={"help": "layers of the student, which begin as the teacher's first ones"},
    )
    predict_layers: str = field(
        default="4,8,12",
        metadata={"help": "layers of the teacher to predict, counted from 1 as in the paper"},
    )
    dropout: float = field(default=0.1, metadata={"help": "dropout of the student"})
    attention_dropout: float = field(default=0.1, metadata={"help": "of its attention weights"})
    activation_dropout: float = field(default=0.1, metadata={"help": "after its activations"})
    dropout_input: float = field(default=0.0, metadata={"help": "of its transformer's input"})
    layerdrop: float = field(default=0.0, metadata={"help": "of its layers"})
    feature_grad_mult: float = field(
        default=0.1, metadata={"help": "factor of the gradient in its CNN"}
    )
    normalize: bool = II("task.normalize")
    w2v_args: Any = None  # the teacher's config, once it is known


@register_model("distilled_student", dataclass=DistilledStudentConfig)
class DistilledStudent(BaseFairseqModel):
    """DistilHuBERT (arXiv 2110.01900) of any teacher that can be fine-tuned here: CNN, projection,
    positional convolution and first layers of the teacher, and a head for each layer of it that is
    predicted. Its checkpoint is a ``model.w2v_path`` for fine-tuning.

    Args:
        student: fairseq's wav2vec 2.0 with ``student_layers``
        teacher: the same with the layers up to the last that is predicted; no part of the
            checkpoint
        predict_layers: counted from 1
    """

    def __init__(self, student, teacher, predict_layers: list[int]):
        super().__init__()
        self.student = student
        self.teacher = (teacher,)  # in a tuple: not among this module's parameters
        dim = student.encoder.embedding_dim
        self.heads = nn.ModuleDict(
            {
                str(layer): nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
                for layer in predict_layers
            }
        )

    @classmethod
    def build_model(cls, cfg: DistilledStudentConfig, task):
        forget_earlier_training()
        pretrained = read_pretrained(cfg)
        pretraining, weights = pretrained.cfg, pretrained.weights
        check_own_attention(cfg.w2v_path, pretraining)  # fairseq's loop hands no maps on
        num_layers = pretraining.model.encoder_layers
        if not 1 <= cfg.student_layers < num_layers:
            raise ValueError(
                f"student_layers={cfg.student_layers} is out of range: it must be 1 to "
                f"{num_layers - 1}, fewer than the teacher {cfg.w2v_path} has"
            )
        predicted = parse_indices("predict_layers", cfg.predict_layers, "one layer")
        if not 1 <= predicted[0] <= predicted[-1] <= num_layers:
            raise ValueError(
                f"predict_layers={cfg.predict_layers} is out of range: the teacher {cfg.w2v_path} "
                f"has layers 1 to {num_layers}"
            )
        cfg.w2v_args = OmegaConf.to_container(pretraining)
        teacher = _encoder(pretraining, weights, predicted[-1])
        teacher.eval().requires_grad_(False)
        model = cls(_encoder(pretraining, weights, cfg.student_layers), teacher, predicted)
        model.cfg = cfg  # fairseq's task takes w2v_args from here into the checkpoint
        return model

    def _apply(self, function, recurse=True):
        super()._apply(function, recurse)
        self.teacher[0]._apply(function)
        return self

    def forward(self, source, padding_mask=None, **unused):
        """
        Args:
            source: waveform (B, S)
            padding_mask: (B, S), True at padding, or None
        Returns:
            ``predicted`` and ``target``, by layer, each (B, T, C), and ``padding_mask`` (B, T) or
            None
        """
        hidden = self.student.extract_features(source, padding_mask)
        with torch.no_grad():
            found = self.teacher[0].extract_features(source, padding_mask)
        predicted = {layer: head(hidden["x"]) for layer, head in self.heads.items()}
        # each layer's output comes as T x B x C
        outputs = [output for output, _, _ in found["layer_results"]]
        target = {layer: outputs[int(layer) - 1].transpose(0, 1) for layer in self.heads}
        return {"predicted": predicted, "target": target, "padding_mask": hidden["padding_mask"]}


def _encoder(pretraining, weights: dict, num_layers: int):
    """fairseq's model with the first ``num_layers`` and their weights."""
    cfg = OmegaConf.merge(pretraining, {"model": {"encoder_layers": num_layers}})
    model = build_encoder(cfg)
    kept = dict(weights)
    drop_removed_layers(kept, "encoder.layers.", list(range(num_layers)))
    load_weights(model, kept, "the teacher")
    return model
