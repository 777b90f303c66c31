"""The benchmark's engines: each can be asked for, and no name is one of nothing."""

import argparse

import pytest
from helpers.commands import REPO
from helpers.processes import run_forked

FOLDER = REPO / "examples/benchmark"


@pytest.fixture
def benchmark(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(FOLDER)
    import benchmark

    return benchmark


def test_every_engine_can_be_asked_for_and_exists(benchmark):
    from engines import ENGINES

    defaults = benchmark.PEERS + benchmark.OURS
    parser = argparse.ArgumentParser()
    named = benchmark.OF_LARGE + benchmark.OF_X1
    benchmark.add_workload(parser, "1", "base", [1], defaults, named)
    assert parser.parse_args([]).engines == defaults
    for name in defaults + named:
        assert parser.parse_args(["--engines", name]).engines == [name]
        assert name in ENGINES


def test_a_reduced_engine_has_the_macs_of_its_model(benchmark):
    batches = [[32000]]
    whole = benchmark.macs_of("none", "base", batches, [1])[1]
    reduced = benchmark.macs_of("fbank+pool2_keep8", "base", batches, [1])[1]
    assert 0.2 < reduced / whole < 0.3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engines", "ours fp32"], "--engines must hold 'stock fairseq'"),
        (
            ["--arch", "base", "--engines", "stock fairseq", "CTranslate2 int8"],
            "CTranslate2 int8: of --arch large alone",
        ),
        (
            ["--engines", "stock fairseq", "ours int8, pool2"],
            "ours int8, pool2: reduced already, so of --factors 1 alone",
        ),
    ],
)
def test_engines_that_cannot_be_compared_are_refused(tmp_path, options, said):
    pytest.importorskip("matplotlib")
    found = run_forked(FOLDER / "benchmark.py", tmp_path / "out", *options, check=False)
    assert found.returncode == 2 and said in found.stderr
    assert not (tmp_path / "out").exists()
