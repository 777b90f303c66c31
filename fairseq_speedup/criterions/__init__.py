from fairseq_speedup.criterions.ctc_exits import CtcExitsConfig, CtcExitsCriterion

__all__ = ["CtcExitsConfig", "CtcExitsCriterion"]
