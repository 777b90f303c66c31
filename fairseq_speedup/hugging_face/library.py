"""Hugging Face's transformers, which not every installation has."""

from fairseq_speedup.checkpoints.opening import CheckpointError


def library():
    """The module transformers.

    Raises:
        CheckpointError: it or safetensors is not installed
    """
    try:
        import safetensors.torch  # noqa: F401
        import transformers
        import transformers.utils
        import transformers.utils.import_utils
    except ImportError as error:
        raise CheckpointError(
            f"a folder in Hugging Face's form needs their safetensors and transformers ({error}): "
            "pip install '.[convert]' in the plugin's checkout"
        ) from None
    try:
        import torchaudio  # noqa: F401
    except Exception:  # one for CUDA beside a torch for the CPU: transformers would import it
        for module in (transformers.utils, transformers.utils.import_utils):
            module.is_torchaudio_available = lambda: False
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
