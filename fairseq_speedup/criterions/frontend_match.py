"""The loss while a front-end learns to reproduce the CNN that it replaces."""

import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion
from fairseq.logging import metrics


class FrontEndMatchCriterion(FairseqCriterion):
    """Mean squared error of the front-end's frames against the CNN's, both normalised, over valid
    frames (Front-End Adapter, arXiv 2302.09331). The task puts it in the criterion's place for the
    first ``model.frontend_match_updates`` updates; no config names it."""

    def forward(self, model, sample, reduce=True):
        output = model(**sample["net_input"], match_frontend=True)
        matched, target = output["matched"].float(), output["target"].float()
        error = F.mse_loss(matched, target, reduction="none").mean(dim=2)  # (B, T)
        valid = ~output["padding_mask"]
        loss = error[valid].sum()
        num_frames = int(valid.sum())
        return (
            loss,
            num_frames,
            {
                "loss": loss.item(),
                "frontend_loss": loss.item(),
                "ntokens": num_frames,
                "nsentences": len(valid),
                "sample_size": num_frames,
            },
        )


def reduce_frontend_loss(logging_outputs) -> None:
    """Logs ``frontend_loss``, the mean squared error of a value."""
    losses = [log["frontend_loss"] for log in logging_outputs if "frontend_loss" in log]
    if losses:
        num_frames = sum(log["sample_size"] for log in logging_outputs)
        metrics.log_scalar("frontend_loss", sum(losses) / max(1, num_frames), num_frames, round=4)
