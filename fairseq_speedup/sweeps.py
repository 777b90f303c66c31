"""Several trainings in one process, as Hydra's ``-m`` runs them."""

import sys

from fairseq import checkpoint_utils


def forget_earlier_training() -> None:
    """Call when a training begins, before it reads a checkpoint. fairseq keeps the best validation,
    and for how many it has waited for a better one, as attributes of two functions: a job that is
    not better than those before it in its process would write no ``checkpoint_best.pt``, and with
    ``checkpoint.patience`` end early."""
    functions = [checkpoint_utils.save_checkpoint]
    if "fairseq_cli.train" in sys.modules:
        functions.append(sys.modules["fairseq_cli.train"].should_stop_early)
    for function in functions:
        vars(function).pop("best", None)
        vars(function).pop("num_runs", None)
