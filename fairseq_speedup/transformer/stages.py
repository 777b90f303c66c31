"""Every stage that may stand between the transformer's layers."""

from fairseq_speedup.transformer.early_exit import EarlyExit
from fairseq_speedup.transformer.frame_dropping import FrameDropping
from fairseq_speedup.transformer.stage import LayerStage
from fairseq_speedup.transformer.token_merging import TokenMerging

# in the order in which they act after a layer: who leaves does so before frames become fewer
STAGES: tuple[type[LayerStage], ...] = (EarlyExit, FrameDropping, TokenMerging)


def layers_named_by(stages: list[LayerStage]) -> list[int]:
    """Indices of the layers that these cannot be without."""
    return sorted({index for stage in stages for index in stage.named_layers()})
