from fairseq_speedup.config import SpeedupCtcConfig
from fairseq_speedup.models.distilled_student import DistilledStudent, DistilledStudentConfig
from fairseq_speedup.models.overrides import fit_overrides
from fairseq_speedup.models.speedup_ctc import SpeedupCtc

__all__ = [
    "DistilledStudent",
    "DistilledStudentConfig",
    "SpeedupCtc",
    "SpeedupCtcConfig",
    "fit_overrides",
]
