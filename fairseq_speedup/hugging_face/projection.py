"""What is between the CNN and the transformer, where both are as wide: Hugging Face's models have a
projection there, and fairseq's have none."""

import torch

from fairseq_speedup.checkpoints.opening import CheckpointError

# fairseq's name of it, and Hugging Face's
PROJECTION, PROJECTION_THERE = "post_extract_proj.", "feature_projection.projection."


def drop_projection(folder: str, model, encoder: dict) -> None:
    """
    Raises:
        CheckpointError: a projection that changes frames
    """
    for key, same in unprojected(model):
        if not torch.equal(encoder.pop(PROJECTION + key), same):
            raise CheckpointError(
                f"{folder}: its feature_projection.projection maps {len(same)} channels to as "
                "many, and fairseq's encoder has no projection where its CNN is as wide as its "
                "transformer: only one that changes nothing can be converted"
            )


def unprojected(model) -> list[tuple[str, torch.Tensor]]:
    """The projection that changes no frame."""
    width = model.config.hidden_size
    return [("weight", torch.eye(width)), ("bias", torch.zeros(width))]
