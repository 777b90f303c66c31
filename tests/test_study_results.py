"""The study's committed results: RESULTS.md's command gives its tables and pictures again."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO

FOLDER = REPO / "examples/study/results"
TEXT = (REPO / "examples/study/RESULTS.md").read_text(encoding="utf-8")
COMMAND = re.search(r"```bash\n(python -m fairseq_speedup report .*?)```", TEXT, re.DOTALL).group(1)


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    """The printed command, but for where it writes."""
    folder = tmp_path_factory.mktemp("again")
    where = f"--output {FOLDER.relative_to(REPO)}"
    assert where in COMMAND
    command = COMMAND.replace(where, f"--output {folder}").replace("python", sys.executable, 1)
    subprocess.run(["bash", "-ec", command], cwd=REPO, check=True)
    return folder


def made(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix in (".md", ".csv", ".png")}


def test_the_same_files(again):
    assert made(again) == made(FOLDER)
    assert {"report.md", "report.csv", "test_LM_wer_vs_macs.png"} <= made(again)


@pytest.mark.parametrize("name", ["report.md", "report.csv"])
def test_the_same_tables(again, name):
    assert (again / name).read_bytes() == (FOLDER / name).read_bytes()


def test_the_same_pictures(again):
    from PIL import Image

    for path in sorted(again.glob("*.png")):
        pixels = [np.asarray(Image.open(each)) for each in (path, FOLDER / path.name)]
        assert np.array_equal(*pixels), path.name


def test_results_has_the_tables_of_the_report():
    report = (FOLDER / "report.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", report, re.MULTILINE)
    assert tables
    for table in tables:
        assert table in TEXT


def test_every_picture_shown_is_there():
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", TEXT)
    assert shown
    for name in shown:
        assert (REPO / "examples/study" / name).is_file(), name
