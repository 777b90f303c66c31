"""``python -m fairseq_speedup inspect``; every public form is inspected in test_families.py and
test_finetuned_eras.py, refused files in test_bad_checkpoints.py and test_malicious_checkpoints.py.
"""

import json
import re
import sys

import pytest
import torch
from helpers.corpora import LETTERS
from helpers.models import build_model, write_pretrained, write_without_dictionary

from fairseq_speedup.__main__ import main
from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.inspection.facts import inspect_file
from fairseq_speedup.inspection.layers import sizes_by_layer
from fairseq_speedup.inspection.words import text as as_text
from fairseq_speedup.macs import MacCounter
from fairseq_speedup.report import pictures

REDUCTIONS = {
    "conv2": {"downsample": "conv", "downsample_factor": 2.0},
    "layers": {"keep_layers": "1"},
    "exits": {"exit_layers": "0"},
    "pool": {"frame_pool": 2},
    "merge": {"merge_ratio": 0.2},
    "fbank": {"frontend": "fbank"},
    "mlp": {"head": "mlp"},
    "bilstm": {"head": "bilstm", "head_dim": 8},
    "upsampled": {"logit_upsample": 2},
    "speeds": {"downsample": "conv", "downsample_factors": [1, 2]},
    "gates": {"prune_target": 0.6},
}


@pytest.mark.parametrize("options", REDUCTIONS.values(), ids=REDUCTIONS)
def test_a_reduced_model_is_told_with_its_reductions(tmp_path, pretrained, options):
    path = tmp_path / "reduced.pt"
    write_without_dictionary(path, pretrained, "speedup_ctc", labels=LETTERS, **options)
    report = inspect_file(str(path))
    assert report["error"] is None
    assert report["reductions"] == options
    assert report["kind"] == "speedup_ctc"
    gated = "prune_target" in options
    assert report["use"].endswith("prune" if gated else "model.w2v_path")
    assert report["dictionary_size"] == 4 + len(LETTERS)
    model = build_model(pretrained, labels=LETTERS, **options)
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    macs = MacCounter(model).count([160000]).sum()
    for stage, counted in macs.as_dict().items():
        assert report["macs_per_second_by_stage"][stage] == pytest.approx(counted / 10)


def test_a_whole_model_of_ours_is_a_starting_point_too(tmp_path, pretrained):
    write_without_dictionary(tmp_path / "whole.pt", pretrained, "speedup_ctc")
    report = inspect_file(str(tmp_path / "whole.pt"))
    assert report["reductions"] == {}
    assert report["use"].endswith("model.w2v_path")


def test_a_model_without_a_head_is_named(tmp_path, pretrained, capsys):
    path = tmp_path / "bad.pt"
    state = write_without_dictionary(path, pretrained, "speedup_ctc")
    state["model"] = {k: v for k, v in state["model"].items() if ".proj." not in k}
    torch.save(state, path)
    assert main(["inspect", str(path)]) == 1
    assert "bad.pt has neither a dictionary nor weights under" in capsys.readouterr().err


def test_what_pruning_left_is_drawn_beside_the_whole(tmp_path, pretrained, monkeypatch, capsys):
    report = {"cnn": [(8, 10, 5), (5, 3, 2)], "layers": 3, "heads": 4, "feed_forward": 32}
    reduced = {"keep_layers": "0,2", "frontend": "fbank"}
    found = sizes_by_layer({**report, "pruned": None, "reductions": reduced})
    assert list(found.values()) == [[], [4, 4], [32, 32]]
    whole = sizes_by_layer({**report, "pruned": None})
    assert list(whole.values()) == [[8, 5], [4, 4, 4], [32, 32, 32]]
    pruned = {"share": 0.5, "heads": [[0, 3], [], [1]], "units": [7, 0, 9]}
    left = sizes_by_layer({**report, "pruned": pruned})
    assert list(left.values()) == [[8, 5], [2, 0, 1], [7, 0, 9]]
    assert list(whole) == list(left) == ["CNN channels", "attention heads", "feed-forward units"]
    drawn = []
    monkeypatch.setattr(pictures, "draw_sizes", lambda models, path: drawn.append((models, path)))
    picture = tmp_path / "new" / "sizes.png"
    given = ["inspect", str(pretrained), str(tmp_path / "gone.pt"), "--picture", str(picture)]
    assert main(given) == 1  # what can be read is drawn
    monkeypatch.undo()
    ((models, path),) = drawn
    assert list(models) == [str(pretrained)]
    assert path == picture and not picture.exists()
    pictures.draw_sizes({"full.pt": whole, "pruned.pt": left}, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "folder.png").mkdir()
    for given, message in [
        ("sizes.doc", "must be a file that ends in .png, .svg, .pdf"),
        (".png", "must be a file that ends in"),
        (str(tmp_path / "folder.png"), "is a folder; give a file"),
        (f"{pretrained}/sizes.png", "is no folder"),
    ]:
        assert main(["inspect", str(pretrained), "--picture", given]) == 1
        assert message in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "gone.pt"), "--picture", str(tmp_path / "a.png")]) == 1
    assert "is not drawn: no file can be used" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "adjustText", None)
    assert main(["inspect", str(pretrained), "--picture", "sizes.png"]) == 1
    assert "leave --picture out" in capsys.readouterr().err


def test_an_encoder_without_its_cnn_is_told(tmp_path):
    path = write_pretrained(tmp_path / "tiny.pt")
    state = torch.load(path)
    state["model"] = {k: v for k, v in state["model"].items() if "feature_extractor" not in k}
    torch.save(state, path)
    report = inspect_file(str(path))
    assert report["error"] is None
    assert "model.frontend=fbank" in report["use"]


def test_people_and_machines_read_the_same(tmp_path, pretrained, capsys):
    bad = tmp_path / "bad.pt"
    bad.write_text("not a checkpoint")
    assert main(["inspect", str(pretrained), "--seconds", "2"]) == 0
    text = capsys.readouterr().out
    assert main(["inspect", str(pretrained), str(bad), "--seconds", "2", "--json"]) == 1
    good, refused = json.loads(capsys.readouterr().out)
    assert f"{good['file']}, pretrained wav2vec2\n" in text
    for expected in (
        f"{good['bytes']:,} bytes, zip",
        "model.w2v_path, with task.normalize=true",
        "2 transformer layers of 16, 2 heads, feed-forward 32, norm after each block",
        "7 convolutions, a frame every 320 samples, layer norm after each convolution",
        f"{good['parameters']:,} (front_end",
        f"{sum(good['macs_per_second_by_stage'].values()) / 1e9:.3f} (front_end",
        "in 2 s: ",
        "quantizer (3 tensors, ",
    ):
        assert expected in text, expected
    assert good["safe"] and not refused["safe"]
    assert good["error"] is None
    assert refused["file"] in refused["error"]


def test_lengths_that_mean_nothing_are_refused(pretrained, capsys):
    assert main(["inspect", str(pretrained), "--seconds", "0"]) == 1
    assert "--seconds 0.0 is out of range; it must be 0.1 to 3600" in capsys.readouterr().err


def test_what_is_a_part_of_a_folder_is_told_and_the_whole_asked_for(tmp_path, capsys):
    folder = tmp_path / "wav2vec2-base"
    folder.mkdir()
    torch.save({"wav2vec2.masked_spec_embed": torch.zeros(4)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").write_bytes(bytes(64))
    whole = r"\(config.json with model.safetensors or pytorch_model.bin\)"
    for name, words in [
        ("", f"is a folder without config.json; .*{whole}"),
        ("pytorch_model.bin", f"holds weights, which alone are no model: .*{whole}"),
        ("model.safetensors", f"holds safetensors, which alone are no model: .*{whole}"),
    ]:
        path = str(folder / name).rstrip("/")
        assert main(["inspect", path]) == 1
        assert re.search(f"{path} {words}", capsys.readouterr().err)
        with pytest.raises(CheckpointError, match=f"model.w2v_path: {path} {words}"):
            build_model(path)
    text = as_text(inspect_file(str(tmp_path)))
    assert text.startswith(f"{tmp_path}\n  cannot be used    {tmp_path} is a folder without config")
    assert "  size  " not in text and "safe to load" not in text  # there is nothing to look at
    saved = tmp_path / "checkpoints"
    saved.mkdir()
    (saved / "checkpoint_best.pt").write_bytes(b"")
    error = inspect_file(str(saved))["error"]
    assert error.endswith("; give one of its files: checkpoint_best.pt")


@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_an_exported_file_is_called_that(tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b"x")
    assert main(["inspect", str(tmp_path / name)]) == 1
    assert f"{name} is an exported file, which transcribe and" in capsys.readouterr().err
