from fairseq_speedup.tasks.speedup_finetuning import (
    SpeedupFinetuningConfig,
    SpeedupFinetuningTask,
)

__all__ = ["SpeedupFinetuningConfig", "SpeedupFinetuningTask"]
