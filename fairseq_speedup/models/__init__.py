from fairseq_speedup.models.config import SpeedupCtcConfig
from fairseq_speedup.models.overrides import fit_overrides
from fairseq_speedup.models.speedup_ctc import SpeedupCtc

__all__ = ["SpeedupCtc", "SpeedupCtcConfig", "fit_overrides"]
