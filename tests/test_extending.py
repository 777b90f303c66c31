"""The manual's reduction of one's own (docs/extend.md): a user directory, through every command."""

import importlib.util
import json

import pytest
import torch
from helpers.commands import REPO, USER_DIR, decoding_arguments, train
from helpers.models import batch_of, build_model
from helpers.processes import run_forked
from torch import nn

from fairseq_speedup.frames import FRAME_POOLS, MeanPool
from fairseq_speedup.profiling.fvcore_count import check_macs

EXAMPLE = REPO / "examples/extending/attentive_pool"
OPTIONS = {"frame_pool": 2, "frame_pool_method": "attentive"}
COUNTS = [9000, 4000, 7000]
OURS = "fairseq-speedup"


@pytest.fixture
def attentive():
    spec = importlib.util.spec_from_file_location("attentive_pool", EXAMPLE / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.AttentivePool
    del FRAME_POOLS["attentive"]


def test_it_begins_as_the_mean_and_learns_weights(attentive):
    frames = torch.tensor([[1.0, 2, 3, 4, 5, 0], [1, 0, 0, 0, 0, 0]])[:, :, None].expand(2, 6, 4)
    pool = attentive(4, 3)
    pooled = pool(frames, torch.tensor([5, 1]))
    torch.testing.assert_close(pooled[:, :, 0], torch.tensor([[2.0, 4.5], [1, 0]]))
    nn.init.constant_(pool.score.weight, 100.0)  # the largest frame of each window
    pooled = pool(frames, torch.tensor([5, 1]))
    torch.testing.assert_close(pooled[:, :, 0], torch.tensor([[3.0, 5], [1, 0]]))


@torch.no_grad()
def test_an_utterance_gives_the_same_alone_as_in_a_batch(attentive, pretrained):
    model = build_model(pretrained, **OPTIONS)
    for parameter in model.w2v_encoder.frame_reduction.parameters():
        nn.init.normal_(parameter, std=0.3)  # as after training
    net_input = batch_of(COUNTS)
    logits = model.get_logits(model(**net_input))
    for i, count in enumerate(COUNTS):
        alone = {"source": net_input["source"][i : i + 1, :count], "padding_mask": None}
        expected = model.get_logits(model(**alone))
        torch.testing.assert_close(logits[: len(expected), i], expected[:, 0], atol=1e-5, rtol=1e-4)


def test_its_macs_are_those_that_fvcore_counts(attentive, pretrained):
    check = check_macs([build_model(pretrained, **OPTIONS)], 20000)
    assert check["closed_form"] == pytest.approx(check["fvcore"], rel=1e-3)


@torch.no_grad()
def test_the_exported_file_gives_the_models_numbers(attentive, pretrained, tmp_path):
    pytest.importorskip("onnxruntime")
    from helpers.exported import BATCHES, export, given, largest_difference

    model = build_model(pretrained, **OPTIONS)
    for parameter in model.w2v_encoder.frame_reduction.parameters():
        nn.init.normal_(parameter, std=0.3)  # as after training
    batches = [given(model, counts) for counts in BATCHES]
    file, found = export(model, tmp_path / "model.onnx")
    assert found["fp32"].largest < 1e-4
    assert largest_difference(file, batches) < 1e-4


def test_a_pool_that_keeps_its_lengths_is_refused_in_words(pretrained, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    from helpers.exported import export

    def forward(self, frames, lengths):
        return frames.unflatten(1, (-1, self.factor)).mean(dim=2)

    monkeypatch.setattr(MeanPool, "forward", forward)
    from fairseq_speedup.export.onnx_file import ExportError

    with pytest.raises(ExportError, match=r"graph does not run on .* keeps the lengths"):
        export(build_model(pretrained, frame_pool=2), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_it_goes_through_every_command(corpus, pretrained, tmp_path):
    options = [f"{'model.' + name}={value}" for name, value in OPTIONS.items()]
    train(tmp_path, corpus, pretrained, f"common.user_dir={EXAMPLE}", *options)
    checkpoint = tmp_path / "checkpoints/checkpoint_last.pt"
    arguments = decoding_arguments(corpus, checkpoint, tmp_path / "results")
    arguments[arguments.index(str(USER_DIR))] = EXAMPLE
    run_forked("fairseq-generate", *arguments)
    compute = json.loads((tmp_path / "results/compute.json").read_text())
    assert OPTIONS.items() <= compute["options"].items()
    files = [corpus / f"audio/test-{index}.wav" for index in range(2)]
    found = run_forked(
        OURS, "--user-dir", EXAMPLE, "transcribe", "--cpu", "--path", checkpoint, *files
    )
    assert len(found.stdout.splitlines()) == 2
    refused = run_forked(OURS, "transcribe", "--cpu", "--path", checkpoint, *files, check=False)
    assert refused.returncode == 1
    assert "unknown frame_pool_method='attentive'; valid values: conv, mean" in refused.stderr
    pytest.importorskip("onnxruntime")
    exported = tmp_path / "model.onnx"
    export = ["export", "--path", checkpoint, "--output", exported]
    run_forked(OURS, "--user-dir", EXAMPLE, *export)
    onnx = run_forked(OURS, "transcribe", "--path", exported, *files)
    assert onnx.stdout == found.stdout


def test_a_folder_that_is_not_there_is_named():
    done = run_forked(OURS, "--user-dir", "lost", "inspect", "x.pt", check=False)
    assert done.returncode == 1
    assert "--user-dir lost is not a folder" in done.stderr
