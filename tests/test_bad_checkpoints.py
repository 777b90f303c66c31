"""Files that are no checkpoint, or not the one that is due: one clear error each."""

import os
import re
import shutil
import zipfile

import pytest
import torch
from fairseq import checkpoint_utils, tasks
from helpers.corpora import LETTERS, write_dictionary
from helpers.models import build_model, build_student, write_without_dictionary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from fairseq_speedup.__main__ import main
from fairseq_speedup.checkpoints.opening import (
    TRUST,
    CheckpointError,
    open_checkpoint,
    write_checkpoint,
)
from fairseq_speedup.pretrained.families import FAMILIES
from fairseq_speedup.tasks import SpeedupFinetuningConfig

LEGACY = {"_use_new_zipfile_serialization": False}


# -- no checkpoint at all: at every door -----------------------------------------------------------

UNREADABLE = (
    r"bad.pt \([\d,]+ bytes\) cannot be read as a fairseq checkpoint: truncated, or another"
)


def missing(path, whole):
    return "bad.pt.* no such file|bad.pt does not exist"


def folder(path, whole):
    path.mkdir()
    return "bad.pt is a folder without config.json; a checkpoint is a file, or"


def empty(path, whole):
    path.touch()
    return UNREADABLE


def text(path, whole):
    path.write_text("not a checkpoint\n")
    return UNREADABLE


def truncated(path, whole):
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return UNREADABLE


def truncated_legacy(path, whole):
    torch.save(torch.load(whole), path, **LEGACY)
    path.write_bytes(path.read_bytes()[:-100])
    return UNREADABLE


def zipped(path, whole):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    return UNREADABLE


def torchscript(path, whole):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    return "bad.pt"  # recent versions of torch pack nothing that it could not refuse


def tensor(path, whole):
    torch.save(torch.zeros(3), path)
    return "bad.pt holds a Tensor, not a checkpoint"


@pytest.mark.parametrize(
    "make",
    [missing, folder, empty, text, truncated, truncated_legacy, zipped, torchscript, tensor],
)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, pretrained, capsys, make):
    path = tmp_path / "bad.pt"
    words = make(path, pretrained)
    error = FileNotFoundError if make is missing else CheckpointError
    with pytest.raises(error, match=f"^model.w2v_path.*({words})"):
        build_model(path)
    with pytest.raises(error, match=words):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert main(["inspect", str(path)]) == 1
    printed = capsys.readouterr()
    assert re.search(words, printed.err)
    safe = "" if make in (missing, folder) else r"(.*\n)* +safe to load +no\n"  # of a file
    assert re.search(rf"bad.pt\n{safe} +cannot be used +.*({words})", printed.out)


@pytest.fixture(scope="module")
def written(pretrained, tmp_path_factory):
    """The file in each form, once: in the old one its size varies with where tensors lie."""
    path = tmp_path_factory.mktemp("written") / "spoilt.pt"
    contents = {}
    for name, form in {"zip": {}, "legacy": LEGACY}.items():
        torch.save(torch.load(pretrained), path, **form)
        contents[name] = path.read_bytes()
    return contents


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), form=st.sampled_from(["zip", "legacy"]))
def test_a_spoilt_file_loads_or_is_named(tmp_path, written, data, form):
    path = tmp_path / "spoilt.pt"
    content = bytearray(written[form])
    for _ in range(data.draw(st.integers(1, 3))):
        # most of a file is weights: the first part is what is parsed
        index = data.draw(st.integers(0, min(len(content), 30_000) - 1))
        content[index] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        build_model(path)
    except CheckpointError as error:
        assert "spoilt.pt" in str(error)


# -- a checkpoint, but not a pretrained one that is due --------------------------------------------


def without_config(state):
    del state["cfg"]
    return "holds neither a cfg nor args"


def unknown_family(state):
    state["cfg"]["model"]["_name"] = "transformer_lm"
    return rf"bad.pt holds a 'transformer_lm' model; .*: {', '.join(FAMILIES)}"


def no_family(state):
    state["cfg"]["model"] = None
    return rf"bad.pt holds a None model; .*: {', '.join(FAMILIES)}"


def unknown_weight(state):
    state["model"]["decoder.embed"] = torch.zeros(1)
    return r"bad.pt: decoder.embed is no weight of a wav2vec2 model, which has feature_extractor"


def unknown_weight_of_the_encoder(state):
    state["model"]["encoder.layers.7.fc1.bias"] = torch.zeros(1)
    return r"its weights do not fit its config; unknown: encoder.layers.7.fc1.bias"


def missing_weights(state):
    for name in ("mask_emb", "encoder.layers.1.fc1.weight"):
        del state["model"][name]
    return r"do not fit its config; missing: mask_emb, encoder.layers.1.fc1.weight"


def other_shape(state):
    state["cfg"]["model"]["encoder_ffn_embed_dim"] = 64
    return r"of another shape: encoder.layers.0.fc1.weight is \(32, 16\), not \(64, 16\)"


def other_value(state):
    state["cfg"]["model"]["extractor_mode"] = "batch_norm"
    return "its wav2vec2 config is not valid"


def other_normalisation(state):
    state["cfg"]["task"]["normalize"] = False
    return "task.normalize=True disagrees with the pretraining of .*; set task.normalize=False"


@pytest.mark.parametrize(
    "spoil",
    [
        without_config,
        unknown_family,
        no_family,
        unknown_weight,
        unknown_weight_of_the_encoder,
        missing_weights,
        other_shape,
        other_value,
        other_normalisation,
    ],
)
def test_a_checkpoint_that_is_not_due_is_named_with_the_reason(tmp_path, pretrained, capsys, spoil):
    path = tmp_path / "bad.pt"
    state = torch.load(pretrained)
    words = spoil(state)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=words):
        build_model(path)
    if spoil is not other_normalisation:
        assert main(["inspect", str(path)]) == 1
        assert re.search(words, capsys.readouterr().err)


# -- fine-tuned checkpoints ------------------------------------------------------------------------


def unknown_head(state):
    state["model"]["w2v_encoder.embed.weight"] = torch.zeros(1)
    return "bad.pt: unknown weights: w2v_encoder.embed.weight; a fine-tuned model has"


def missing_head(state):
    del state["model"]["w2v_encoder.proj.bias"]
    return "bad.pt: missing weights: w2v_encoder.proj.bias; a fine-tuned model has"


def missing_layer(state):
    del state["model"]["w2v_encoder.w2v_model.encoder.layers.1.fc1.weight"]
    return "bad.pt: its weights do not fit its config; missing: encoder.layers.1.fc1.weight"


def missing_encoder(state):
    state["model"] = {"w2v_encoder.proj.weight": torch.zeros(2, 2)}
    return r"bad.pt has no weights under w2v_encoder.w2v_model"


def missing_pretraining(state):
    state["cfg"]["model"]["w2v_args"] = {"task": {}}
    return "bad.pt: its cfg.model.w2v_args has no section 'model'"


def missing_task(state):
    del state["cfg"]["task"]
    return "bad.pt is not laid out as a fairseq checkpoint"


@pytest.mark.parametrize(
    "spoil",
    [
        unknown_head,
        missing_head,
        missing_layer,
        missing_encoder,
        missing_pretraining,
        missing_task,
    ],
)
def test_a_bad_fine_tuned_checkpoint_is_named_before_it_is_built(
    tmp_path, pretrained, capsys, spoil
):
    path = tmp_path / "bad.pt"
    state = write_without_dictionary(path, pretrained)
    words = spoil(state)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=words):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    for command in (["inspect", str(path)], ["profile", "--checkpoint", str(path)]):
        assert main(command) == 1
        assert re.search(words, capsys.readouterr().err)


def decode_with(path, data):
    """Loads a model as ``fairseq-generate --task speedup_finetuning`` does."""
    cfg = OmegaConf.structured(SpeedupFinetuningConfig(data=str(data), labels="ltr"))
    cfg._name = "speedup_finetuning"
    task = tasks.setup_task(cfg)
    assert task.target_dictionary is not None
    return checkpoint_utils.load_model_ensemble_and_task([str(path)], task=task)


@pytest.mark.parametrize("kind", ["wav2vec_ctc", "speedup_ctc"])
def test_a_dictionary_of_another_size_than_the_head_is_named(tmp_path, pretrained, kind):
    path = tmp_path / "old.pt"
    write_without_dictionary(path, pretrained, kind, labels=LETTERS)
    write_dictionary(tmp_path)
    decode_with(path, tmp_path)
    with (tmp_path / "dict.ltr.txt").open("a") as file:
        file.write("Q 1\n")
    words = {
        "wav2vec_ctc": rf"dictionary in {tmp_path} has 15 symbols and is not .* which has 14; use",
        "speedup_ctc": r"proj.weight is \(14, 16\) in the checkpoint .* or the dictionary",
    }[kind]
    with pytest.raises(ValueError, match=words):
        decode_with(path, tmp_path)


def test_a_dictionary_of_other_symbols_than_the_checkpoints_is_named(tmp_path, pretrained):
    path = tmp_path / "tuned.pt"
    state = write_without_dictionary(path, pretrained, labels=LETTERS)
    torch.save(state | {"task_state": {"target_dictionary": write_dictionary(tmp_path)}}, path)
    decode_with(path, tmp_path)
    dictionary = tmp_path / "dict.ltr.txt"
    dictionary.write_text(dictionary.read_text().replace("E", "Q"))
    with pytest.raises(ValueError, match="only in the data: Q, only in the checkpoint: E"):
        decode_with(path, tmp_path)


def test_a_reduced_model_is_not_taken_for_a_teacher_of_students(tmp_path, pretrained):
    write_without_dictionary(
        tmp_path / "reduced.pt", pretrained, "speedup_ctc", keep_layers="1", frame_pool=2
    )
    with pytest.raises(CheckpointError, match=r"reduced model \(.*keep_layers=1"):
        build_student(tmp_path / "reduced.pt")


# -- writing ---------------------------------------------------------------------------------------


def half_a_save(content, path, *unused, **also_unused):
    """``torch.save`` of a disk that fills up."""
    file = path if hasattr(path, "write") else open(path, "wb")  # noqa: SIM115
    file.write(b"PK\x03\x04 and no more")
    file.flush()
    raise OSError("no space left on device")


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # fairseq tries three times


WRITERS = {"ours": write_checkpoint, "fairseq's": checkpoint_utils.torch_persistent_save}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_an_error_while_writing_leaves_the_old_file(
    tmp_path, pretrained, monkeypatch, no_waiting, write
):
    path = tmp_path / "checkpoint.pt"
    shutil.copy(pretrained, path)
    monkeypatch.setattr("torch.save", half_a_save)
    with pytest.raises(OSError, match="no space left"):
        write({"model": {}}, str(path))
    assert path.read_bytes() == pretrained.read_bytes()
    if write is write_checkpoint:
        assert [each.name for each in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, pretrained, write):
    path = tmp_path / "checkpoint.pt"
    shutil.copy(pretrained, path)

    def killed(content, target, *unused, **also_unused):
        try:
            half_a_save(content, target)
        finally:
            os._exit(9)

    child = os.fork()
    if child == 0:
        torch.save = killed
        write({"model": {}}, str(path))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert path.read_bytes() == pretrained.read_bytes()
    write(torch.load(pretrained), str(path))  # what the crash left is in nobody's way
    open_checkpoint(str(path))


def test_a_checkpoint_is_not_trusted_by_any_other_value(tmp_path, monkeypatch):
    path = tmp_path / "evil.pt"
    torch.save({"model": re.compile("a")}, path)
    for value in ("", "0", "true", "yes"):
        monkeypatch.setenv(TRUST, value)
        with pytest.raises(CheckpointError, match=rf"asks for re._compile.*{TRUST}=1 loads it"):
            open_checkpoint(str(path))
    monkeypatch.setenv(TRUST, "1")
    assert open_checkpoint(str(path))["model"].match("a")


def test_a_file_of_before_pytorch_1_6_gives_the_same_model(tmp_path, pretrained):
    torch.save(torch.load(pretrained), tmp_path / "old.pt", **LEGACY)
    old, new = build_model(tmp_path / "old.pt"), build_model(pretrained)
    for name, weight in new.state_dict().items():
        assert torch.equal(weight, old.state_dict()[name])
