"""ONNX files: ONNX Runtime gives the model's numbers, whatever is reduced."""

import dataclasses
import json
import operator
import re
import sys
import types

import numpy as np
import pytest
import soundfile
import torch
from helpers.commands import generate_here
from helpers.corpora import LETTERS, letters_dictionary
from helpers.exported import BATCHES, Task, export, given, largest_difference
from helpers.models import build_model, write_finetuned, write_pretrained
from helpers.reductions import REDUCTIONS

pytest.importorskip("onnxruntime")
import onnx

from fairseq_speedup.__main__ import main
from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.export import ExportedFileError, OnnxModel, exported, onnx_file, session
from fairseq_speedup.export.command import load_whole, metadata_of
from fairseq_speedup.export.onnx_file import ExportError, export_onnx
from fairseq_speedup.export.transformer import ExportableLinear, ExportableReusedAttention
from fairseq_speedup.inference.low_rank import TwoLinears
from fairseq_speedup.low_rank.linear import LowRankLinear
from fairseq_speedup.transcription import transcribe
from fairseq_speedup.transformer.early_exit import EXIT_CRITERIA, ExitCriterion

CASES = {
    **REDUCTIONS,
    "none": {},
    "exits": {"exit_layers": "1,2", "exit_criterion": "layer", "exit_threshold": 1.0},
    "fraction": {"downsample": "signal", "downsample_factor": 1.5},
    "stock": {"padding": "stock"},
    "every_stage": {
        "downsample": "conv",
        "downsample_factor": 2.0,
        "frame_pool": 2,
        "keep_layers": "0,2,3",
        "merge_ratio": 0.2,
        "head": "mlp",
        "logit_upsample": 2,
    },
    "fbank_pool_bilstm": {
        "frontend": "fbank",
        "frame_pool": 2,
        "head": "bilstm",
        "head_dim": 6,
        "logit_upsample": 2,
    },
    "average_exit_merge": {
        "downsample": "average",
        "downsample_factor": 3.0,
        "exit_layers": "1",
        "exit_criterion": "layer",
        "merge_ratio": 0.3,
    },
}
GROUP_NORM = ["none", "conv", "stock", "every_stage"]  # the front-end is all that differs


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Pretrained models with either kind of CNN."""
    folder = tmp_path_factory.mktemp("encoders")
    common = {"encoder_layers": 4}
    large = {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True}
    return {
        "large": write_pretrained(folder / "large.pt", **common, **large),
        "base": write_pretrained(folder / "base.pt", extractor_mode="default", **common),
    }


@pytest.mark.parametrize(
    ("encoder", "name"),
    [("large", name) for name in CASES] + [("base", name) for name in GROUP_NORM],
)
def test_the_file_gives_the_models_numbers_at_any_length(encoders, tmp_path, encoder, name):
    model = build_model(encoders[encoder], **CASES[name])
    batches = [given(model, counts) for counts in BATCHES]
    file, found = export(model, tmp_path / "model.onnx")
    assert found["fp32"].largest < 1e-4
    assert largest_difference(file, batches) < 1e-4
    assert file.metadata.largest_difference == found["fp32"].largest
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]  # nothing else is left


@pytest.mark.parametrize("family", ["wavlm", "data2vec"])
def test_other_families(tmp_path, family):
    pytest.importorskip("transformers")
    from public_checkpoints import FORMS, reference, write_form

    form = next(name for name in FORMS if family in name.lower())
    write_form(tmp_path / "public.pt", form, reference(form))
    model = build_model(tmp_path / "public.pt", normalize=FORMS[form][2])
    batches = [given(model, counts) for counts in BATCHES]
    file, _ = export(model, tmp_path / "model.onnx")
    assert largest_difference(file, batches) < 1e-4


# four layers of four products, the projection before them, the CNN's but the first, upsampling
@pytest.mark.parametrize(
    ("name", "with_cnn", "products"),
    [("none", False, 17), ("none", True, 23), ("conv_pool", False, 18), ("fbank", True, 17)],
)
def test_int8_stays_near_and_says_how_near(encoders, tmp_path, name, with_cnn, products):
    model = build_model(encoders["large"], **CASES[name])
    batches = [given(model, counts) for counts in BATCHES]
    file, found = export(model, tmp_path / "model.onnx", int8=True, with_cnn=with_cnn)
    assert found["fp32"].largest < 1e-4 < found["int8"].largest
    assert file.metadata.precision == "int8"
    assert file.metadata.weight_bits == exported.weight_bits()
    assert file.metadata.largest_difference == found["int8"].largest
    assert largest_difference(file, batches) < 0.5
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert kinds.count("MatMulInteger") == products


def test_the_chosen_speed_is_exported(encoders, tmp_path):
    options = {"downsample": "conv", "downsample_factors": [1.0, 2.0], "depths": [2, 4]}
    for factor, depth in [(1.0, 4), (2.0, 2)]:
        model = build_model(
            encoders["large"], downsample_factor=factor, keep_layers="all", **options
        )
        model.w2v_encoder.speeds.default = dataclasses.replace(
            model.w2v_encoder.speeds.default, depth=depth
        )
        batches = [given(model, counts) for counts in BATCHES]
        file, _ = export(model, tmp_path / f"{depth}.onnx")
        assert largest_difference(file, batches) < 1e-4
        assert file.metadata.samples_per_frame == 320 * factor
        kinds = [node.op_type for node in onnx.load(file.path).graph.node]
        assert kinds.count("Softmax") == depth  # layers that are not run are left out


def test_metadata(encoders, tmp_path):
    options = {"downsample": "conv", "downsample_factor": 2.0, "logit_upsample": 2}
    model = build_model(encoders["large"], **options)
    needed = model.w2v_encoder.needed_samples()
    metadata = export(model, tmp_path / "model.onnx")[0].metadata
    assert metadata.symbols == Task(14).target_dictionary.symbols and metadata.blank == 0
    assert (metadata.labels, metadata.sample_rate_hz, metadata.normalize) == ("ltr", 16000, True)
    assert metadata.frame_grid() == model.w2v_encoder.frame_grid()
    assert metadata.samples_per_frame == 320 and metadata.needed_samples == needed
    assert metadata.reductions == options and metadata.model == "model.pt"
    assert metadata.versions["onnxruntime"] == session.onnxruntime.__version__
    assert (metadata.precision, metadata.largest_difference < 1e-4) == ("fp32", True)


def test_other_weights_are_noticed_and_nothing_is_written(encoders, tmp_path, monkeypatch):
    record = onnx_file.record

    def record_changed(module, *args):
        module.head.bias[7] += 1e-3
        record(module, *args)

    monkeypatch.setattr(onnx_file, "record", record_changed)
    with pytest.raises(ExportError, match=r"is not written: .* differ .* more than 0.0001"):
        export(build_model(encoders["large"]), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exit_layers": "1", "exit_criterion": "entropy"}, "exit_criterion=entropy cannot be"),
        ({"exit_layers": "1", "exit_criterion": "similarity"}, "each utterance of a batch would"),
        ({"blank_weight": 1.0}, "blank_weight=1.0 belongs to decoding"),
    ],
    ids=str,
)
def test_what_cannot_be_exported_is_refused_in_words(encoders, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        export(build_model(encoders["large"], **options), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_too_many_weights_for_one_file(encoders, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 1000)
    with pytest.raises(ExportError, match=r"cannot be one ONNX file.*keep_layers"):
        export(build_model(encoders["large"]), tmp_path / "model.onnx")


def test_int8_is_judged_by_what_is_written(tmp_path, monkeypatch):
    wide = {"encoder_embed_dim": 64, "encoder_ffn_embed_dim": 1024}
    path = write_pretrained(tmp_path / "wide.pt", **wide)
    expected = export(build_model(path), tmp_path / "expected.onnx", int8=True)[1]["int8"]
    size = (tmp_path / "expected.onnx").stat().st_size
    num_parameters = sum(parameter.numel() for parameter in build_model(path).parameters())
    limit = 3 * num_parameters
    assert size < limit
    monkeypatch.setattr(onnx_file, "MOST_BYTES", limit)
    with pytest.raises(ExportError, match=r"cannot be one ONNX file.*or give --int8"):
        export(build_model(path), tmp_path / "model.onnx")
    found = export(build_model(path), tmp_path / "model.onnx", int8=True)[1]["int8"]
    assert found == expected
    assert sorted(each.name for each in tmp_path.glob("*.onnx*")) == ["expected.onnx", "model.onnx"]
    assert (tmp_path / "model.onnx").stat().st_size < limit
    monkeypatch.setattr(onnx_file, "MOST_BYTES", size // 2)
    with pytest.raises(ExportError, match=r"cannot be one ONNX file.*\(keep_layers\)$"):
        export(build_model(path), tmp_path / "too_large.onnx", int8=True)


def test_layers_that_are_not_exported_are_not_counted(encoders, tmp_path, monkeypatch):
    exits = {"exit_layers": "0", "exit_criterion": "layer", "exit_threshold": 0.0}
    model = build_model(encoders["large"], **exits)
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 4 * sum(p.numel() for p in model.parameters()) - 1)
    export(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").exists()


# -- the command and the runner ------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(encoders, tmp_path_factory):
    """A checkpoint and the file that the command made of it."""
    folder = tmp_path_factory.mktemp("exported")
    dictionary = letters_dictionary()
    checkpoint = write_finetuned(folder / "best.pt", encoders["large"], dictionary)
    output = folder / "model.onnx"
    assert main(["export", "--path", str(checkpoint), "--output", str(output)]) == 0
    return checkpoint, output


def test_the_command(written, tmp_path, capsys):
    checkpoint, _ = written
    output = tmp_path / "model.onnx"
    command = ["export", "--path", str(checkpoint), "--output", str(output)]
    command += ["--model-overrides", "{'keep_layers': '2'}", "--int8"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "fp32: log-probabilities differ" in printed and "int8: log-prob" in printed
    file = OnnxModel(str(output))
    assert file.metadata.symbols[4:] == LETTERS
    assert file.metadata.reductions == {"keep_layers": "2"}
    before = output.read_bytes()
    assert main(command) == 1
    assert "--overwrite" in capsys.readouterr().err and output.read_bytes() == before
    assert main([*command, "--overwrite"]) == 0


def test_a_stock_checkpoint_is_exported_as_it_is(tmp_path, written):
    checkpoint, _ = written
    state = torch.load(checkpoint, weights_only=False)
    state["cfg"]["model"]["_name"] = "wav2vec_ctc"
    state["cfg"]["task"]["_name"] = "audio_finetuning"
    ours = set(state["cfg"]["model"]) & set(onnx_reductions())
    for name in ours:
        del state["cfg"]["model"][name]
    torch.save(state, tmp_path / "stock.pt")
    model, _, task = load_whole(str(tmp_path / "stock.pt"), None, {})
    assert model.cfg.padding == "stock"
    batches = [given(model, counts) for counts in BATCHES]
    export_onnx(
        model, str(tmp_path / "model.onnx"), metadata_of(model, task, "stock.pt"), int8=False
    )
    # logits between -100 and 100
    assert largest_difference(OnnxModel(str(tmp_path / "model.onnx")), batches) < 1e-3


def onnx_reductions():
    from fairseq_speedup.config import REDUCTION_OPTIONS

    return REDUCTION_OPTIONS


def test_bad_input_to_the_command(encoders, written, tmp_path, capsys, monkeypatch):
    checkpoint, _ = written
    command = ["export", "--path", str(checkpoint), "--output"]
    assert main([*command, str(tmp_path / "none" / "model.onnx")]) == 1
    assert f"folder {tmp_path / 'none'} does not exist" in capsys.readouterr().err
    for path, words in [
        ("none.pt", "none.pt does not exist"),
        (encoders["large"], "a wav2vec2 model"),
    ]:
        assert main(["export", "--path", str(path), "--output", str(tmp_path / "model.onnx")]) == 1
        assert words in capsys.readouterr().err
    monkeypatch.setattr(session, "onnxruntime", None)
    assert main([*command, str(tmp_path / "model.onnx")]) == 1
    assert "the extra 'onnx'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_runner_refuses_what_does_not_fit(written):
    file = OnnxModel(str(written[1]))
    needed = file.metadata.needed_samples
    assert file.log_probs(np.zeros((2, needed)))[1].tolist() == [1, 1]
    with pytest.raises(ValueError, match=f"{needed - 1} samples is shorter.*{needed}"):
        file.log_probs(np.zeros((1, needed - 1)))
    with pytest.raises(ValueError, match=r"lengths \[9000\] do not fit"):
        file.log_probs(np.zeros((1, 8000)), [9000])
    with pytest.raises(ValueError, match="a batch of waveforms"):
        file.log_probs(np.zeros(8000))


def test_files_that_are_no_models_of_ours_are_refused(written, tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        OnnxModel(str(path))
    path.write_bytes(b"nonsense")
    with pytest.raises(ExportedFileError, match="cannot be read as an ONNX model"):
        OnnxModel(str(path))
    good = onnx.load(written[1])
    strings = {each.key: each.value for each in good.metadata_props}
    changes = [
        ({"format_version": "99"}, "has format_version 99.*export the checkpoint again"),
        ({"format": "another"}, "is not a model of python -m fairseq_speedup export"),
        ({"blank": json.dumps(99)}, "metadata is damaged"),
        ({"symbols": "["}, "metadata is damaged"),
    ]
    for change, words in changes:
        onnx.helper.set_model_props(good, strings | change)
        onnx.save(good, path)
        with pytest.raises(ExportedFileError, match=words):
            OnnxModel(str(path))


def test_a_file_of_before_an_optional_field_is_read(written, tmp_path):
    before = onnx.load(written[1])
    strings = {each.key: each.value for each in before.metadata_props}
    del strings["kept_fp32"], strings["weight_bits"]
    before.ClearField("metadata_props")
    onnx.helper.set_model_props(before, strings)
    onnx.save(before, tmp_path / "model.onnx")
    metadata = OnnxModel(str(tmp_path / "model.onnx")).metadata
    assert (metadata.kept_fp32, metadata.weight_bits) == ([], None)
    del strings["symbols"]
    before.ClearField("metadata_props")
    onnx.helper.set_model_props(before, strings)
    onnx.save(before, tmp_path / "model.onnx")
    with pytest.raises(ExportedFileError, match=r"metadata is damaged .*symbols"):
        OnnxModel(str(tmp_path / "model.onnx"))


def test_int8_of_another_kind_of_cpu_is_told(written, tmp_path, monkeypatch, capsys):
    good = onnx.load(written[1])
    strings = {each.key: each.value for each in good.metadata_props}
    onnx.helper.set_model_props(good, strings | {"weight_bits": "8"})
    onnx.save(good, tmp_path / "model.onnx")
    for has_int8 in (True, False):
        monkeypatch.setattr(exported, "multiplies_int8", lambda has_int8=has_int8: has_int8)
        OnnxModel(str(tmp_path / "model.onnx"))
        assert ("was written for CPUs with" in capsys.readouterr().err) == (not has_int8)


def test_transcribe_runs_it_with_the_threads_of_torch(written, tmp_path, monkeypatch, capsys):
    threads = []
    opened = transcribe.open_exported

    def open_exported(path, num_threads):
        threads.append(num_threads)
        return opened(path, num_threads)

    monkeypatch.setattr(transcribe, "open_exported", open_exported)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).random(16000), 16000)
    assert main(["transcribe", "--path", str(written[1]), str(tmp_path / "a.wav")]) == 0
    assert threads == [3] and "a.wav\t" in capsys.readouterr().out


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_fairseq_generate_runs_it_like_its_checkpoint(model, corpus, tmp_path, capsys, ending):
    exported = tmp_path / f"model{ending}"
    command = ["export", "--path", str(model), "--output", str(exported)]
    if ending == ".xml":
        pytest.importorskip("openvino")
        command += ["--to", "openvino"]
    assert main(command) == 0
    lines = []
    for path, folder in [(model, tmp_path / "expected"), (exported, tmp_path / "found")]:
        generate_here(corpus, path, folder, "--batch-size", 4)
        lines.append((folder / "generate-test.txt").read_text().splitlines())
    texts = [[line for line in each if line[:2] in ("T-", "D-")] for each in lines]
    hypotheses = [[line.split("\t")[2] for line in each if line[0] == "D"] for each in texts]
    assert len(hypotheses[0]) == 11 and hypotheses[0] == hypotheses[1]
    assert lines[0][-1] == lines[1][-1]  # its WER
    engine = {".onnx": "ONNX Runtime fp32", ".xml": "OpenVINO fp32"}[ending]
    compute = json.loads((tmp_path / "found/compute.json").read_text())
    form = compute["inference"]
    assert form["form"] == engine and compute["parameters"] is None
    assert re.match(r"\d+\.\d+", form["engine_version"])
    assert compute["macs_note"] == "MACs of ExportedCtc are not known"
    assert "decoded 11 utterances" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--inference fp32 does not change .*: leave it out"):
        generate_here(corpus, exported, None, "--inference", "fp32")
    with pytest.raises(CheckpointError, match=r"as it was exported: keep_layers cannot be changed"):
        generate_here(corpus, exported, None, "--model-overrides", "{'keep_layers': '1'}")
    assert main(["calibrate", str(corpus), "--cpu", "--path", str(exported)]) == 1
    assert "as it was exported: " in capsys.readouterr().err
    assert main(["export", "--path", str(exported), "--output", str(tmp_path / "a.onnx")]) == 1
    assert f"--path {exported} is an exported file, which trans" in capsys.readouterr().err


def test_a_checkpoint_does_not_name_a_file_to_open(written, corpus, tmp_path):
    state = torch.load(written[0], weights_only=False)
    named = tmp_path / "named.onnx"
    named.write_bytes(written[1].read_bytes())
    state["cfg"]["model"] = {"_name": "exported_ctc", "path": str(named)}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"names another file, .*named.onnx, is refused"):
        generate_here(corpus, tmp_path / "model.pt")


def test_engines_that_are_not_installed_are_named(written, tmp_path, monkeypatch, capsys):
    command = ["export", "--path", str(written[0]), "--to", "openvino"]
    command += ["--output", str(tmp_path / "model.xml")]
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert main(command) == 1
    assert "OpenVINO models need the package openvino, which is not installed: pip install" in (
        capsys.readouterr().err
    )
    (tmp_path / "a.xml").write_text("<net ")
    assert main(["transcribe", "--path", str(tmp_path / "a.xml"), "a.wav"]) == 1
    assert "the extra 'openvino'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "openvino", types.SimpleNamespace(__version__="2026.4.1-7"))
    monkeypatch.setitem(sys.modules, "nncf", None)
    audio = ["--int8", "--audio", str(tmp_path / "a.xml")]
    assert main([*command, *audio]) == 1
    assert "int8 OpenVINO models need the package nncf, which is" in capsys.readouterr().err


def test_every_linear_layer_of_attention_is_in_the_form():
    attention = types.SimpleNamespace(
        num_heads=2, head_dim=4, v_proj=LowRankLinear(8, 8, 2), out_proj=torch.nn.Linear(8, 8)
    )
    made = ExportableReusedAttention(attention)
    assert type(made.in_proj) is TwoLinears and type(made.out_proj) is ExportableLinear
    attention.v_proj = torch.nn.Linear(8, 8)
    assert type(ExportableReusedAttention(attention).in_proj) is ExportableLinear


def loudness(*, hidden, lengths, **unused):
    return hidden.square().sum(dim=(0, 2)) / lengths


def past_layer(*, layer, lengths, **unused):
    return torch.full_like(lengths, layer)


def test_a_criterion_of_ones_own_that_measures_is_refused(encoders, tmp_path, monkeypatch):
    monkeypatch.setitem(EXIT_CRITERIA, "loudness", ExitCriterion(loudness, operator.gt))
    options = {"exit_layers": "1,2", "exit_criterion": "loudness", "exit_threshold": 0.9}
    model = build_model(encoders["large"], **options)
    with pytest.raises(ValueError, match="exit_criterion=loudness cannot be exported"):
        export(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_one_that_goes_by_the_layer_is_exported(encoders, tmp_path, monkeypatch):
    criterion = ExitCriterion(past_layer, operator.gt, by_layer=True)
    monkeypatch.setitem(EXIT_CRITERIA, "past_layer", criterion)
    options = {"exit_layers": "1,2", "exit_criterion": "past_layer", "exit_threshold": 1.0}
    model = build_model(encoders["large"], **options)
    batches = [given(model, counts) for counts in BATCHES]
    file, _ = export(model, tmp_path / "model.onnx")
    assert largest_difference(file, batches) < 1e-4
