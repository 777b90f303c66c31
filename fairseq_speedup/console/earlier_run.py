"""Whether what an earlier run left behind was decided by what this run is given."""

NOT_GIVEN = "not given"
SHOWN = {"threads": "threads (OMP_NUM_THREADS)"}


def first_difference(there: dict, now: dict, within: str = "") -> str | None:
    """
    Args:
        there, now: what decided the earlier run and what decides this one, by name: text, numbers,
            or dicts of them
        within: of dicts, what their names begin with
    Returns:
        the first that differs, as ``inference is auto there and fp32 now``, None where none does
    """
    for name in {**now, **there}:
        old, new = there.get(name, NOT_GIVEN), now.get(name, NOT_GIVEN)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            return first_difference(old, new, f"{within}{name}.")
        return f"{within}{SHOWN.get(name, name)} is {old} there and {new} now"
    return None
