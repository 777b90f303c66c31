"""What tune-lm keeps of a model's run, and what it is compared with."""

import os
import random
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
from helpers.corpora import LETTERS, write_arpa

from fairseq_speedup.__main__ import main
from fairseq_speedup.decoding import tune_lm
from fairseq_speedup.decoding.tune_lm import ObservedSplit, observed, origin_of


@pytest.fixture
def folder(data, tmp_path):
    """A copy of the data, to be changed."""
    return shutil.copytree(data, tmp_path / "data")


@pytest.fixture
def args(folder, model, tmp_path):
    return Namespace(
        path=str(shutil.copy(model, tmp_path)),
        data=str(folder),
        gen_subset="test",
        model_overrides="{}",
        emissions=str(tmp_path / "emissions.npz"),
    )


def split_of(args) -> ObservedSplit:
    log_probs = [np.zeros((length, 4), dtype=np.float32) for length in (3, 0, 5)]
    texts = [["TEA"], [], ["A", "TEA"]]
    symbols, origin = ["<s>", "A", "|"], origin_of(args, "ltr")
    return ObservedSplit(
        log_probs, texts, texts, symbols, [1], 0, "ltr", "letter", "train.ltr", origin
    )


def changed(path) -> None:
    os.utime(path, (1e9, 1e9))


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("path", lambda args: changed(args.path)),
        ("manifest", lambda args: changed(f"{args.data}/test.tsv")),
        ("labels", lambda args: changed(f"{args.data}/test.ltr")),
        ("dictionary", lambda args: os.remove(f"{args.data}/dict.ltr.txt")),
        ("manifest", lambda args: setattr(args, "gen_subset", "train")),
        ("model_overrides", lambda args: setattr(args, "model_overrides", "{'frame_pool': 2}")),
    ],
)
def test_what_is_kept_is_read_for_the_same_files_alone(args, named, change):
    args.model_overrides = "{'keep_layers': ('0', 1)}"  # JSON has no tuples
    split_of(args).save(args.emissions)
    assert observed(args).references == split_of(args).references
    change(args)
    with pytest.raises(ValueError, match=f"emissions.npz is of another run: {named}[ .]"):
        observed(args)


def test_a_model_folder_is_as_new_as_its_newest_file(args, tmp_path):
    args.path = str(tmp_path / "model")
    os.mkdir(args.path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).touch()
        changed(tmp_path / "model" / name)
    split_of(args).save(args.emissions)
    assert observed(args).labels == "ltr"
    os.utime(tmp_path / "model/model.safetensors", (1e9, 1e9 + 5))
    with pytest.raises(ValueError, match=r"path is .* there and .*/model.safetensors, "):
        observed(args)


def test_what_is_kept_is_written_whole_or_not_at_all(args, tmp_path, monkeypatch):
    split = split_of(args)
    split.save(args.emissions)
    before = (tmp_path / "emissions.npz").read_bytes()

    def cut_off(file, **arrays):
        file.write(before[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tune_lm.np, "savez", cut_off)
    with pytest.raises(OSError, match="No space left"):
        split.save(args.emissions)
    assert (tmp_path / "emissions.npz").read_bytes() == before


def test_a_damaged_file_is_named(args, tmp_path):
    split_of(args).save(args.emissions)
    path = tmp_path / "emissions.npz"
    whole = path.read_bytes()
    rng = random.Random(0)
    damaged = [b"", whole[: len(whole) // 2], whole[:-30], b"PK\3\4" + bytes(40)]
    for _ in range(300):
        spoilt = bytearray(whole)
        for _ in range(3):
            spoilt[rng.randrange(len(whole))] = rng.randrange(256)
        damaged.append(bytes(spoilt))
    refused = 0
    for each in damaged:
        path.write_bytes(each)
        try:
            ObservedSplit.load(str(path))
        except ValueError as error:
            assert str(error).startswith(f"--emissions {path} cannot be read: ")
            refused += 1
    assert refused > 30
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot be read: No data left in file"):
        ObservedSplit.load(str(path))
    path.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=r"cannot be read: File is not a zip file"):
        ObservedSplit.load(str(path))


@pytest.fixture
def command(args, tmp_path):
    arpa = write_arpa(tmp_path / "labels.arpa", LETTERS)
    command = ["tune-lm", args.data, "--path", args.path, "--gen-subset", "test", "--cpu"]
    return [*command, "--kenlm-model", str(arpa), "--lexicon-free", "--rounds", "0"]


def test_a_folder_that_is_missing_is_told_before_the_model_runs(command, tmp_path, capsys):
    path = tmp_path / "lost/emissions.npz"
    assert main([*command, "--emissions", str(path)]) == 1
    said = capsys.readouterr()
    assert f"--emissions {path}: folder {path.parent} does not exist" in said.err
    assert said.out == ""


def test_a_model_that_gives_no_numbers_is_refused(command, args, capsys):
    state = torch.load(args.path, weights_only=False)
    state["model"]["w2v_encoder.proj.bias"][3] = float("nan")
    torch.save(state, args.path)
    assert main([*command, "--emissions", args.emissions]) == 1
    said = capsys.readouterr().err
    assert "the model gives no numbers (NaN) for utterance " in said
    assert "fp16" not in said
    assert not os.path.exists(args.emissions)


def test_an_utterance_that_nothing_is_found_for_counts(command, args, monkeypatch, capsys):
    split = split_of(args)
    split.log_probs[0][:] = -np.inf
    monkeypatch.setattr(tune_lm, "observed", lambda args: split)
    split.symbols = ["<s>", "A", "|", "E"]
    assert main([*command, "--workers", "1"]) == 0
    assert "best of 5 settings" in capsys.readouterr().out
