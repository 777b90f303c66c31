"""Fixtures of several test files; the functions that they share are in helpers."""

import os
from pathlib import Path

import pytest
import torch
from fairseq.data import Dictionary
from filelock import FileLock
from helpers.commands import train
from helpers.corpora import write_dictionary, write_split
from helpers.models import write_finetuned, write_pretrained
from hypothesis import settings

from fairseq_speedup.inference.int8 import FbgemmProduct

settings.register_profile("ci", derandomize=True)  # the same examples on every run
if os.environ.get("CI"):
    settings.load_profile("ci")
FbgemmProduct.LEAST_WEIGHTS = 0  # models are tiny: int8 all the same
torch.set_num_threads(1)  # models are tiny: more threads only wait for each other
# the slowest files, slowest first: begun first, they leave short ones to even out workers with
SLOW = """
    test_combinations test_convert test_optimize test_families test_export test_gpu_inference
    test_pruning test_study test_importance test_end_to_end test_inference test_model_folders
    test_widths test_study_results test_commands test_decoding_end_to_end test_low_rank
    test_reductions_end_to_end test_boundaries test_reused_attention test_scoring
    test_finetuned_eras test_config test_distillation test_open_corpus test_narrow_students
    test_malicious_checkpoints test_frontend_matching test_pretraining_recipe
""".split()  # noqa: SIM905


def pytest_collection_modifyitems(items):
    ranks = {name: rank for rank, name in enumerate(SLOW)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@pytest.fixture
def parity(record_property):
    """``assert_close`` with another implementation's numbers; families_table.py tells the largest
    difference."""
    largest = 0.0

    def check(found, expected, atol=1e-4, rtol=1e-4):
        nonlocal largest
        largest = max(largest, (found - expected).abs().max().item())
        torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)

    yield check
    record_property("difference", largest)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """``made_once(name, make)``: the folder that ``make(folder)`` has filled, by one of pytest's
    workers for all of them. Tests read it and write elsewhere."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers

    def folder_of(name: str, make) -> Path:
        folder = root / "made_once" / name
        folder.parent.mkdir(exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            done = folder.with_suffix(".done")
            if not done.exists():
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def corpus(made_once) -> Path:
    """13 utterances to train on, 5 to validate, 11 to test."""

    def make(folder):
        for split, num_utterances in [("train", 13), ("valid", 5), ("test", 11)]:
            write_split(folder, split, num_utterances, seed=len(split))
        write_dictionary(folder)

    return made_once("corpus", make)


@pytest.fixture(scope="session")
def data(made_once) -> Path:
    """As the corpus, with 13 utterances to train on and 7 to test."""

    def make(folder):
        write_split(folder, "train", 13)
        write_split(folder, "test", 7, seed=1)
        write_dictionary(folder)

    return made_once("data", make)


@pytest.fixture(scope="session")
def pretrained(made_once) -> Path:
    """A random wav2vec 2.0."""
    return made_once("pretrained", lambda folder: write_pretrained(folder / "tiny.pt")) / "tiny.pt"


@pytest.fixture(scope="session")
def model(made_once, pretrained, corpus) -> Path:
    """A random fine-tuned model with the corpus's dictionary, which decodes to something."""
    dictionary = Dictionary.load(str(corpus / "dict.ltr.txt"))
    folder = made_once(
        "model", lambda folder: write_finetuned(folder / "model.pt", pretrained, dictionary)
    )
    return folder / "model.pt"


@pytest.fixture(scope="session")
def trained(made_once, corpus, pretrained):
    """``trained(name, *overrides)``: the folder of a training on the corpus."""

    def folder_of(name: str, *overrides) -> Path:
        return made_once(
            f"trained_{name}", lambda folder: train(folder, corpus, pretrained, *overrides)
        )

    return folder_of


@pytest.fixture(scope="session")
def full(trained) -> Path:
    """A training with every reduction off."""
    return trained("full")


@pytest.fixture(scope="session")
def with_exits(trained) -> Path:
    """A training with early exits."""
    return trained("exits", "model.exit_layers=upper", "criterion._name=ctc_exits")


@pytest.fixture(autouse=True)
def _own_threads():
    """A command that was told how many threads to take leaves them to the next test."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
