"""Faster fine-tuned speech SSL models, as a fairseq plugin.

Give this package to fairseq as its user directory (``common.user_dir=fairseq_speedup`` for
``fairseq-hydra-train``, ``--user-dir fairseq_speedup`` for ``fairseq-generate``): importing it
registers the models ``speedup_ctc`` and ``distilled_student``, the task ``speedup_finetuning`` and
the criterions ``ctc_exits``, ``ctc_distillation`` and ``layer_distillation``.

The tree follows the data: ``waveform`` (waveform reduction) -> ``frontend`` (CNN or filterbanks) ->
``frames`` (frame pooling) -> ``transformer`` (layers kept, exits, merging) -> ``heads`` (CTC heads
and logit upsampling) -> ``decoding``; ``models`` joins them, ``pretrained`` reads what they start
from, ``tasks`` feeds them.
"""

try:
    import fairseq  # noqa: F401
except Exception as error:  # fairseq 0.12.2 raises ValueError on Python 3.11 and later
    raise ImportError(
        "fairseq_speedup is a fairseq plugin, and fairseq cannot be imported here "
        f"({type(error).__name__}: {error}). The extra of that name brings a build that can: "
        "pip install '.[fairseq]' in the plugin's checkout"
    ) from error

# importing criterions, models and tasks registers them with fairseq
from fairseq_speedup import checkpoints, criterions, models, pretrained, tasks  # noqa: F401
from fairseq_speedup.transformer import conformer

__version__ = "0.1.0"

checkpoints.install(pretrained.upgrade_finetuned, models.fit_overrides)
conformer.install()
