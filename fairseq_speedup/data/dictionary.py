"""What two dictionaries do not share."""


def difference(data: list[str], checkpoint: list[str]) -> str:
    """In words, for symbols of the data's dictionary and of a checkpoint's."""
    only_data = sorted(set(data) - set(checkpoint))[:5]
    only_checkpoint = sorted(set(checkpoint) - set(data))[:5]
    if not only_data and not only_checkpoint:
        return "the same symbols in another order"
    return f"only in the data: {only_data}, only in the checkpoint: {only_checkpoint}"
