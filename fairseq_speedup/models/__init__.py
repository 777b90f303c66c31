from fairseq_speedup.models.speedup_ctc import SpeedupCtc, SpeedupCtcConfig

__all__ = ["SpeedupCtc", "SpeedupCtcConfig"]
