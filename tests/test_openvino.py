"""OpenVINO files: the model's numbers in fp32, near them in int8, and what is refused in words."""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.exported import BATCHES, Task, given, largest_difference
from helpers.models import build_model, write_pretrained, write_wavlm

pytest.importorskip("openvino")
pytest.importorskip("onnx")
import openvino

from fairseq_speedup.__main__ import main
from fairseq_speedup.export import (
    ExportedFileError,
    OpenVinoModel,
    exported,
    openvino_file,
    openvino_session,
)
from fairseq_speedup.export.command import metadata_of
from fairseq_speedup.export.engines import open_exported
from fairseq_speedup.export.int8_audio import Int8Audio
from fairseq_speedup.export.onnx_file import ExportError
from fairseq_speedup.export.openvino_file import export_openvino, write
from fairseq_speedup.export.openvino_int8 import (
    CNN,
    PARTS,
    Int8,
    divergence,
    fewest_kept,
    parts_of,
    with_whole_inputs,
)
from fairseq_speedup.optimize.candidates import Candidate
from fairseq_speedup.optimize.outcome import exported_name, keep_exported
from fairseq_speedup.optimize.setup import Setup
from fairseq_speedup.optimize.worker import Worker

needs_nncf = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None, reason="NNCF is not installed"
)
LARGE = {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True}
CASES = {
    "group_norm": ({"extractor_mode": "default"}, {}),
    "stock": ({"extractor_mode": "default"}, {"padding": "stock"}),
    "pooled": (LARGE, {"downsample": "conv", "downsample_factor": 2.0, "frame_pool": 2}),
    "every_stage": (
        LARGE | {"encoder_layers": 3},
        {
            "downsample": "average",
            "downsample_factor": 3.0,
            "keep_layers": "0,2",
            "merge_ratio": 0.2,
            "head": "bilstm",
            "head_dim": 6,
            "logit_upsample": 2,
        },
    ),
    "wavlm": (None, {}),
}


def export(model, path, int8=None):
    metadata = metadata_of(model, Task(14), "some/model.pt", "openvino")
    found, quantised = export_openvino(model, str(path), metadata, int8)
    return OpenVinoModel(str(path), num_threads=1), found, quantised


@pytest.fixture(scope="module")
def written(pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    return export(build_model(pretrained), folder / "model.xml")[0]


@pytest.mark.parametrize("name", CASES)
def test_the_file_gives_the_models_numbers_in_a_padded_batch(tmp_path, name):
    encoder, options = CASES[name]
    start = tmp_path / "start.pt"
    if encoder is None:
        write_wavlm(start)
    else:
        write_pretrained(start, **encoder)
    model = build_model(start, **options)
    batches = [given(model, counts) for counts in BATCHES]
    folder = tmp_path / "out"
    folder.mkdir()
    file, found, _ = export(model, folder / "model.xml")
    assert found["fp32"].largest < 1e-4
    assert largest_difference(file, batches) < 1e-4
    assert file.metadata.largest_difference == found["fp32"].largest
    assert file.metadata.precision == "fp32" and "openvino" in file.metadata.versions
    assert sorted(each.name for each in folder.iterdir()) == ["model.bin", "model.xml"]


def test_a_conformer_is_refused(tmp_path):
    start = write_pretrained(
        tmp_path / "conformer.pt",
        layer_type="conformer",
        attn_type="espnet",
        pos_enc_type="rel_pos",
    )
    with pytest.raises(ValueError, match=r"an encoder of .*Conformer.* cannot be exported"):
        export(build_model(start), tmp_path / "model.xml")
    assert [each.name for each in tmp_path.iterdir()] == ["conformer.pt"]


def test_other_numbers_are_noticed_and_nothing_is_written(pretrained, tmp_path, monkeypatch):
    record = openvino_file.record

    def record_changed(module, *args):
        module.head.bias[7] += 1e-3
        record(module, *args)

    monkeypatch.setattr(openvino_file, "record", record_changed)
    with pytest.raises(ExportError, match=r"is not written: .* differ .* more than 0.0001"):
        export(build_model(pretrained), tmp_path / "model.xml")
    assert list(tmp_path.iterdir()) == []


# -- int8 ----------------------------------------------------------------------------------------


class Words:
    """Stands for WordErrors: a loss by what is in int8."""

    def __init__(self, loss=lambda network: 0.0):
        self.of_network = loss

    def begin(self, fp32): ...

    def check_any(self): ...

    def loss(self, file):
        return self.of_network(file.network)


def audio_of(words):
    generator = torch.Generator().manual_seed(3)
    return Int8Audio([torch.randn(9000, generator=generator) for _ in range(4)], words)


def parts_in_int8(network) -> set[str]:
    """Parts of a model of ONE_LAYER with a product whose inputs are rounded."""
    rounded = {
        each.get_node().get_friendly_name()
        for operation in network.get_ordered_ops()
        if operation.get_type_name() == "FakeQuantize"
        for each in operation.output(0).get_target_inputs()
    }
    parts = parts_of(network, PARTS | CNN, [1])
    return {part for part, names in parts.items() if rounded & set(names)}


ALL = {"attention of layer 1", "feed-forward of layer 1", "positions", "projection"}
ONE_LAYER = {"keep_layers": "1,"}


@pytest.fixture(scope="module")
def in_int8(pretrained, tmp_path_factory):
    """A model of one layer as a file in int8, what its export found, and the same in fp32."""
    folder = tmp_path_factory.mktemp("int8")
    fp32, _, _ = export(build_model(pretrained, **ONE_LAYER), folder / "fp32.xml")
    model = build_model(pretrained, **ONE_LAYER)
    return *export(model, folder / "int8.xml", Int8(audio_of(Words()))), fp32


@needs_nncf
def test_int8_stays_near_and_spares_the_cnn(pretrained, in_int8):
    file, found, quantised, _ = in_int8
    batches = [given(build_model(pretrained, **ONE_LAYER), counts) for counts in BATCHES]
    assert found["fp32"].largest < 1e-4 < found["int8"].largest < 1
    assert 1e-3 < largest_difference(file, batches) < 1
    assert parts_in_int8(file.network) == ALL
    metadata = file.metadata
    assert metadata.precision == "int8" and metadata.kept_fp32 == quantised.kept_fp32 == []
    assert metadata.weight_bits == exported.weight_bits()
    assert metadata.largest_difference == found["int8"].largest
    # scales are fixed: an utterance gives alone what it gives in a padded batch
    (waveform, lengths, _), length = batches[0], BATCHES[0][0]
    together, frames = file.log_probs(waveform, lengths)
    alone, _ = file.log_probs(waveform[:1, :length])
    np.testing.assert_allclose(together[0, : frames[0]], alone[0], atol=1e-4)


@needs_nncf
def test_whole_inputs_bring_the_posteriors_nearer(in_int8):
    int8, _, _, fp32 = in_int8
    parts = parts_of(int8.network, PARTS, [1])
    network = with_whole_inputs(int8.network, [name for each in parts.values() for name in each])
    assert parts_in_int8(network) == set() and parts_in_int8(int8.network) == ALL
    nearer = OpenVinoModel.of(network, "", int8.metadata, 1)
    waveform = torch.randn(1, 8000, generator=torch.Generator().manual_seed(5))
    expected, _ = fp32.log_probs(waveform)
    apart = [divergence(expected, each.log_probs(waveform)[0]) for each in (int8, nearer)]
    assert apart[0] > 1.2 * apart[1] > 0


@needs_nncf
def test_parts_stay_in_fp32_until_the_budget_holds(pretrained, tmp_path):
    """What costs words is the projection alone."""

    def loss(network):
        return float("projection" in parts_in_int8(network))

    int8 = Int8(audio_of(Words(loss)), budget=0.5)
    file, _, quantised = export(build_model(pretrained, **ONE_LAYER), tmp_path / "model.xml", int8)
    kept = set(quantised.kept_fp32)
    assert quantised.loss == 0 and "projection" in kept < ALL
    assert parts_in_int8(file.network) == ALL - kept
    assert file.metadata.kept_fp32 == quantised.kept_fp32


class ByName(Int8):
    """Parts are ranked by name, nothing is calibrated, and the loss is by how many are in int8.

    Attributes:
        tried: how many were kept in fp32, in order
    """

    def __init__(self, loss, budget):
        super().__init__(audio_of(Words(lambda network: loss(self.tried[-1]))), budget)
        self.tried = []

    def _calibrated(self, network, names):
        parts = parts_of(network, self.patterns, [0, 1])
        self.tried.append(sum(not set(each) <= set(names) for each in parts.values()))
        return network

    def _ranked(self, fp32, network, parts):
        return sorted(parts)


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 4, 5])
def test_as_few_parts_as_the_budget_allows(written, needed):
    int8 = ByName(lambda kept: 3.0 * (kept < needed), budget=0.5)
    found = int8.quantised(written, [0, 1])
    parts = parts_of(written.network, PARTS, [0, 1])
    assert len(parts) == 6
    assert found.kept_fp32 == sorted(parts)[:needed] and found.loss == 0
    assert len(set(int8.tried)) == len(int8.tried) <= 4


def test_a_budget_that_nothing_keeps_is_told(written):
    int8 = ByName(lambda kept: 3.0 - kept / 10, budget=0.5)
    words = r"more than --wer-budget 0.5 .* \(\+3.00 with all, \+2.50 with the projection alone\)"
    with pytest.raises(ExportError, match=words):
        int8.quantised(written, [0, 1])


def test_the_cnn_can_be_in_int8_too(written):
    patterns = Int8(audio_of(Words()), with_cnn=True).patterns
    parts = set(parts_of(written.network, patterns, [0, 1]))
    assert parts - set(parts_of(written.network, PARTS, [0, 1])) == {
        f"convolution {number}" for number in range(1, 7)
    }


def test_divergence():
    probs, others = np.array([[0.5, 0.5, 0.0]]), np.array([[0.25, 0.5, 0.25]])
    with np.errstate(divide="ignore"):
        assert divergence(np.log(probs), np.log(others)) == pytest.approx(0.5 * np.log(2))
        assert divergence(np.log(probs), np.log(probs)) == 0


@pytest.mark.parametrize("needed", range(1, 9))
def test_the_fewest_parts_are_found_by_halves(needed):
    tried = []

    def is_good(count):
        tried.append(count)
        return count >= needed

    assert fewest_kept(7, is_good) == (needed if needed <= 7 else None)
    assert len(tried) <= 3 and set(tried) <= set(range(1, 8))


# -- the command and the runner ------------------------------------------------------------------


def run(*arguments) -> int:
    return main([str(each) for each in arguments])


def test_the_command_and_transcribe(model, corpus, tmp_path, capsys):
    output = tmp_path / "model.xml"
    command = ["export", "--path", model, "--to", "openvino", "--output", output]
    assert run(*command) == 0
    printed = capsys.readouterr().out
    assert "fp32: log-probabilities differ" in printed
    assert f"{output} and {tmp_path / 'model.bin'}: " in printed
    files = sorted((corpus / "audio").glob("test-*.wav"))
    assert run("transcribe", "--path", model, *files) == 0
    expected = capsys.readouterr().out
    for options in ([], ["--batch-size", 4]):
        assert run("transcribe", "--path", output, *options, *files) == 0
        assert capsys.readouterr().out == expected
    output.unlink()  # its weights are left
    assert run(*command) == 1
    assert f"{tmp_path / 'model.bin'} exists; give --overwrite" in capsys.readouterr().err


@needs_nncf
def test_the_command_in_int8(model, corpus, tmp_path, capsys):
    output = tmp_path / "model.xml"
    output.write_text("before")
    command = ["export", "--path", model, "--to", "openvino", "--int8", "--output", output]
    assert run(*command, "--audio", corpus / "audio") == 1
    assert f"{output} exists; give --overwrite" in capsys.readouterr().err
    assert run(*command, "--data", corpus, "--gen-subset", "test", "--overwrite") == 1
    assert output.read_text() == "before"
    assert f"{corpus}/test.tsv: " in capsys.readouterr().err
    given = ["--data", corpus, "--gen-subset", "train", "--wer-budget", 1000, "--overwrite"]
    assert run(*command, *given) == 0
    printed = capsys.readouterr().out
    assert "int8: log-probabilities differ" in printed
    num_words = (corpus / "train.ltr").read_text().count("|")
    assert f"WER % on 13 utterances, {num_words} words: " in printed
    assert OpenVinoModel(str(output)).metadata.precision == "int8"


@needs_nncf
def test_optimize_tries_it_and_keeps_its_files(model, corpus, tmp_path):
    setup = Setup(str(model), str(corpus), "train", [], {}, {}, "letter", str(tmp_path / "work"))
    (tmp_path / "work").mkdir()
    worker = Worker(setup)
    assert {"openvino", "openvino int8"} <= set(worker.subject().engines)
    worker.load(Candidate())
    expected = worker.transcribe([0, 1, 2], alone=False).texts
    for engine, budget, precision in [("openvino", None, "fp32"), ("openvino int8", 900.0, "int8")]:
        candidate = Candidate({"keep_layers": "0,"}, engine=engine, int8_budget=budget)
        worker.load(candidate)
        assert len(worker.transcribe([0, 1, 2], alone=False).texts) == 3
        assert keep_exported(setup, candidate, tmp_path) == ["model.xml", "model.bin"]
        kept = open_exported(str(tmp_path / exported_name(candidate)))
        assert kept.metadata.precision == precision
    worker.load(Candidate(engine="openvino"))
    assert worker.transcribe([0, 1, 2], alone=False).texts == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--output", "model.onnx"], "model.onnx: a model of --to openvino is a file that ends wi"),
        (["--int8"], "--int8 of --to openvino finds its scales on audio: give --audio"),
        (["--int8", "--audio", "none.wav"], "none.wav"),
        (["--int8", "--audio", "a", "--minutes", "0"], "--minutes 0.0 is out of range"),
        (["--int8", "--audio", "a", "--wer-budget", "-1"], "--wer-budget -1.0 is out of range"),
        (["--wer-budget", "1"], "--wer-budget is for --to openvino --int8"),
        (["--to", "onnx", "--int8", "--audio", "a"], "--audio is for --to openvino --int8"),
        (["--int8-cnn"], "--int8-cnn is more of --int8: give both"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(model, tmp_path, capsys, options, words):
    output = [] if "--output" in options else ["--output", tmp_path / "model.xml"]
    assert run("export", "--path", model, "--to", "openvino", *output, *options) == 1
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@needs_nncf
@pytest.mark.parametrize("amplitude", [0.0, 1e-6])
def test_silence_is_no_audio_to_calibrate_on(model, tmp_path, capsys, amplitude):
    noise = amplitude * np.random.default_rng(0).standard_normal(16000 * 12)
    soundfile.write(tmp_path / "silent.wav", noise, 16000, subtype="FLOAT")
    command = ["export", "--path", model, "--to", "openvino", "--output", tmp_path / "model.xml"]
    assert run(*command, "--int8", "--audio", tmp_path / "silent.wav") == 1
    assert (
        "--audio: 0.0 s of audio that is not silent, of 12.0 s, are too" in capsys.readouterr().err
    )
    assert [each.name for each in tmp_path.iterdir()] == ["silent.wav"]


def test_the_engine_is_told_of_threads_and_precision(written):
    assert written.compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert written.compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


def test_the_runner_refuses_what_does_not_fit(written):
    needed = written.metadata.needed_samples
    assert written.log_probs(np.zeros((2, needed)))[1].tolist() == [1, 1]
    with pytest.raises(ValueError, match=f"{needed - 1} samples is shorter.*{needed}"):
        written.log_probs(np.zeros((1, needed - 1)))


def test_files_that_are_no_models_of_ours_are_refused(written, tmp_path):
    path, weights = tmp_path / "model.xml", tmp_path / "model.bin"
    with pytest.raises(FileNotFoundError, match=r"model.xml does not exist"):
        OpenVinoModel(str(path))
    path.write_text("nonsense")
    with pytest.raises(
        FileNotFoundError, match=r"model.bin does not exist .*; a model is two, .xml"
    ):
        OpenVinoModel(str(path))
    weights.write_bytes(b"")
    with pytest.raises(ExportedFileError, match=r"model.xml cannot be read as an OpenVINO model"):
        OpenVinoModel(str(path))
    shutil.copyfile(written.path, path)
    weights.write_bytes((written.path.removesuffix("xml") + "bin").encode())  # another file
    with pytest.raises(ExportedFileError, match=r"model.bin is damaged, or of another model than"):
        OpenVinoModel(str(path))
    network = written.network.clone()
    network.set_rt_info("99", [openvino_session.SECTION, "format_version"])
    openvino.save_model(network, str(path), compress_to_fp16=False)
    with pytest.raises(ExportedFileError, match=r"has format_version 99.*export the checkpoint ag"):
        OpenVinoModel(str(path))
    shape = openvino.op.Parameter(openvino.Type.f32, openvino.Shape([1]))
    others = openvino.Model([openvino.opset13.relu(shape)], [shape], "another")
    openvino.save_model(others, str(path))
    with pytest.raises(
        ExportedFileError, match=r"is not a model of python -m fairseq_speedup expo"
    ):
        OpenVinoModel(str(path))


def test_weights_that_were_not_written_with_the_graph_are_refused(written, tmp_path):
    path, weights = tmp_path / "model.xml", tmp_path / "model.bin"
    path.write_bytes(Path(written.path).read_bytes())
    whole = Path(written.path.removesuffix("xml") + "bin").read_bytes()
    weights.write_bytes(whole)
    assert OpenVinoModel(str(path)).metadata.weights_crc32 is not None
    weights.write_bytes(bytes(len(whole)))
    with pytest.raises(ExportedFileError, match=r"model.bin is damaged, or of another model than"):
        OpenVinoModel(str(path))


def test_an_untested_version_is_told_once(capsys):
    openvino_session._say_version.cache_clear()
    for version in ["2026.4.1", "2026.40.0", "2026.40.0", "2025.4.0"]:
        openvino_session._say_version(version)
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in said] == ["2026.40.0", "2025.4.0"]


def test_an_int8_file_of_another_kind_of_cpu_is_told(written, tmp_path, monkeypatch, capsys):
    write(written.network, str(tmp_path / "model.xml"), replace(written.metadata, weight_bits=8))
    for has_int8 in (True, False):
        monkeypatch.setattr(exported, "multiplies_int8", lambda has_int8=has_int8: has_int8)
        OpenVinoModel(str(tmp_path / "model.xml"))
        assert ("was written for CPUs with" in capsys.readouterr().err) == (not has_int8)
