"""``distilled_student``: a small encoder that learns to predict a large one's layers."""

from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from omegaconf import II, MISSING, OmegaConf
from torch import nn

from fairseq_speedup.pretrained import build_encoder, load_weights, read_pretrained
from fairseq_speedup.pretrained.families import begin_masks
from fairseq_speedup.pretrained.students import (
    StudentSizes,
    is_narrow,
    matched_step,
    student_config,
)
from fairseq_speedup.sweeps import forget_earlier_training
from fairseq_speedup.transformer.layer_removal import drop_removed_layers, parse_indices
from fairseq_speedup.transformer.reused_attention import check_own_attention

MATCHED = "none"  # of predict_layers: layers are matched, and none is predicted
CNN = ("feature_extractor.", "layer_norm.")  # its weights, and the norm of what it gives


@dataclass
class DistilledStudentConfig(FairseqDataclass):
    w2v_path: str = field(default=MISSING, metadata={"help": "pretrained checkpoint: the teacher"})
    student_layers: int = field(
        default=2,
        metadata={
            "help": "layers of the student, which begin as the teacher's first ones unless a size "
            "below is not the teacher's; then there may be as many as the teacher has"
        },
    )
    student_dim: int = field(
        default=0,
        metadata={
            "help": "width of the student's transformer, 0: the teacher's. Narrow ones begin with "
            "the teacher's CNN and else at random, and take many more updates"
        },
    )
    student_ffn_dim: int = field(
        default=0, metadata={"help": "units of its feed-forward layers, 0: the teacher's"}
    )
    student_heads: int = field(
        default=0,
        metadata={"help": "its attention heads, a divisor of the width, 0: the teacher's"},
    )
    predict_layers: str = field(
        default="4,8,12",
        metadata={
            "help": "layers of the teacher to predict, counted from 1 as in the paper; none: no "
            "heads, and all its layers for criterion gram_distillation"
        },
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
    predicted. Or deep and narrow, as STaRHuBERT (arXiv 2312.09040): the teacher's CNN, and layers
    that are matched with the teacher's. Its checkpoint is a ``model.w2v_path`` for fine-tuning.

    Args:
        student: fairseq's wav2vec 2.0 with ``student_layers``
        teacher: the same with the layers up to the last that is of use; no part of the checkpoint
        predict_layers: counted from 1; none where layers are matched
    """

    def __init__(self, student, teacher, predict_layers: list[int]):
        super().__init__()
        self.student = student
        self.teacher = (teacher,)  # in a tuple: not among this module's parameters
        dim, their_dim = student.encoder.embedding_dim, teacher.encoder.embedding_dim
        self.heads = nn.ModuleDict(
            {
                str(layer): nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, their_dim))
                for layer in predict_layers
            }
        )

    @classmethod
    def build_model(cls, cfg: DistilledStudentConfig, task):
        forget_earlier_training()
        pretrained = read_pretrained(cfg)
        pretraining, weights = pretrained.cfg, pretrained.weights
        check_own_attention(cfg.w2v_path, pretraining)  # fairseq's loop hands no maps on
        sizes = StudentSizes.of(cfg)
        own = student_config(pretraining, sizes, f"the teacher {cfg.w2v_path}")
        predicted = _predicted(cfg, pretraining.model.encoder_layers)
        cfg.w2v_args = OmegaConf.to_container(pretraining)
        teacher = _first_layers(pretraining, weights, max(predicted, default=0))
        teacher.eval().requires_grad_(False)
        begin = _narrow if is_narrow(pretraining, sizes) else _first_layers
        model = cls(begin(own, weights), teacher, predicted)
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
            None. Where nothing is predicted, ``student_layers`` and ``teacher_layers`` in their
            place: what the first layer is given and what those that are matched give, (B, T, C) of
            the student's and of the teacher's width
        """
        if not self.heads:
            return self._matched(source, padding_mask)
        hidden = self.student.extract_features(source, padding_mask)
        with torch.no_grad():
            found = self.teacher[0].extract_features(source, padding_mask)
        predicted = {layer: head(hidden["x"]) for layer, head in self.heads.items()}
        # each layer's output comes as T x B x C
        outputs = [output for output, _, _ in found["layer_results"]]
        target = {layer: outputs[int(layer) - 1].transpose(0, 1) for layer in self.heads}
        return {"predicted": predicted, "target": target, "padding_mask": hidden["padding_mask"]}

    def _matched(self, source, padding_mask) -> dict:
        ours, padding_mask_of_frames = _layers(self.student, source, padding_mask)
        with torch.no_grad():
            theirs, _ = _layers(self.teacher[0], source, padding_mask)
        step = matched_step(len(ours) - 1, len(theirs) - 1)
        return {
            "student_layers": ours,
            "teacher_layers": theirs[::step],
            "padding_mask": padding_mask_of_frames,
        }


def _predicted(cfg: DistilledStudentConfig, num_layers: int) -> list[int]:
    """The layers that ``predict_layers`` names, of a teacher with ``num_layers``.

    Raises:
        ValueError: layers that it has not; none, where layers cannot be matched
    """
    if cfg.predict_layers == MATCHED:
        matched_step(cfg.student_layers, num_layers)
        if cfg.layerdrop:
            raise ValueError(
                f"layerdrop={cfg.layerdrop} leaves out layers that predict_layers={MATCHED} "
                "matches; it must be 0"
            )
        return []
    predicted = parse_indices("predict_layers", cfg.predict_layers, f"{MATCHED}, one layer")
    if not 1 <= predicted[0] <= predicted[-1] <= num_layers:
        raise ValueError(
            f"predict_layers={cfg.predict_layers} is out of range: the teacher {cfg.w2v_path} "
            f"has layers 1 to {num_layers}"
        )
    return predicted


def _first_layers(pretraining, weights: dict, num_layers: int = 0):
    """fairseq's model with the first ``num_layers`` and their weights; 0: those that it has."""
    num_layers = num_layers or pretraining.model.encoder_layers
    cfg = OmegaConf.merge(pretraining, {"model": {"encoder_layers": num_layers}})
    model = build_encoder(cfg)
    kept = dict(weights)
    drop_removed_layers(kept, "encoder.layers.", list(range(num_layers)))
    load_weights(model, kept, "the teacher")
    return model


def _narrow(own, weights: dict):
    """fairseq's model of the config ``own``: the teacher's CNN, and the rest at random."""
    model = build_encoder(own)
    kept = {name: weight for name, weight in weights.items() if name.startswith(CNN)}
    begin_masks(kept, own)  # nothing is masked while it learns
    load_weights(model, {**model.state_dict(), **kept}, "the teacher")
    return model


def _layers(w2v_model, source, padding_mask) -> tuple[list, torch.Tensor | None]:
    """What the first layer is given and what each one gives, all (B, T, C), and the padding mask
    (B, T) or None."""
    given = []
    hook = w2v_model.encoder.layers[0].register_forward_pre_hook(
        lambda _, args: given.append(args[0])
    )
    try:
        found = w2v_model.extract_features(source, padding_mask)
    finally:
        hook.remove()
    outputs = [output for output, _, _ in found["layer_results"]]  # T x B x C
    first = given[0][: len(outputs[0])]  # fairseq makes the number of frames even for its layers
    return [each.transpose(0, 1) for each in (first, *outputs)], found["padding_mask"]
