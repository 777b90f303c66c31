"""MACs against fvcore, against layers' own calls and against the study's table."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import REPO
from helpers.models import build_model, write_pretrained
from torch import nn

from fairseq_speedup.__main__ import main
from fairseq_speedup.macs import MacCounter, UncountableError
from fairseq_speedup.profiling.fvcore_count import fvcore_macs
from fairseq_speedup.profiling.profile import batch_lengths, read_lengths

OPTIONS = [
    {},
    {"downsample": "conv", "downsample_factor": 2.0},
    {"downsample": "average", "downsample_factor": 3.0, "logit_upsample": 2},
    {"downsample": "signal", "downsample_factor": 2.67, "head": "mlp"},
    {"downsample": "signal", "downsample_factor": 4.0, "logit_upsample": 3},
]


@pytest.mark.parametrize("num_samples", [4000, 4321, 8877])
@pytest.mark.parametrize("options", OPTIONS)
def test_closed_form_equals_fvcore(pretrained, options, num_samples):
    model = build_model(pretrained, **options)
    assert MacCounter(model).count([num_samples]).sum() == fvcore_macs(model, num_samples)


def test_stock_models_are_counted_too(pretrained):
    model = build_model(pretrained, stock=True)
    assert MacCounter(model).count([5000]).sum() == fvcore_macs(model, 5000)


@pytest.mark.parametrize("conv_pos", [7, 8])
def test_group_norm_front_end_and_odd_kernels_are_counted(tmp_path, conv_pos):
    path = write_pretrained(tmp_path / "tiny.pt", extractor_mode="default", conv_pos=conv_pos)
    model = build_model(path)
    assert MacCounter(model).count([5000]).sum() == fvcore_macs(model, 5000)


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS)
def test_counting_modules_equals_what_hooks_on_modules_see(pretrained, options):
    model = build_model(pretrained, **options)
    seen = []

    def hook(module, inputs, output):
        outputs = output.shape[-1] if isinstance(module, nn.Conv1d) else inputs[0][..., 0].numel()
        weights = module.weight.numel()
        seen.append(outputs * weights)

    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            module.register_forward_hook(hook)
    model(source=torch.randn(1, 5000), padding_mask=None)
    counted = MacCounter(model, count="modules").count([5000]).sum()
    if options.get("downsample") == "signal":
        counted.waveform_reduction = 0  # its filter is a buffer, not a module
    assert counted.total == sum(seen)


def test_counts_of_many_lengths_are_the_counts_of_each(pretrained):
    counter = MacCounter(build_model(pretrained, downsample="conv", downsample_factor=2.0))
    lengths = np.array([3000, 4444, 9001])
    many = counter.count(lengths)
    assert many.total.tolist() == [int(counter.count([n]).total[0]) for n in lengths]


def test_an_unknown_count_is_refused(pretrained):
    with pytest.raises(ValueError, match="unknown count='some'; valid values: full, modules"):
        MacCounter(build_model(pretrained), count="some")


def test_layers_without_a_closed_form_are_refused_by_name(pretrained):
    model = build_model(pretrained)
    model.w2v_encoder.w2v_model.encoder.layers[0] = nn.Identity()
    with pytest.raises(UncountableError, match="Identity"):
        MacCounter(model)


# Mean frames per batch are all that the study's count depends on: the lengths of LibriSpeech
# test-clean, where the file with them is at hand.
LENGTHS = Path(__file__).parents[2] / "shared/librispeech_eval.tsv.gz"


@pytest.mark.skipif(not LENGTHS.exists(), reason="no file with LibriSpeech's lengths")
@pytest.mark.parametrize(
    ("options", "gmacs"),
    [
        ([], 386.538),
        (["downsample=signal", "downsample_factor=2"], 192.97),
        (["downsample=conv", "downsample_factor=2"], 192.97),
        (["downsample=conv", "downsample_factor=4"], 96.11),
    ],
)
def test_the_studys_macs_per_batch(tmp_path, capsys, options, gmacs):
    lengths = tmp_path / "lengths.txt"
    with gzip.open(LENGTHS, "rt") as rows:
        cells = [row.split("\t") for row in rows]
    lengths.write_text("".join(f"{int(c[2]) / 100}\n" for c in cells if c[0] == "test-clean"))
    batching = ["--lengths", str(lengths), "--batch-size", "4", "--sort"]
    model = ["--arch", "large", "--num-labels", "31", "head=mlp", *options]
    assert main(["profile", *model, *batching, "--count", "modules", "--time", "0"]) == 0
    printed = capsys.readouterr().out
    total = next(line for line in printed.splitlines() if line.startswith("total"))
    assert float(total.split()[3]) == pytest.approx(gmacs, rel=0.01)


class Arguments:
    def __init__(self, lengths=None, seconds="10"):
        self.lengths, self.seconds = lengths, seconds


def test_lengths_are_read_from_seconds_and_from_manifests(tmp_path):
    (tmp_path / "seconds.txt").write_text("1.5\n2\n\n")
    (tmp_path / "train.tsv").write_text("/root\na.wav\t16000\nb.wav\t800\n")
    assert read_lengths(Arguments(seconds="0.5,1")).tolist() == [8000, 16000]
    assert read_lengths(Arguments(str(tmp_path / "seconds.txt"))).tolist() == [24000, 32000]
    assert read_lengths(Arguments(str(tmp_path / "train.tsv"))).tolist() == [16000, 800]
    with pytest.raises(ValueError, match=r"--seconds, line 2: expected a length.*'two'"):
        read_lengths(Arguments(seconds="1,two"))
    with pytest.raises(ValueError, match="not above 0"):
        read_lengths(Arguments(seconds="0"))


def test_batches_are_sorted_from_long_to_short():
    batches = batch_lengths(np.array([3, 1, 5, 2, 4]), 2, sort=True)
    assert [batch.tolist() for batch in batches] == [[5, 4], [3, 2], [1]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["downsample=tree"], "unknown downsample='tree'"),
        (["downsmple=conv"], "unknown model options: downsmple; reductions: downsample"),
        (["downsample"], "'downsample' is not of the form option=value"),
        (["--batch-size", "0"], "--batch-size 0 is out of range"),
        (["--checkpoint", "lost.pt"], "checkpoint lost.pt does not exist"),
        (["--lengths", "lost.txt"], "lost.txt"),
        (["--threads", "-1"], "--threads -1 is out of range; it must be 1 or more"),
        (["--num-labels", "2"], "--num-labels 2 is out of range; it must be 5 or more"),
        (["--seconds", "1e9"], "at most 3600 seconds"),
        (["--config", "setup.py"], "setup.py is not a YAML config with a 'model:' section"),
        (["--config", "config/finetuning/reduction/conv2.yaml"], "with a 'model:' section"),
    ],
)
def test_profile_refuses_bad_input_in_one_line(capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(REPO)
    assert main(["profile", "--time", "0", *arguments]) == 1
    errors = capsys.readouterr().err
    assert len(errors.strip().splitlines()) == 1
    assert re.search(words, errors)
