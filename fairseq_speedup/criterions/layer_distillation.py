"""``layer_distillation``: how far a student's predictions are from its teacher's layers."""

from dataclasses import dataclass, field

import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics


class StudentCriterion(FairseqCriterion):
    """A loss of ``distilled_student``, summed over valid frames; what it logs is a mean of them."""

    sizes = ("ntokens", "nsentences", "sample_size")

    def log_of(self, sums: dict[str, float], num_frames: int, num_utterances: int) -> dict:
        """What is logged of a batch.

        Args:
            sums: of each loss over valid frames, ``loss`` among them
        """
        return sums | dict(zip(self.sizes, (num_frames, num_utterances, num_frames), strict=True))

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        num_frames = sum(log.get("sample_size", 0) for log in logging_outputs)
        names = {name for log in logging_outputs for name in log} - {"loss", *cls.sizes}
        for name in ["loss", *sorted(names)]:
            total = sum(log.get(name, 0) for log in logging_outputs)
            metrics.log_scalar(name, total / max(1, num_frames), num_frames, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


@dataclass
class LayerDistillationConfig(FairseqDataclass):
    cosine_weight: float = field(
        default=1.0, metadata={"help": "weight of the cosine term; the L1 term weighs 1"}
    )


@register_criterion("layer_distillation", dataclass=LayerDistillationConfig)
class LayerDistillationCriterion(StudentCriterion):
    """L1 distance plus ``-log sigmoid`` of the cosine similarity, mean over layers, over valid
    frames (arXiv 2110.01900, equation 1)."""

    def __init__(self, cfg: LayerDistillationConfig, task):
        super().__init__(task)
        if not 0 <= cfg.cosine_weight < float("inf"):
            raise ValueError(
                f"criterion.cosine_weight={cfg.cosine_weight} is out of range; it must be 0 or more"
            )
        self.cosine_weight = cfg.cosine_weight

    def forward(self, model, sample, reduce=True):
        output = model(**sample["net_input"])
        if "predicted" not in output:
            raise ValueError(
                "model.predict_layers=none with criterion._name=layer_distillation, which learns "
                "from predicted layers: give their numbers, or criterion._name=gram_distillation"
            )
        padding_mask, losses, log = output["padding_mask"], [], {}
        for layer, predicted in output["predicted"].items():
            predicted, target = predicted.float(), output["target"][layer].float()
            l1 = (predicted - target).abs().mean(dim=2)  # (B, T)
            cosine = F.cosine_similarity(predicted, target, dim=2)
            distance = l1 - self.cosine_weight * F.logsigmoid(cosine)
            if padding_mask is not None:
                l1, cosine, distance = (
                    each.masked_fill(padding_mask, 0) for each in (l1, cosine, distance)
                )
            losses.append(distance.sum())
            log[f"l1_layer_{layer}"] = l1.sum().item()
            log[f"cosine_layer_{layer}"] = cosine.sum().item()
        num_frames = l1.numel() - (int(padding_mask.sum()) if padding_mask is not None else 0)
        loss = sum(losses) / len(losses)
        return loss, num_frames, self.log_of({"loss": loss.item(), **log}, num_frames, len(l1))
