"""Checkpoints made to run code: refused at every door, and nothing ran."""

import argparse
import collections
import copy
import functools
import importlib
import io
import json
import operator
import os
import pickle
import re
import runpy
import subprocess
import timeit
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, utils
from fairseq.data import Dictionary
from helpers.models import build_model, finetuned_state
from helpers.processes import run_forked
from numpy.testing._private.utils import runstring
from omegaconf import OmegaConf
from torch.fx.graph_module import _forward_from_src
from torch.jit.unsupported_tensor_ops import execWrapper
from torch.utils import collect_env

from fairseq_speedup.__main__ import main
from fairseq_speedup.checkpoints import opening
from fairseq_speedup.checkpoints.opening import TRUST, CheckpointError, open_checkpoint
from fairseq_speedup.checkpoints.pickles import refused_types, types_asked_for
from fairseq_speedup.inspection.facts import inspect_file

DOORS = Path(__file__).with_name("hostile_doors.py")


class Call:
    """Pickled as the call of a function, whose result is then given ``state``."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments, state)

    def __reduce__(self):
        return self.call if self.call[2] is not None else self.call[:2]

    def __call__(self):
        """pickle wants what is called to be callable, though it be pickled as a call itself."""


def gadgets(canary: Path) -> dict:
    """name -> object whose unpickling makes the file ``canary``"""
    touch, python = f"touch '{canary}'", f'open("{canary}", "w").close()'
    saved = io.BytesIO()
    torch.save(Call(os.system, touch), saved)
    system = Call(getattr, Call(importlib.import_module, "os"), "system")
    return {
        "os.system": Call(os.system, touch),
        "eval": Call(eval, python),
        "exec": Call(exec, python),
        "Popen": Call(subprocess.Popen, ["touch", str(canary)]),
        "partial": Call(functools.partial(os.system, touch)),
        "methodcaller": Call(operator.methodcaller("touch"), canary),
        "import": Call(system, touch),
        "pickle": Call(pickle.loads, pickle.dumps(Call(os.system, touch))),
        "timeit": Call(timeit.timeit, python, "pass", timeit.default_timer, 1),
        "runpy": Call(runpy._run_code, python, {}),
        "map": Call(list, Call(map, os.system, [touch])),
        "torch.storage": Call(torch.storage._load_from_bytes, saved.getvalue()),
        "torch.jit": Call(execWrapper, python, {}, {}),
        "torch.fx": Call(_forward_from_src, f"{python}\nforward = 0", {}),
        "torch.collect_env": Call(collect_env.run, touch),
        "rebuild": Call(torch._tensor._rebuild_from_type_v2, os.system, int, (touch,), None),
        "hooks": Call(
            torch._utils._rebuild_parameter, torch.zeros(1), True, {0: Call(eval, python)}
        ),
        "numpy": Call(runstring, python, {}),
        "numpy array": np.array([Call(os.system, touch)], dtype=object),
        "fairseq": Call(utils.eval_bool, python),
        "defaultdict": collections.defaultdict(os.system, {"a": Call(os.system, touch)}),
        "Namespace": argparse.Namespace(arch=Call(eval, python)),
        "Dictionary": Call(Dictionary, state={"symbols": Call(eval, python)}),
    }


PLACES = {
    "model": lambda state, evil: state["model"].update(weight=evil),
    "args": lambda state, evil: state.update(args=argparse.Namespace(arch="wav2vec2", a=evil)),
    "cfg": lambda state, evil: state["cfg"]["model"].update(a=evil),
    "extra_state": lambda state, evil: state["extra_state"].update(a=evil),
    "task_state": lambda state, evil: state.update(task_state={"target_dictionary": evil}),
    "optimizer": lambda state, evil: state.update(last_optimizer_state=evil),
}
FORMATS = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
    "protocol 4": {"pickle_protocol": 4},
}


CNN = "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2"


def configs_with_code(w2v_path: Path, name: str, canary: Path) -> dict:
    """Checkpoints of harmless types alone, whose configs would run code later."""
    state = torch.load(w2v_path)
    python = f'(open("{canary}", "w").close(), {CNN})[1]'
    run = f"${{run:\"touch '{canary}'\"}}"
    model = state["cfg"]["model"]
    if name in ("wav2vec_ctc", "speedup_ctc"):
        state = finetuned_state(build_model(w2v_path), name)
        state["cfg"]["model"]["w2v_args"]["model"]["conv_feature_layers"] = python
    elif name == "pretrained":
        model["conv_feature_layers"] = python
    elif name == "bytes":
        model["conv_feature_layers"] = python.encode()
    elif name == "Namespace":
        args = {**model, "conv_feature_layers": python}
        state |= {"cfg": None, "args": argparse.Namespace(arch="wav2vec2", **args)}
    elif name == "Namespace inside":
        state = finetuned_state(build_model(w2v_path), "wav2vec_ctc")
        args = {**model, "conv_feature_layers": python}
        state["cfg"]["model"]["w2v_args"] = argparse.Namespace(arch="wav2vec2", **args)
    elif name == "Microsoft":
        state = {"cfg": {**model, "conv_feature_layers": python}, "model": state["model"]}
    elif name == "s3prl":
        options = {**model, "extractor_conv_feature_layers": python}
        state = {"Config": {"distiller": options}, "Distiller": state["model"]}
    elif name == "student":
        state["cfg"]["model"] = {
            "_name": "distilled_student",
            "student_layers": 1,
            "w2v_args": {"model": {**model, "conv_feature_layers": python}, "task": {}},
        }
    elif name == "data set":
        state = finetuned_state(build_model(w2v_path), "wav2vec_ctc")
        state["cfg"]["task"]["precompute_mask_config"] = {"feature_encoder_spec": python}
    elif name == "criterion":
        state["cfg"]["criterion"] = {"_name": "ctc", "wer_args": python}
    elif name == "resolver":
        model["an_option"] = run
    elif name == "resolver of a node":
        state["cfg"] = OmegaConf.create({**state["cfg"], "model": {**model, "an_option": run}})
    elif name == "resolver of a section":
        cfg = OmegaConf.create(state["cfg"])
        vars(cfg["model"])["_content"] = run
        state["cfg"] = cfg
    elif name == "escaped resolver":
        model["an_option"] = "${${common.seed}" + run.removeprefix("$")
    elif name == "resolver in bytes":
        model["an_option"] = run.encode()
    elif name == "resolver in a key":
        model["an_option"] = {run: 1}
    elif name == "YAML":
        state["cfg"] = f"model: {{_name: wav2vec2, conv_feature_layers: '{python}'}}"
    return state


CONFIGS = {
    "wav2vec_ctc": "w2v_args.model.conv_feature_layers=.*evaluates this field as Python",
    "speedup_ctc": "w2v_args.model.conv_feature_layers=.*evaluates this field as Python",
    "pretrained": "cfg.model.conv_feature_layers=.*evaluates this field as Python",
    "bytes": "cfg.model.conv_feature_layers holds bytes",
    "Namespace": "args.conv_feature_layers=.*evaluates this field as Python",
    "Namespace inside": "w2v_args.conv_feature_layers=.*evaluates this field as Python",
    "Microsoft": "cfg.conv_feature_layers=.*evaluates this field as Python",
    "s3prl": "Config.distiller.extractor_conv_feature_layers=.*evaluates this field as Python",
    "student": "w2v_args.model.conv_feature_layers=.*evaluates this field as Python",
    "data set": "precompute_mask_config.feature_encoder_spec=.*evaluates this field as Python",
    "criterion": "cfg.criterion.wer_args=.*evaluates this field as Python",
    "resolver": "cfg.model.an_option=.*calls a resolver",
    "resolver of a node": "cfg.model.an_option=.*calls a resolver",
    "resolver of a section": "cfg.model=.*calls a resolver",
    "escaped resolver": "cfg.model.an_option=.*calls a resolver",
    "resolver in bytes": "cfg.model.an_option=.*calls a resolver",
    "resolver in a key": "the name of cfg.model.an_option..*calls a resolver",
    "YAML": "its cfg is a str, not a dict",
}


IN_ALL = ("speedup_ctc", "data set", "resolver")  # these configs are given to the slow doors too


def canary_of(path: Path) -> Path:
    return path.parent / f"canary {path.stem}"


@pytest.fixture(scope="module")
def attempts(tmp_path_factory, corpus, pretrained) -> list[dict]:
    """Each file at each door: {"file", "door", "error", "seen", "ran"}"""
    folder = tmp_path_factory.mktemp("hostile")
    files = folder / "files"
    files.mkdir()
    state = torch.load(pretrained)

    def write(name, place, gadget, form="zip"):
        path = files / f"{name}.pt"
        spoilt = copy.deepcopy(state)
        PLACES[place](spoilt, gadgets(canary_of(path))[gadget])
        torch.save(spoilt, path, **FORMATS[form])

    for gadget in gadgets(folder):
        write(f"gadget {gadget}", "extra_state", gadget)
    for place in PLACES:
        write(f"{'' if place == 'optimizer' else 'all '}in {place}", place, "os.system")
        write(f"legacy in {place}", place, "torch.jit", "legacy")
        write(f"protocol 4 in {place}", place, "eval", "protocol 4")
    write("all legacy", "model", "torch.jit", "legacy")
    (files / "plain pickle.pt").write_bytes(
        pickle.dumps(gadgets(canary_of(files / "plain pickle.pt"))["os.system"])
    )
    for name in CONFIGS:
        path = files / f"{'all ' if name in IN_ALL else ''}config {name}.pt"
        torch.save(configs_with_code(pretrained, name, canary_of(path)), path)
    results = folder / "results.jsonl"
    run_forked(DOORS, files, corpus, pretrained, results)
    return [json.loads(line) for line in results.read_text().splitlines()]


def test_nothing_runs_at_any_door(attempts):
    doors = collections.Counter(each["door"] for each in attempts)
    assert len(doors) == 11
    assert min(doors.values()) == 9
    for each in attempts:
        if each["door"] != "trusted":
            assert not each["seen"], each
            assert not each["ran"], each


def test_every_file_is_refused_at_every_door_with_its_name_and_the_reason(attempts):
    for each in attempts:
        if each["door"] != "trusted":
            assert f"{each['file']}.pt" in each["error"], each
            name = each["file"].split("config ")[-1]
            reason = CONFIGS[name] if "config" in each["file"] else r"is refused: it asks for \w"
            assert re.search(reason, each["error"]), each


def test_the_same_files_run_when_they_are_trusted(attempts):
    trusted = [e for e in attempts if e["door"] == "trusted" and "config" not in e["file"]]
    assert len(trusted) > 30
    for each in trusted:
        assert each["ran"] and each["seen"], each  # else their refusal would show nothing


@pytest.mark.parametrize("form", FORMATS)
def test_the_types_that_a_pickle_asks_for_are_listed_without_running_it(tmp_path, form):
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    expected = {
        "os.system": ["posix.system"],
        "eval": ["builtins.eval"],
        "partial": ["functools.partial", "posix.system"],
        "import": ["builtins.getattr", "importlib.import_module"],
        "torch.storage": ["torch.storage._load_from_bytes"],
        "rebuild": ["builtins.int", "posix.system", "torch._tensor._rebuild_from_type_v2"],
        "Namespace": ["argparse.Namespace", "builtins.eval"],
    }
    for name, types in expected.items():
        torch.save({"model": gadgets(canary)[name], "cfg": {}}, path, **FORMATS[form])
        asked = [each for each in types_asked_for(path) if each != "_codecs.encode"]  # of bytes
        assert asked == types
        assert refused_types(asked) == [
            each for each in types if not each.endswith(("Namespace", "int", "type_v2"))
        ]
    assert not canary.exists()


def test_a_pickle_with_an_archive_at_its_end_is_listed_as_a_pickle(tmp_path):
    evil, harmless = tmp_path / "evil.pt", tmp_path / "harmless.pt"
    torch.save({"model": gadgets(tmp_path / "canary")["eval"]}, evil, **FORMATS["legacy"])
    torch.save({"model": {}}, harmless)
    evil.write_bytes(evil.read_bytes() + harmless.read_bytes())
    assert types_asked_for(evil) == ["builtins.eval"]
    with pytest.raises(CheckpointError, match=r"it asks for builtins\.eval"):
        open_checkpoint(str(evil))


def test_opcodes_that_torch_never_writes_are_refused_and_named(tmp_path):
    path = tmp_path / "evil.pt"
    path.write_bytes(b"(S'touch canary'\nios\nsystem\n.")  # INST calls as it names
    assert refused_types(types_asked_for(path)) == ["os.system"]
    with pytest.raises(CheckpointError, match=r"is refused: it asks for os\.system"):
        open_checkpoint(str(path))
    path.write_bytes(b"\x80\x02\x82\x05.")  # EXT1: a number that copyreg knows
    assert refused_types(types_asked_for(path)) == ["extension 5 of copyreg"]
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        open_checkpoint(str(path))


class Other:
    """A type that some library allows torch to load."""


def test_types_that_other_libraries_allow_are_refused_all_the_same(tmp_path):
    torch.save({"model": Other()}, tmp_path / "other.pt")
    with torch.serialization.safe_globals([Other]):
        before = set(torch.serialization.get_safe_globals())
        assert isinstance(torch.load(tmp_path / "other.pt")["model"], Other)
        with pytest.raises(CheckpointError, match=r"it asks for test_malicious_checkpoints\.Other"):
            open_checkpoint(str(tmp_path / "other.pt"))
        assert set(torch.serialization.get_safe_globals()) == before


def asks_for_no_restriction(path, overrides=None):
    with open(path, "rb") as file:
        return torch.load(file, map_location=torch.device("cpu"), weights_only=False)


def asks_for_nothing(path, overrides=None):
    return torch.load(path, map_location=lambda storage, _: storage)


def gives_its_own_pickle(path, overrides=None):
    return torch.load(path, "cpu", pickle)


def calls_torchs_module(path, overrides=None):
    return torch.serialization.load(path, weights_only=False)


@pytest.mark.parametrize(
    "load", [asks_for_no_restriction, asks_for_nothing, gives_its_own_pickle, calls_torchs_module]
)
def test_whatever_a_fairseq_distribution_asks_of_torch(tmp_path, pretrained, load, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    safe = opening._safe(load, [])
    assert safe(str(pretrained)).keys() == torch.load(pretrained, weights_only=True).keys()
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    torch.save({"model": gadgets(canary)["os.system"]}, path)
    before = torch.load
    with pytest.raises(CheckpointError, match=r"evil.pt is refused: it asks for posix.system"):
        safe(str(path))
    assert torch.load is before
    assert not canary.exists()
    monkeypatch.setenv(TRUST, "1")
    safe(str(path))
    assert canary.exists()


def test_inspect_trusts_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv(TRUST, "1")
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    torch.save({"model": gadgets(canary)["os.system"]}, path)
    report = inspect_file(str(path))
    assert not report["safe"]
    assert report["refused_types"] == ["posix.system"]
    assert "it asks for posix.system" in report["error"]
    assert not canary.exists()


# -- spoilt from within: harmless types in a state that nobody would give them --------------------


def endless_layers(state):
    state["cfg"]["model"]["encoder_layers"] = 10**12
    return "encoder_layers=1000000000000 is out of range; it must be 1 to 1000"


def no_dictionary(state):
    state["task_state"] = {"target_dictionary": OmegaConf.create({"symbols": ["a"]})}
    return "task_state.target_dictionary is a DictConfig, not a dictionary of symbols"


def no_symbols(state):
    state["task_state"] = {"target_dictionary": Call(Dictionary, state={"symbols": 5})}
    return "task_state.target_dictionary is a Dictionary, not a dictionary of symbols"


def within_itself(state):
    state["cfg"]["model"]["an_option"] = state["cfg"]
    return "configs may be 50 deep"


def doubling(state):
    values = ["x"]
    for _ in range(40):
        values = [values, values]
    state["cfg"]["model"]["an_option"] = values
    return "configs may be 50 deep and hold 100,000 values"


def huge_list(state):
    state["cfg"]["model"]["conv_feature_layers"] = f"{CNN} * 1000000000"
    return "conv_feature_layers=.*literals"


def huge_number(state):
    state["cfg"]["model"]["conv_feature_layers"] = "9**9**9**9"
    return "conv_feature_layers=.*literals"


def nested_lists(state):
    state["cfg"]["model"]["conv_feature_layers"] = "[(8, 3, 2)] * 99 * 99 * 99 * 99"
    return "conv_feature_layers=.*literals"


def no_list(state):
    state["cfg"]["model"]["conv_feature_layers"] = "(8, 10, 5)"
    return "conv_feature_layers='.8, 10, 5.' is no list of"


def without_content(state):
    cfg = OmegaConf.create(state["cfg"])
    del vars(cfg["model"])["_content"]
    state["cfg"] = cfg
    return "is not laid out as a fairseq checkpoint: KeyError"


def another_class(state):
    args = Call(argparse.Namespace, state=(None, {"__class__": Dictionary}))
    state |= {"cfg": None, "args": args}
    return "its args is a Dictionary, not a Namespace"


def no_namespace(state):
    state |= {"cfg": None, "args": ["wav2vec2"]}
    return "its args is a list, not a Namespace"


def no_weight(state):
    state["model"]["mask_emb"] = Dictionary()
    return "mask_emb is a Dictionary, no weight"


def no_weights(state):
    state["model"] = ["mask_emb"]
    return "holds no model weights"


def no_names(state):
    state["model"] = {5: torch.zeros(1)}
    return "is not laid out as a fairseq checkpoint"


@pytest.mark.parametrize(
    "spoil",
    [
        endless_layers,
        no_dictionary,
        no_symbols,
        within_itself,
        doubling,
        huge_list,
        huge_number,
        nested_lists,
        no_list,
        without_content,
        another_class,
        no_namespace,
        no_weight,
        no_weights,
        no_names,
    ],
)
def test_spoilt_objects_end_in_one_clear_error(tmp_path, pretrained, spoil):
    state = torch.load(pretrained)
    words = spoil(state)
    torch.save(state, tmp_path / "spoilt.pt")
    with pytest.raises(CheckpointError, match=rf"(?s)spoilt.pt.*{words}"):
        build_model(tmp_path / "spoilt.pt")


def test_what_surrounds_the_values_of_a_config_does_not_matter(tmp_path, pretrained):
    state = torch.load(pretrained)
    cfg = OmegaConf.create(state["cfg"])
    vars(cfg["model"])["_metadata"].object_type = Dictionary
    vars(cfg["model"])["to_container"] = vars(cfg)["_get_node"] = dict
    torch.save(state | {"cfg": cfg}, tmp_path / "spoilt.pt")
    assert open_checkpoint(str(tmp_path / "spoilt.pt"))["cfg"] == state["cfg"]
    build_model(tmp_path / "spoilt.pt")


def test_no_file_chooses_which_of_fairseqs_models_and_tasks_are_built(
    tmp_path, pretrained, corpus, capsys
):
    path = tmp_path / "other.pt"
    state = finetuned_state(build_model(pretrained), "wav2vec_ctc")
    state["cfg"]["task"] = {"_name": "translation", "left_pad_source": "True", "data": "/lost"}
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="task 'translation'; valid values: speedup_fine"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    state["cfg"]["model"] = {"_name": "fconv", "encoder_layers": "print('canary')"}
    torch.save(state, path)
    for command in (
        ["profile", "--checkpoint", str(path)],
        ["calibrate", str(corpus), "--path", str(path)],
        ["inspect", str(path)],
    ):
        assert main(command) == 1
        printed = capsys.readouterr()
        assert re.search(r"other.pt holds a '?fconv'? model", printed.err)
        assert "canary" not in printed.out


def test_a_checkpoint_that_names_itself_as_its_pretrained_file_is_not_followed(
    tmp_path, pretrained, caplog
):
    path = tmp_path / "itself.pt"
    state = finetuned_state(build_model(pretrained), "wav2vec_ctc")
    state["cfg"]["model"] |= {"w2v_args": None, "w2v_path": str(path)}
    torch.save(state, path)
    build_model(path)
    assert f"no pretrained model is at {path}" in caplog.text
