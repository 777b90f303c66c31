from fairseq_speedup.criterions.ctc_distillation import (
    CtcDistillationConfig,
    CtcDistillationCriterion,
)
from fairseq_speedup.criterions.ctc_exits import CtcExitsConfig, CtcExitsCriterion
from fairseq_speedup.criterions.ctc_in_place_distillation import (
    CtcInPlaceDistillationConfig,
    CtcInPlaceDistillationCriterion,
)
from fairseq_speedup.criterions.ctc_pruning import CtcPruningConfig, CtcPruningCriterion
from fairseq_speedup.criterions.frontend_match import FrontEndMatchCriterion
from fairseq_speedup.criterions.gram_distillation import GramDistillationCriterion
from fairseq_speedup.criterions.layer_distillation import LayerDistillationCriterion

__all__ = [
    "CtcDistillationConfig",
    "CtcDistillationCriterion",
    "CtcExitsConfig",
    "CtcExitsCriterion",
    "CtcInPlaceDistillationConfig",
    "CtcInPlaceDistillationCriterion",
    "CtcPruningConfig",
    "CtcPruningCriterion",
    "FrontEndMatchCriterion",
    "GramDistillationCriterion",
    "LayerDistillationCriterion",
]
