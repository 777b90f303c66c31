"""Faster fine-tuned speech SSL models, as a fairseq plugin.

Give this package to fairseq as its user directory (``common.user_dir=fairseq_speedup`` for
``fairseq-hydra-train``, ``--user-dir fairseq_speedup`` for ``fairseq-generate``): importing it
registers the models ``speedup_ctc``, ``distilled_student`` and ``exported_ctc``, the task
``speedup_finetuning`` and the criterions ``ctc_pruning``, ``ctc_exits``, ``ctc_distillation``,
``ctc_in_place_distillation``, ``layer_distillation`` and ``gram_distillation``.

The tree follows the data: ``waveform`` (waveform reduction) -> ``frontend`` (CNN or filterbanks) ->
``frames`` (frame pooling) -> ``transformer`` (layers kept, exits, merging) -> ``heads`` (CTC heads
and logit upsampling) -> ``decoding``; ``config`` has the options of all, ``models`` joins them,
``pretrained`` reads what they start from, ``tasks`` feeds them.
"""

import os
import sys

__version__ = "0.1.0"


def _starts_a_command() -> bool:
    """Whether this process is ``python -m fairseq_speedup`` or ``fairseq-speedup``, whose help
    needs neither torch nor fairseq: what a command needs is imported when it is run."""
    program = sys.orig_argv[-len(sys.argv) :][:1]
    if sys.argv[:1] == ["-m"]:  # so while Python looks for the module
        return program in ([__name__], [f"-m{__name__}"])
    name = os.path.splitext(os.path.basename("".join(program)))[0]
    return program == sys.argv[:1] and name == "fairseq-speedup"


if not _starts_a_command():
    from fairseq_speedup import plugin  # noqa: F401, registers everything with fairseq
