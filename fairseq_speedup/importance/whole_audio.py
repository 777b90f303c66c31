"""A model as it is measured: on the whole of the audio, and on nothing else."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def whole_audio(encoder) -> Iterator[None]:
    """Within this all layers are given all frames of every utterance: no frame of padding makes
    their number even, and nobody leaves at an exit.

    Args:
        encoder: of a CTC model, ours or stock
    """
    values = [(encoder.w2v_model.encoder, "required_seq_len_multiple", 1)]
    if getattr(encoder, "exit", None) is not None:
        values.append((encoder.exit, "observed", True))
    with contextlib.ExitStack() as before:
        for owner, name, value in values:
            set_within(before, owner, name, value)
        yield


def set_within(before: contextlib.ExitStack, owner, name: str, value) -> None:
    """Sets an attribute until the stack ends, which sets what it was."""
    before.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
