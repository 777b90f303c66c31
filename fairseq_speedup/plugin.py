"""What makes fairseq know of this package: importing this registers all of it."""

try:
    import fairseq  # noqa: F401
except Exception as error:  # fairseq 0.12.2 raises ValueError on Python 3.11 and later
    raise ImportError(
        "fairseq_speedup is a fairseq plugin, and fairseq cannot be imported here "
        f"({type(error).__name__}: {error}). The extra of that name brings a build that can: "
        "pip install '.[fairseq]' in the plugin's checkout"
    ) from error

# importing criterions, models and tasks registers them with fairseq
from fairseq_speedup import (  # noqa: F401
    criterions,
    hugging_face,
    inference,
    models,
    pretrained,
    tasks,
)
from fairseq_speedup.checkpoints import opening
from fairseq_speedup.console import refusals
from fairseq_speedup.transformer import conformer


def _read_exported(path: str, overrides: dict | None) -> dict:
    """Imported where it is needed: that brings the engines."""
    from fairseq_speedup.export.as_checkpoint import read_exported

    return read_exported(path, overrides or {})


opening.install(
    pretrained.upgrade_finetuned,
    models.fit_overrides,
    read_folder=hugging_face.read_as_checkpoint,
    read_exported=_read_exported,
)
conformer.install()
refusals.shorten()
