"""Relative paths that do not exist where Hydra runs a training."""

from types import SimpleNamespace

import pytest
from fairseq.data import Dictionary
from helpers.commands import train
from helpers.models import build_model, task_of, write_finetuned
from hydra.core.hydra_config import HydraConfig

from fairseq_speedup.criterions.ctc_distillation import _load_teacher
from fairseq_speedup.data.manifest import infer_labels
from fairseq_speedup.decoding.language.lexicon import read_words
from fairseq_speedup.models.loading import load_finetuned


def test_training_says_where_it_looked_and_the_whole_path(
    corpus, pretrained, tmp_path, monkeypatch
):
    monkeypatch.chdir(corpus.parent)
    done = train(tmp_path / "run", corpus.name, pretrained, check=False)
    assert done.returncode != 0
    error = [line for line in done.stderr.splitlines() if line.startswith("FileNotFoundError")]
    assert error[-1].endswith(
        f"; it was looked for at {tmp_path}/run/{corpus.name}/dict.ltr.txt, as Hydra runs a "
        f"training in its output folder: give the whole path, {corpus}/dict.ltr.txt"
    )


@pytest.fixture
def hydra(tmp_path, monkeypatch):
    """Started in ``start``, runs in ``output``."""
    for name in ("start", "output"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "output")
    config = SimpleNamespace(runtime=SimpleNamespace(cwd=str(tmp_path / "start")))
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: config)
    return tmp_path


@pytest.mark.parametrize(
    "read",
    [
        build_model,
        lambda path: _load_teacher(path, None),
        lambda path: load_finetuned(path, "--path "),
        lambda path: infer_labels(path),
        lambda path: read_words(path, "ltr"),
        lambda path: task_of(path).target_dictionary,
    ],
    ids=["w2v_path", "teacher_path", "checkpoint", "labels", "lexicon", "dictionary"],
)
def test_every_path_is_told_whole(hydra, read):
    with pytest.raises(FileNotFoundError, match=f"looked for at {hydra}/output/lost.*whole paths$"):
        read("lost")
    with pytest.raises(FileNotFoundError, match=r"not exist|no such file") as error:
        read("/lost")
    assert "looked for" not in str(error.value)


def test_without_hydra_it_is_told_where_it_was_looked_for(tmp_path, monkeypatch, pretrained):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"looked for at {tmp_path}/lost.pt$"):
        build_model("lost.pt")
    write_finetuned(tmp_path / "there.pt", pretrained, Dictionary())
    assert load_finetuned("there.pt", "--path ")
