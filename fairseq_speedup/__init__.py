"""Faster fine-tuned speech SSL models, as a fairseq plugin.

Give this package to fairseq as its user directory (``common.user_dir=fairseq_speedup`` for
``fairseq-hydra-train``, ``--user-dir fairseq_speedup`` for ``fairseq-generate``): importing it
registers the model ``speedup_ctc`` and the task ``speedup_finetuning``.

The tree follows the data: ``waveform`` (waveform reduction) -> fairseq's encoder -> ``heads``
(CTC head and logit upsampling) -> ``decoding``; ``models`` joins them, ``tasks`` feeds them.
"""

try:
    import fairseq  # noqa: F401
except ImportError as error:
    raise ImportError(
        "fairseq_speedup is a fairseq plugin, and fairseq cannot be imported here "
        f"({error}). Install it, for example with: pip install 'fairseq_speedup[fairseq]'"
    ) from error

from fairseq_speedup import checkpoints

__version__ = "0.1.0"

checkpoints.install()

from fairseq_speedup import models, tasks  # noqa: E402, F401  (registers them with fairseq)
