"""The rooms of the package: each imports from those below it alone, and no module from itself."""

import ast
from pathlib import Path

import pytest
from helpers.commands import USER_DIR

# from the ground up; a room is a folder or a file of the package
# fmt: off
ROOMS = [
    "console", "files", "lengths", "registry", "sampling", "sweeps", "architectures",
    "checkpoints",
    "data", "waveform", "frames", "frontend", "transformer", "heads",
    "macs", "pruning", "low_rank", "inference_forms", "speeds", "config", "pretrained", "models",
    "criterions", "inference", "profiling", "decoding", "tasks", "export", "transcription",
    "importance", "without_training", "hugging_face", "plugin",
    "inspection", "report", "optimize", "commands", "__main__", "__init__",
]
# fmt: on


def modules() -> dict[str, Path]:
    """By their dotted names, without the package's."""
    found = {}
    for path in sorted(USER_DIR.rglob("*.py")):
        parts = path.relative_to(USER_DIR).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imported(source: str, known) -> set[str]:
    """Modules of the package that a source text imports, inside of functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not looked into"
            names |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
    names = {name.removeprefix("fairseq_speedup.") for name in names}
    return names & set(known)


def room_of(module: str) -> str:
    return module.split(".")[0]


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    """Of each module, those of the package that it imports."""
    found = modules()
    return {name: imported(path.read_text(), found) - {name} for name, path in found.items()}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """One that the arrows make, from its beginning to its beginning; [] where there is none."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for each in sorted(arrows.get(node, ())):
            found = walk(each, [*path, node])
            if found:
                return found
        done.add(node)
        return []

    return next(filter(None, (walk(each, []) for each in sorted(arrows))), [])


def test_the_walk_sees_imports_of_every_form():
    known = {"lengths", "models", "models.config", "data.audio"}
    text = "import fairseq_speedup.lengths\nfrom fairseq_speedup import models\n"
    text += "def f():\n    from fairseq_speedup.models.config import x\n"
    assert imported(text, known) == {"lengths", "models", "models.config"}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_every_room_has_its_place(arrows):
    assert sorted({room_of(name) for name in arrows}) == sorted(ROOMS)


def test_no_arrow_between_rooms_runs_up(arrows):
    height = {room: index for index, room in enumerate(ROOMS)}
    upwards = {
        (room_of(name), room_of(other)): f"{name} imports {other}"
        for name, others in arrows.items()
        for other in others
        if height[room_of(other)] > height[room_of(name)]
    }
    assert not upwards, upwards


def test_no_modules_import_each_other_in_a_circle(arrows):
    # a package's __init__ names what its modules have; they do not ask it
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    inside = {name: others - packages for name, others in arrows.items() if name not in packages}
    found = circle(inside)
    assert not found, " -> ".join(found)
