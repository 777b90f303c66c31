"""Committed results of studies: a RESULTS.md's commands give its tables and pictures again."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import REPO

PAGES = [REPO / "examples" / name / "RESULTS.md" for name in ("study", "recorded")]
TEXTS = [page.read_text(encoding="utf-8") for page in PAGES]
COMMANDS = [
    command
    for text in TEXTS
    for command in re.findall(
        r"```bash\n(python -m fairseq_speedup report .*?)```", text, re.DOTALL
    )
]


@pytest.fixture(scope="module", params=COMMANDS, ids=lambda command: output_of(command).name)
def reports(request, tmp_path_factory):
    """What a printed command writes elsewhere, and what it wrote."""
    committed = output_of(request.param)
    folder = tmp_path_factory.mktemp("again")
    command = request.param.replace(f"--output {committed}", f"--output {folder}")
    command = command.replace("python", sys.executable, 1)
    subprocess.run(["bash", "-ec", command], cwd=REPO, check=True)
    return folder, REPO / committed


def output_of(command: str) -> Path:
    return Path(re.search(r"--output\s+(\S+)", command).group(1))


def made(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix in (".md", ".csv", ".png")}


def test_the_same_files(reports):
    again, committed = reports
    assert made(again) == made(committed)
    assert {"report.md", "report.csv"} <= made(again)
    assert any(name.endswith("_wer_vs_macs.png") for name in made(again))


@pytest.mark.parametrize("name", ["report.md", "report.csv"])
def test_the_same_tables(reports, name):
    again, committed = reports
    assert (again / name).read_bytes() == (committed / name).read_bytes()


def test_the_same_pictures(reports):
    """Pixel for pixel by the matplotlib that drew them: another one's letters differ. What is drawn
    at all is test_report.py's."""
    from PIL import Image

    again, committed = reports
    for path in sorted(again.glob("*.png")):
        ours, theirs = (Image.open(each) for each in (path, committed / path.name))
        if ours.info["Software"] != theirs.info["Software"]:
            pytest.skip(f"drawn by {theirs.info['Software']}")
        assert np.array_equal(np.asarray(ours), np.asarray(theirs)), path.name


def test_results_has_the_tables_of_the_report(reports):
    report = (reports[1] / "report.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", report, re.MULTILINE)
    assert tables
    for table in tables:
        assert any(table in text for text in TEXTS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_picture_shown_is_there(page):
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert shown
    for name in shown:
        assert (page.parent / name).is_file(), name
