"""The rows of a study, as rows.yaml says them, checked."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError


class StudyError(Exception):
    """What cannot be run; the message says why."""


def _is_texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_variants(value) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(options, dict) for options in value.values())


def _is_text(value) -> bool:
    return isinstance(value, str)


# what a row may hold, and what that must be
KEYS = {
    "train": (_is_texts, "a list of overrides, such as [model.frame_pool=2]"),
    "student": (_is_texts, "a list of overrides, such as [model.student_layers=2]"),
    "prune": (_is_texts, "a list of overrides, such as [+model.prune_target=0.5]"),
    "widths": (_is_texts, "a list of widths beside the whole, such as ['0.7', '0.5']"),
    "teacher": (_is_text, "the name of one of the study's teachers"),
    "decoders": (_is_texts, "a list of the study's decoders, such as [greedy]"),
    "decode": (
        _is_variants,
        "names with options, such as {x1: {downsample_factor: 1}}",
    ),
    "of": (_is_text, "the name of another row"),
    "from": (_is_text, "the name of another row"),
    "labels": (_is_text, "the ending of labels, such as spm"),
}


def read_rows(cfg: DictConfig) -> dict:
    """The rows of ``cfg.rows``, with the study's own values where they name them: ``${w2v_path}``.

    Raises:
        StudyError: naming the file, the row and what is wrong
    """
    path = Path(cfg.rows)
    if not path.is_file():
        raise StudyError(f"rows={path} is not a file")
    try:
        rows = OmegaConf.load(path)
        rows = OmegaConf.to_container(OmegaConf.merge({"grid": rows}, cfg).grid, resolve=True)
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise StudyError(f"rows={path} cannot be read: {error}") from None
    if not isinstance(rows, dict) or not rows:
        raise StudyError(f"rows={path} holds no rows: NAME: {{{', '.join(KEYS)}}}")
    for name, row in rows.items():
        _check(f"{path}, row {name}", row)
    for name in rows:
        _check_source(path, name, rows)
    _check_variants(path, rows)
    return rows


def _check(what: str, row) -> None:
    if not isinstance(row, dict):
        raise StudyError(f"{what} is {row!r}; it must be {{}} or hold any of {', '.join(KEYS)}")
    for key, value in row.items():
        if key not in KEYS:
            raise StudyError(f"{what}: unknown {key}; valid: {', '.join(sorted(KEYS))}")
        fits, valid = KEYS[key]
        if not fits(value):
            raise StudyError(f"{what}: {key} is {value!r}; it must be {valid}")


def _check_source(path: Path, name: str, rows: dict) -> None:
    """A row starts in the end from one that is trained from w2v_path."""
    seen = [name]
    while source := rows[name].get("of", rows[name].get("from")):
        if source not in rows:
            raise StudyError(f"{path}, row {name}: there is no row {source}: {', '.join(rows)}")
        if source in seen:
            raise StudyError(f"{path}: rows start from one another: {', '.join([*seen, source])}")
        if "of" in rows[name] and "of" in rows[source]:
            raise StudyError(
                f"{path}, row {name}: of: {source} is not trained either; of: "
                f"{rows[source]['of']} is"
            )
        seen.append(source)
        name = source


def _check_variants(path: Path, rows: dict) -> None:
    owners = {}
    for name, row in rows.items():
        for variant in row.get("decode", [name]):
            if variant in owners:
                raise StudyError(
                    f"{path}: rows {owners[variant]} and {name} both decode as {variant}; their "
                    "results would be in one folder"
                )
            owners[variant] = name
