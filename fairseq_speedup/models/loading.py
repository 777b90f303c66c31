"""Fine-tuned models out of their checkpoints."""

from fairseq import checkpoint_utils

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.models.exported_ctc import KIND
from fairseq_speedup.models.overrides import FINETUNED_MODELS


def load_finetuned(path: str, option: str, overrides: dict | None = None):
    """A fine-tuned CTC model of fairseq's or ours.

    Args:
        path: of the checkpoint
        option: that named it, for messages
        overrides: of its config, by name
    Returns:
        the model, its whole config and its task
    Raises:
        FileNotFoundError, CheckpointError: no such file, or another kind of model
    """
    state = checkpoint_utils.load_checkpoint_to_cpu(path, overrides)
    kind = getattr(state["cfg"].get("model"), "_name", None) if state.get("cfg") else None
    # before anything is built: no file chooses which of fairseq's models and tasks that is
    if kind == KIND:
        raise CheckpointError(
            f"{option}{path} is an exported file, which transcribe and fairseq-generate run; give "
            "the checkpoint that it was made of"
        )
    if kind not in FINETUNED_MODELS:
        raise CheckpointError(
            f"{option}{path} holds a {kind} model; it must be fine-tuned: "
            f"{' or '.join(FINETUNED_MODELS)}"
        )
    (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        [path], overrides, state=state
    )
    return model, cfg, task
