"""Folders in Hugging Face's form where a checkpoint is due: what ``convert``'s checkpoint gives."""

import json
import re

import pytest
import torch
from fairseq import checkpoint_utils
from helpers.commands import generate_here, train
from helpers.corpora import LETTERS, write_dictionary, write_split
from helpers.models import Labels, batch_of, build_model
from omegaconf import OmegaConf

from fairseq_speedup.__main__ import main
from fairseq_speedup.checkpoints.opening import CheckpointError, open_checkpoint
from fairseq_speedup.criterions.ctc_distillation import _load_teacher
from fairseq_speedup.hugging_face.config import MODEL_TYPES
from fairseq_speedup.inspection.facts import inspect_file
from fairseq_speedup.pretrained import read_file
from fairseq_speedup.pretrained.families import FAMILIES, Family

transformers = pytest.importorskip("transformers")
from public_checkpoints import (  # noqa: E402
    CANONICAL,
    DATA2VEC,
    LARGE,
    WAVLM,
    random_model,
    write_folder,
)

MODELS = {
    "wav2vec2": ("Wav2Vec2", LARGE),
    "hubert": ("Hubert", {}),
    "wavlm": ("WavLM", WAVLM | LARGE),
    "data2vec_audio": ("Data2VecAudio", DATA2VEC),
}
# what is opened is compared for each of them; what commands do with it, for one of fairseq's
# layers and for one that has its own
ENOUGH = pytest.mark.parametrize("both", ["wav2vec2", "wavlm"], indirect=True, scope="module")
NOT_THE_SAME = {"file", "bytes", "format", "types", "refused_types", "era", "use"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_split(folder, "test", 3, seed=1)
    write_dictionary(folder)
    return folder


@pytest.fixture(scope="module", params=MODELS)
def both(request, tmp_path_factory):
    """A CTC folder whose labels vary from frame to frame, and what convert makes of it."""
    kind, options = MODELS[request.param]
    model = random_model(kind, "ForCTC", options | {"vocab_size": len(CANONICAL)})
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
        model.lm_head.bias[1:4] -= 1000
    parent = tmp_path_factory.mktemp("both")
    folder = write_folder(parent / "folder", model)
    return folder, converted(folder, parent / "converted.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = random_model("Wav2Vec2", "ForCTC", LARGE | {"vocab_size": len(CANONICAL)})
    return write_folder(tmp_path_factory.mktemp("one") / "folder", model)


def converted(folder, path):
    assert main(["convert", str(folder), str(path)]) == 0
    return path


def run(capsys, *arguments) -> str:
    """What a command prints."""
    capsys.readouterr()
    assert main([str(each) for each in arguments]) == 0
    return capsys.readouterr().out


def assert_same(found, expected) -> None:
    """Of nested dicts with tensors, bit for bit."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name in expected:
            assert_same(found[name], expected[name])
    else:
        assert getattr(found, "symbols", found) == getattr(expected, "symbols", expected)


# -- the same, at every door -----------------------------------------------------------------------


def test_what_is_opened_is_the_checkpoint_that_convert_writes(both):
    folder, path = map(str, both)
    assert_same(open_checkpoint(folder), open_checkpoint(path))
    states = map(checkpoint_utils.load_checkpoint_to_cpu, (folder, path))
    found, expected = ({**s, "cfg": OmegaConf.to_container(s["cfg"])} for s in states)
    assert_same(found, expected)


@ENOUGH
def test_it_is_transcribed_and_decoded_alike(both, data, tmp_path, capsys):
    files = sorted((data / "audio").glob("*.wav"))
    lines = []
    for index, path in enumerate(both):
        printed = run(capsys, "transcribe", "--cpu", "--json", "--path", path, *files)
        generate_here(data, path, tmp_path / str(index))
        generated = (tmp_path / str(index) / "generate-test.txt").read_text()
        lines.append((printed, [x for x in generated.splitlines() if x[:2] in ("H-", "D-", "T-")]))
    assert lines[0] == lines[1]
    assert all(json.loads(line)["text"] for line in lines[0][0].splitlines())


@ENOUGH
def test_it_is_inspected_and_profiled_alike(both, tmp_path, capsys):
    seen, costs = [], []
    for path in both:
        (report,) = json.loads(run(capsys, "inspect", "--json", path))
        assert report["safe"]
        seen.append({name: each for name, each in report.items() if name not in NOT_THE_SAME})
        figures = tmp_path / f"{path.name}.json"
        run(capsys, "profile", "--checkpoint", path, "--time", 0, "--json", figures)
        costs.append(json.loads(figures.read_text()))
    assert seen[0] == seen[1]
    costs = [{k: v for k, v in each.items() if k not in ("model", "checkpoint")} for each in costs]
    assert costs[0] == costs[1]


@ENOUGH
def test_it_is_exported_alike(both, data, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    files, printed = sorted((data / "audio").glob("*.wav")), []
    for index, path in enumerate(both):
        exported = tmp_path / f"{index}.onnx"
        run(capsys, "export", "--path", path, "--output", exported)
        printed.append(run(capsys, "transcribe", "--json", "--path", exported, *files))
    assert printed[0] == printed[1]


@pytest.mark.parametrize("end", ["Model", "ForPreTraining", "ForCTC"])
def test_fine_tuning_starts_alike(end, tmp_path):
    options = LARGE | ({"vocab_size": len(CANONICAL)} if end == "ForCTC" else {})
    folder = write_folder(tmp_path / "folder", random_model("Wav2Vec2", end, options))
    path = converted(folder, tmp_path / "converted.pt")
    sizes = {"labels": LETTERS, "num_labels": len(CANONICAL)}
    found, expected = (build_model(each, **sizes) for each in (folder, path))
    assert_same(dict(found.state_dict()), dict(expected.state_dict()))
    batch = batch_of([9000, 7000])
    assert torch.equal(found(**batch)["encoder_out"], expected(**batch)["encoder_out"])


def test_it_teaches(folder):
    task = Labels(symbols=LETTERS)
    task.cfg = OmegaConf.create({"normalize": True})
    teacher = _load_teacher(str(folder), task)
    expected = transformers.AutoModelForCTC.from_pretrained(folder)
    assert torch.equal(teacher.w2v_encoder.proj.weight[4:], expected.lm_head.weight[4:])


def test_what_needs_exits_says_so(folder, data, capsys):
    assert main(["calibrate", str(data), "--gen-subset", "test", "--path", str(folder)]) == 1
    assert "it was fine-tuned without exits" in capsys.readouterr().err


def test_inspect_tells_what_of_a_folder_is_left_out(tmp_path, capsys):
    model = random_model("Wav2Vec2", "ForPreTraining", LARGE)
    folder = write_folder(tmp_path / "folder", model)
    report = inspect_file(str(folder))
    assert report["use"] == "model.w2v_path, with task.normalize=true"
    dropped = {each["module"]: each["parameters"] for each in report["dropped"]}
    parts = {name: getattr(model, name) for name in ("quantizer", "project_hid", "project_q")}
    assert dropped == {name: sum(map(torch.numel, p.parameters())) for name, p in parts.items()}
    weights = folder / "model.safetensors"
    text = run(capsys, "inspect", folder)
    assert f"{weights.stat().st_size:,} bytes, safetensors" in text
    assert "its pickle has" not in text
    assert "checkpoint.finetune_from_model" not in text


# -- as safely -------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return print, ("evil code has run",)


def test_a_pickle_of_weights_is_read_with_the_restricted_unpickler(folder, tmp_path, capsys):
    spoilt = write_folder(tmp_path / "spoilt", transformers.AutoModelForCTC.from_pretrained(folder))
    (spoilt / "model.safetensors").unlink()
    weights = transformers.AutoModelForCTC.from_pretrained(folder).state_dict()
    torch.save(dict(weights), spoilt / "pytorch_model.bin")
    assert_same(open_checkpoint(str(spoilt)), open_checkpoint(str(folder)))
    report = inspect_file(str(spoilt))
    assert (report["error"], report["format"], report["refused_types"]) == (None, "zip", [])

    torch.save(dict(weights) | {"lm_head.bias": Evil()}, spoilt / "pytorch_model.bin")
    words = "pytorch_model.bin is refused: it asks for builtins.print"
    with pytest.raises(CheckpointError, match=f"model.w2v_path: .*{words}"):
        build_model(spoilt)
    with pytest.raises(CheckpointError, match=words):
        checkpoint_utils.load_checkpoint_to_cpu(str(spoilt))
    report = inspect_file(str(spoilt))
    assert not report["safe"]
    assert report["refused_types"] == ["builtins.print"]
    assert "evil" not in capsys.readouterr().out


# -- folders that are none -------------------------------------------------------------------------


def edit(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BAD = {
    "no config": (
        lambda f: (f / "config.json").unlink(),
        r"bad is a folder without config.json; a checkpoint is a file, or a folder in Hugging "
        r"Face's form \(config.json with model.safetensors or pytorch_model.bin\)",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "bad has no weights: neither model.safetensors nor pytorch_model.bin",
    ),
    "another model": (
        lambda f: edit(f / "config.json", model_type="whisper"),
        r"config.json: model_type='whisper' is not read here; valid values: wav2vec2, hubert, "
        "wavlm, data2vec-audio",
    ),
    "no vocabulary": (lambda f: (f / "vocab.json").unlink(), "vocab.json does not exist"),
    "no normalisation": (
        lambda f: (f / "preprocessor_config.json").unlink(),
        "preprocessor_config.json does not exist, .* give convert --normalize true or",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_is_none_is_refused_in_words_at_every_door(name, folder, tmp_path, capsys):
    spoil, words = BAD[name]
    bad = write_folder(tmp_path / "bad", transformers.AutoModelForCTC.from_pretrained(folder))
    spoil(bad)
    arpa = tmp_path / "lm.arpa"
    arpa.touch()
    with pytest.raises((CheckpointError, FileNotFoundError), match=f"^model.w2v_path: .*{words}"):
        build_model(bad)
    for command in (
        ["transcribe", "--path", bad, bad / "a.wav"],
        ["inspect", bad],
        ["profile", "--checkpoint", bad],
        ["export", "--path", bad, "--output", tmp_path / "a.onnx"],
        ["calibrate", tmp_path, "--path", bad],
        ["tune-lm", tmp_path, "--path", bad, "--lexicon-free", "--kenlm-model", arpa],
    ):
        assert main([str(each) for each in command]) == 1
        assert re.search(words, capsys.readouterr().err), command


def test_a_pretrained_folder_is_no_model_to_decode_with(tmp_path, capsys):
    folder = write_folder(tmp_path / "folder", random_model("Wav2Vec2", "Model", LARGE))
    assert main(["transcribe", "--path", str(folder), "a.wav"]) == 1
    assert f"--path {folder} holds a wav2vec2 model; it must be fine-tuned" in (
        capsys.readouterr().err
    )


# -- another family ------------------------------------------------------------------------------


def test_a_family_of_a_known_architecture_is_an_entry_of_each_table(tmp_path, monkeypatch):
    """UniSpeech is wav2vec 2.0 that is trained otherwise."""
    model = random_model("UniSpeech", "Model", LARGE)
    folder = write_folder(tmp_path / "folder", model)
    with pytest.raises(CheckpointError, match="model_type='unispeech' is not read here"):
        open_checkpoint(str(folder))

    monkeypatch.setitem(FAMILIES, "unispeech", Family(dropped=("final_proj.", "ctc_proj.")))
    monkeypatch.setitem(MODEL_TYPES, "unispeech", ("UniSpeech", "unispeech"))
    path = converted(folder, tmp_path / "unispeech.pt")  # which compares the numbers
    assert inspect_file(str(path))["family"] == "unispeech"
    back = tmp_path / "back"
    assert main(["convert", str(path), str(back)]) == 0
    assert json.loads((back / "config.json").read_text())["model_type"] == "unispeech"
    source = batch_of([9000])["source"]
    again = transformers.UniSpeechModel.from_pretrained(back).eval()
    with torch.no_grad():
        found, expected = (each(source).last_hidden_state for each in (again, model))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    state = torch.load(path)  # as its pretraining would have left it
    assert state["cfg"]["model"]["_name"] == "unispeech"
    state["model"]["ctc_proj.weight"] = torch.zeros(3, 3)
    torch.save(state, path)
    assert read_file(str(path)).dropped == ["ctc_proj.weight"]


@pytest.mark.parametrize("option", ["finetune_from_model", "restore_file"])
def test_a_start_that_fairseq_would_pass_over_is_refused(
    option, folder, corpus, pretrained, tmp_path
):
    start = f"++checkpoint.{option}={folder}"
    done = train(tmp_path / "run", corpus, pretrained, start, check=False)
    said = f"checkpoint.{option}={folder} is a folder, which fairseq would pass over"
    assert said in done.stderr.splitlines()[-1]
    assert f"fairseq_speedup convert {folder} MODEL.pt makes one" in done.stderr
    assert not (tmp_path / "run/checkpoints/checkpoint_last.pt").exists()
