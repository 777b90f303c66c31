"""The study's runner: trains, decodes, skips what is finished, goes on after a failure."""

import csv
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from fairseq.checkpoint_utils import load_checkpoint_to_cpu
from helpers.commands import REPO
from helpers.corpora import write_dictionary, write_split
from helpers.models import write_pretrained
from helpers.processes import run_forked
from omegaconf import OmegaConf

from fairseq_speedup.__main__ import main
from fairseq_speedup.report.runs import TIMES, read_runs
from fairseq_speedup.transformer.layer_removal import parse_indices

ROWS = """
full: {train: ["optimization.max_update=${updates}"]}
merge: {of: full, decode: {merge_20: {merge_ratio: 0.2}, layers_1: {keep_layers: "1"}}}
exits:
  from: full
  train: [model.exit_layers=upper, model.exit_heads_only=true, criterion._name=ctc_exits]
broken: {train: [model.downsample=convv, model.downsample_factor=2]}
"""
CONFIG = """
out: ???
data: ???
w2v_path: ???
rows: ${{hydra:runtime.cwd}}/rows.yaml
row: full
seed: 1
updates: 4
labels: ltr
train_subset: train
tests: {{test: [greedy]}}
repeat: null
times: {{seed: 1, tests: {{test: [greedy]}}}}
finetuning:
  config_dir: {quickstart}
  config_name: finetuning
  overrides: [optimization.max_update=4, dataset.validate_interval=1]
generate: [--cpu, --batch-size, "4"]
decoders: {{greedy: []}}
hydra:
  run: {{dir: "${{out}}/hydra"}}
  sweep: {{dir: "${{out}}/hydra", subdir: "${{row}}"}}
  sweeper: {{params: {{row: "merge,broken,full"}}}}
  callbacks: {{summary: {{_target_: study.Summary}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    for split, count in [("train", 12), ("valid", 4), ("test", 6)]:
        write_split(folder / "data", split, count, seed=len(split))
    write_dictionary(folder / "data")
    write_pretrained(folder / "tiny.pt", normalize=True)
    (folder / "rows.yaml").write_text(ROWS)
    (folder / "config").mkdir()
    (folder / "config/small.yaml").write_text(
        CONFIG.format(quickstart=REPO / "examples/quickstart")
    )
    return folder


def study_command(folder, name, *overrides) -> list[str]:
    command = [REPO / "examples/study/study.py", "--config-dir", folder / "config"]
    command += ["--config-name", name, f"data={folder}/data", f"w2v_path={folder}/tiny.pt"]
    return list(map(str, [*command, *overrides]))


def study(folder, *overrides, check=True):
    command = study_command(folder, "small", f"out={folder}/out", *overrides)
    return run_forked(*command, cwd=folder, check=check)


def error_of(folder, *overrides) -> str:
    """Of a study that fails, in words."""
    done = study(folder, *overrides, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def swept(folder):
    return study(folder, "-m", check=False)


def test_every_row_is_trained_and_decoded_but_the_broken_one(folder, swept):
    rows = {row.name: row for row in read_runs(f"{folder}/out/results")}
    assert set(rows) == {"train/full", "train/merge_20", "train/layers_1"}
    macs = {name: row.gmacs_per_second for name, row in rows.items()}
    assert macs["train/layers_1"] < macs["train/merge_20"] < macs["train/full"]
    assert rows["train/full"].seeds == [1]
    assert rows["train/full"].hours > 0
    assert swept.returncode == 1
    assert "study: 1 runs failed" in swept.stdout
    failed = folder / "out/models/train/broken/seed1/failed.txt"
    assert f"failed: {failed}" in swept.stderr
    assert "convv" in failed.read_text()


def test_what_is_finished_is_skipped(folder, swept):
    log = folder / "out/models/train/full/seed1/log.txt"
    results = folder / "out/results/train/full/seed1/test_greedy"
    trained, decoded = log.stat().st_mtime_ns, (results / "compute.json").stat().st_mtime_ns
    study(folder, "row=full")
    assert log.stat().st_mtime_ns == trained
    assert (results / "compute.json").stat().st_mtime_ns == decoded


def test_the_same_row_started_twice_is_decoded_once(folder, swept):
    results = folder / "out/results/train/full/seed1/test_greedy"
    shutil.rmtree(results)
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda _: study(folder, "row=full"), range(2)))
    assert [done.stderr for done in runs if "failed" in done.stderr] == []
    assert (results / "compute.json").is_file()


def test_rows_are_decoded_again_for_their_times(folder, swept):
    for repeat in (1, 2):
        study(folder, "row=merge", "seed=1,2", f"repeat={repeat}", "-m")  # of seed 1 alone
    times = {row.name: row for row in read_runs(f"{folder}/out/times")}
    assert set(times) == {"train/merge_20", "train/layers_1"}
    assert times["train/merge_20"].seeds == [1]
    assert len(list((folder / "out/times/train/merge_20/seed1").iterdir())) == 2
    given = ["report", f"{folder}/out/results", "--times", f"{folder}/out/times"]
    assert main([*given, "--output", f"{folder}/report", "--no-pictures"]) == 0
    with (folder / "report/report.csv").open() as file:
        found = {each["model"]: each["real_time_factor"] for each in csv.DictReader(file)}
    assert float(found["train/merge_20"]) == times["train/merge_20"].real_time_factor
    assert found["train/full"] == ""


def test_times_of_what_is_not_trained_are_an_error(folder, swept):
    error = error_of(folder, "row=broken", "repeat=1", "-m")
    assert "repeat=1: " in error
    assert "is not trained yet" in error


def test_the_summary_has_no_failures_of_earlier_runs(folder, swept):
    assert (folder / "out/models/train/broken/seed1/failed.txt").is_file()
    assert "study: every run is finished" in study(folder, "row=full", "-m").stdout


def test_a_row_can_start_from_another(folder, swept):
    study(folder, "row=exits")
    row = next(row for row in read_runs(f"{folder}/out/results") if row.name == "train/exits")
    assert row.mean_layers is not None


def test_a_changed_grid_is_no_silent_reuse(folder, tmp_path, swept):
    message = "was trained with other {} than the grid now has"
    changed = error_of(folder, "row=full", "updates=5")  # which rows.yaml has there
    assert message.format("overrides") in changed
    other = (REPO / "examples/quickstart/finetuning.yaml").read_text()
    (tmp_path / "finetuning.yaml").write_text(f"{other}\n# otherwise\n")
    message = message.format("config")
    assert message in error_of(folder, "row=full", f"finetuning.config_dir={tmp_path}")


def test_what_was_decoded_otherwise_is_decoded_again(folder, swept):
    compute = folder / "out/results/train/full/seed1/test_greedy/compute.json"
    checkpoint = folder / "out/models/train/full/seed1/checkpoint_last.pt"
    changes = [lambda: ["generate=[--cpu, --batch-size, '2']"], lambda: []]
    changes.append(lambda: checkpoint.touch() or [])  # as if trained again
    for change in changes:
        before = compute.stat().st_mtime_ns
        done = study(folder, "row=full", *change())
        assert re.search(
            "^other (options|model) than before: .* is decoded again$", done.stdout, re.M
        )
        assert compute.stat().st_mtime_ns > before
    (compute.parent / "decoded.json").unlink()  # what decoding ends with
    assert study(folder, "row=full").returncode == 0
    assert (compute.parent / "decoded.json").is_file()


BAD_ROWS = {
    "full: [": "cannot be read: ",
    "[full]": "holds no rows: NAME: {train, ",
    "": "holds no rows",
    "full: {train: ['${lost}']}": "cannot be read: Interpolation key 'lost' not found",
    "full:": "row full is None; it must be {} or hold any of train, ",
    "full: {trian: []}": "row full: unknown trian; valid: decode, decoders, from, ",
    "full: {train: model.frame_pool=2}": "row full: train is 'model.frame_pool=2'; it must be a",
    "full: {decode: [a, b]}": "row full: decode is ['a', 'b']; it must be names with options",
    "full: {of: lost}": "row full: there is no row lost: full",
    "full: {of: full}": "rows start from one another: full, full",
    "{full: {}, a: {of: full}, b: {of: a}}": "row b: of: a is not trained either; of: full is",
    "{full: {}, a: {of: full, decode: {full: {}}}}": "rows full and a both decode as full",
    "full: {decoders: [beem]}": "row full: unknown decoder beem; the study's decoders: greedy",
}


@pytest.mark.parametrize("text", BAD_ROWS)
def test_bad_rows_are_named(tmp_path, text, monkeypatch):
    monkeypatch.syspath_prepend(REPO / "examples/study")
    from study import Study, StudyError

    (tmp_path / "rows.yaml").write_text(text)
    cfg = OmegaConf.create(CONFIG.format(quickstart=REPO / "examples/quickstart"))
    cfg.rows = f"{tmp_path}/rows.yaml"
    with pytest.raises(StudyError) as caught:
        Study.of(cfg)
    assert BAD_ROWS[text] in str(caught.value)
    assert str(tmp_path / "rows.yaml") in str(caught.value) or "decoder" in str(caught.value)


def test_an_import_leaves_hydra_as_fairseq_needs_it(monkeypatch):
    monkeypatch.syspath_prepend(REPO / "examples/study")
    monkeypatch.delitem(sys.modules, "study", raising=False)
    monkeypatch.setattr("hydra.version.VersionBase.setbase", None)
    importlib.import_module("study")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["row=lost"], "study: row=lost is not in"),
        (["row=full,lost", "-m"], "study: row=lost is not in"),
        (["row=full", "rows=/lost.yaml"], "study: rows=/lost.yaml is not a file"),
        (
            ["tests={test: [beem]}"],
            "tests.test: unknown decoder beem; the study's decoders: greedy",
        ),
        (["tests={test: greedy}"], "tests.test is 'greedy'; it must be a list"),
        (["w2v_path=/lost.pt"], "row full needs /lost.pt, which does not exist (w2v_path)"),
        (
            ["+tests.lost=[greedy]"],
            "lost.tsv, which does not exist (split lost; ~tests.lost ",
        ),
        (["finetuning.config_name=lost"], "there is no "),
    ],
)
def test_a_bad_study_is_named_before_any_training(folder, tmp_path, overrides, message):
    assert message in error_of(folder, f"out={tmp_path}/out", *overrides)
    assert not list(tmp_path.rglob("*.pt"))


def test_the_students_of_small_models_are_distilled_with_options_that_there_are():
    study = OmegaConf.load(REPO / "examples/study/small.yaml")
    given = OmegaConf.to_container(study.distillation, resolve=False)["overrides"]
    rows = OmegaConf.to_container(OmegaConf.load(REPO / "examples/study/rows.yaml"))
    folder = ["--config-dir", str(REPO / "config/distillation"), "--config-name", "base"]
    for row in rows.values():
        if "student" in row:
            done = run_forked(
                "fairseq-hydra-train", *folder, *given, *row["student"], "--cfg", "job"
            )
            model = OmegaConf.create(done.stdout).model
            if model.predict_layers == "none":  # all are matched
                assert 6 % model.student_layers == 0
            else:
                predicted = parse_indices("predict_layers", model.predict_layers, "one layer")
                assert predicted == [2, 4, 6]


@pytest.fixture
def runner(monkeypatch):
    """The study's module."""
    monkeypatch.syspath_prepend(REPO / "examples/study")
    return importlib.import_module("study")


def config_in(folder, rows: str, **given):
    """Of a study in a folder, of these rows."""
    config = CONFIG.format(quickstart=REPO / "examples/quickstart")
    config = OmegaConf.create(config.replace("${hydra:runtime.cwd}", str(folder)))
    del config["hydra"]
    (folder / "rows.yaml").write_text(rows)
    given = {"w2v_path": "/full.pt", **given}
    return OmegaConf.merge(config, {"out": str(folder / "out"), "data": str(folder), **given})


def test_gates_are_trained_and_cut_before_the_row_on_the_device_that_is_asked_for(
    tmp_path, monkeypatch, runner
):
    calls = []

    def call(command, log):
        words = [str(word) for word in command]
        calls.append(words)
        if "prune" in words:
            Path(words[-1]).write_text("")

    monkeypatch.setattr(runner, "call", call)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    rows = "half: {prune: [gates=1], train: [pool=2], teacher: kl}\nplain: {teacher: kl}"
    config = config_in(tmp_path, rows, cpu=False)
    with pytest.raises(runner.StudyError, match="row half: unknown teacher kl; valid: none"):
        runner.Study.of(config)
    config.teachers = {"kl": ["teacher=${w2v_path}"]}
    config.pruning = {"gates": ["gates=0"], "healing": ["healing=1"]}
    study = runner.Study.of(config)
    for _ in range(2):  # what is done is not done again
        study.train("half")
    gates, prune, healing = calls
    folder = study.folder("half")
    pruned = folder / "gates/pruned.pt"
    assert gates[-4:] == ["pool=2", "gates=0", "gates=1", "teacher=/full.pt"]
    assert "model.w2v_path='/full.pt'" in gates
    assert prune[-4:] == ["prune", f"{folder}/gates/checkpoint_last.pt", "--output", str(pruned)]
    assert healing[-3:] == ["pool=2", "healing=1", "teacher=/full.pt"]
    assert f"model.w2v_path='{pruned}'" in healing
    assert "common.cpu=false" in gates and "common.cpu=false" in healing
    calls.clear()
    study.train("plain")
    assert calls[0][-1] == "teacher=/full.pt" and "healing=1" not in calls[0]


def test_a_model_is_ordered_for_its_widths_once(tmp_path, monkeypatch, runner):
    calls = []

    def call(command, log):
        words = [str(word) for word in command]
        calls.append(words)
        if "widths" in words:
            Path(words[words.index("--output") + 1]).write_text("")

    monkeypatch.setattr(runner, "call", call)
    rows = "many: {widths: ['0.7', '0.5'], train: [widths=1]}"
    study = runner.Study.of(config_in(tmp_path, rows))
    for _ in range(2):
        study.train("many")
    ordering, training = calls
    ordered = study.folder("many") / "ordered.pt"
    assert ordering[2:7] == ["fairseq_speedup", "widths", "/full.pt", "--widths", "0.7"]
    assert ordering[7] == "0.5" and str(ordered) in ordering
    assert f"model.w2v_path='{ordered}'" in training and training[-1] == "widths=1"
    with pytest.raises(runner.StudyError, match="it must be a list of widths"):
        runner.Study.of(config_in(tmp_path, "many: {widths: 0.5}"))


def test_what_a_study_cannot_start_from_or_run_on_is_named(tmp_path, monkeypatch, runner):
    monkeypatch.setattr(runner, "call", lambda command, log: None)
    start = tmp_path / "out/models/train/full/seed1/checkpoint_last.pt"
    for name in ("dict.ltr.txt", "train.tsv", "train.ltr", "test.tsv", "test.ltr"):
        (tmp_path / name).touch()
    config = config_in(tmp_path, "more: {}", w2v_path=str(start))
    study = runner.Study.of(config)

    def refusal(call, *arguments) -> str:
        with pytest.raises(runner.StudyError) as caught:
            call(*arguments)
        return str(caught.value)

    assert "train it first: the row full" in refusal(study.check_files, "more")
    start.parent.mkdir(parents=True)
    start.touch()
    (start.parent / "options.json").touch()
    assert "whose training has not ended yet" in refusal(study.check_files, "more")
    (start.parent / "done").touch()
    study.check_files("more")
    study.train("more")
    written = start.stat().st_mtime_ns
    os.utime(start, (1, 1))  # trained again
    assert "was trained with other start than" in refusal(study.train, "more")
    os.utime(start, ns=(written, written))
    study.train("more")
    (tmp_path / "train.ltr").write_text("A |\n")
    other = f"was trained with other files ({tmp_path.name}/train.ltr) than the grid now has"
    assert other in refusal(study.train, "more")
    parts = {"gates": 3, "healing": 2, "match": 1, "updates": 6}
    assert "gates=3 and healing=2" in refusal(runner.Study.of, OmegaConf.merge(config, parts))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no GPU" in refusal(runner.Study.of, OmegaConf.merge(config, {"cpu": False}))


def test_what_files_hold_decides_and_not_where_they_are(tmp_path, monkeypatch, runner):
    """Of a row that starts from another one, and of a decoding with a language model."""
    calls = []
    monkeypatch.setattr(runner, "call", lambda command, log: calls.append(str(command[0])))
    monkeypatch.setattr(runner, "has_wer", lambda folder, test: True)
    lm = tmp_path / "words.arpa"
    for name in ("full.pt", "train.tsv", "train.ltr", "test.tsv", "test.ltr", lm.name):
        (tmp_path / name).write_text(f"/somewhere\n{name}\n")
    given = {"w2v_path": str(tmp_path / "full.pt"), "decoders": {"lm": ["--kenlm-model", str(lm)]}}
    rows = "full: {}\nmore: {from: full}"
    study = runner.Study.of(config_in(tmp_path, rows, **given, tests={"test": ["lm"]}))
    start, trained = (study.folder(name) / "checkpoint_last.pt" for name in ("full", "more"))
    for path in (start, trained):
        path.parent.mkdir(parents=True)
        path.write_text("trained")
    decoding = study.results("more", "test", "lm") / "decoded.json"

    def run() -> list[str]:
        calls.clear()
        study.train("more")
        study.decode("more")
        return list(calls)

    train, generate = "fairseq-hydra-train", "fairseq-generate"
    assert run() == [train, train, generate]
    assert run() == []
    (tmp_path / "test.tsv").write_text("/elsewhere\ntest.tsv\n")  # the audio was moved
    (tmp_path / "train.tsv").write_text("/elsewhere\ntrain.tsv\n")
    lm.write_text(lm.read_text())
    assert run() == []
    for changed in (lm, tmp_path / "test.ltr", tmp_path / "test.tsv"):
        changed.write_text("others\nothers\n")
        assert run() == [generate]
        assert run() == []
    earlier = json.loads(decoding.read_text())
    del earlier["files"]  # as earlier versions recorded it
    decoding.write_text(json.dumps(earlier))
    assert run() == []
    start.write_text("trained again")
    with pytest.raises(runner.StudyError, match=r"other files \(seed1/checkpoint_last.pt\) than"):
        run()


def test_seeds_share_a_student_unless_each_has_a_teacher_of_its_own(tmp_path, monkeypatch, runner):
    trained = []

    def call(command, log):
        trained.append({word.split("=")[0]: word.split("=")[-1].strip("'") for word in command})

    monkeypatch.setattr(runner, "call", call)
    config = config_in(tmp_path, "small: {student: [model.student_layers=2]}")
    (tmp_path / "base.yaml").write_text("student: true")
    config.distillation = {"config_dir": str(tmp_path), "config_name": "base", "overrides": []}
    for of_a_study in (False, True):
        for seed in (1, 2):
            start = tmp_path / f"full/seed{seed if of_a_study else 0}/checkpoint_last.pt"
            start.parent.mkdir(parents=True, exist_ok=True)
            start.touch()
            if of_a_study:
                (start.parent / "options.json").touch()
            config = OmegaConf.merge(config, {"seed": seed, "w2v_path": str(start)})
            config.out = str(tmp_path / f"out_{of_a_study}")
            runner.Study.of(config).train("small")
    _shared, first, second, *own = trained
    saved = [Path(each["checkpoint.save_dir"]) for each in trained]
    assert saved[0] == tmp_path / "out_False/students/2"
    for tuned in (first, second):
        assert tuned["model.w2v_path"] == f"{saved[0]}/checkpoint_last.pt"
    assert len(own) == 4
    for seed, (distilled, tuned) in enumerate(zip(own[::2], own[1::2], strict=True), start=1):
        assert distilled["model.w2v_path"] == f"{tmp_path}/full/seed{seed}/checkpoint_last.pt"
        folder = distilled["checkpoint.save_dir"]
        assert folder == f"{tuned['checkpoint.save_dir']}/student"
        assert tuned["model.w2v_path"] == f"{folder}/checkpoint_last.pt"


WAITING = """
from pathlib import Path
from study import call, locked
with locked(Path("lock")):
    call(["/bin/sh", "-c", "echo started; until [ -e end ]; do sleep 0.1; done"], Path("log"))
"""


def test_a_killed_process_keeps_its_lock_in_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPO / "examples/study"))
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    command = [sys.executable, "-c", WAITING]
    process = subprocess.Popen(command, cwd=tmp_path)
    while not (tmp_path / "log").is_file() or not (tmp_path / "log").read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("waiting for another process")
    (tmp_path / "end").touch()
    assert process.wait() == 0


def killed_when(happened, command):
    """Starts a program and kills it, and all that it started, once ``happened()``."""
    process = subprocess.Popen([sys.executable, *command], start_new_session=True)
    while not happened():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def table(folder) -> list[dict]:
    """The report's, but for what is time."""
    assert main(["report", str(folder), "--output", str(folder / "report"), "--no-pictures"]) == 0
    with (folder / "report/report.csv").open() as file:
        records = list(csv.DictReader(file))
    times = (*TIMES, "training_seconds", "pareto")
    return [{k: v for k, v in each.items() if k not in times} for each in records]


def test_a_killed_study_ends_with_the_table_of_an_unbroken_one(folder, tmp_path):
    (folder / "config/killed.yaml").write_text(
        CONFIG.format(quickstart=REPO / "examples/quickstart").replace(
            "max_update=4,",
            "max_update=20, checkpoint.save_interval_updates=4, "
            "checkpoint.keep_interval_updates=1,",
        )
    )
    rows = tmp_path / "rows.yaml"
    rows.write_text("full: {}\nmerge: {of: full, decode: {merge_20: {merge_ratio: 0.2}}}\n")
    given = ["killed", "row=full,merge", f"rows={rows}"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_forked(*study_command(folder, *given, f"out={whole}", "-m"))
    command = study_command(folder, *given, f"out={broken}", "-m")
    model = broken / "models/train/full/seed1"
    decoded = broken / "results/train/full/seed1/test_greedy"

    killed_when((model / "checkpoint_last.pt").is_file, command)
    assert not (model / "done").is_file()
    killed_when(decoded.is_dir, command)
    assert "Loaded checkpoint" in (model / "hydra_train.log").read_text()
    run_forked(*command)
    expected = table(whole / "results")
    assert len(expected) == 2
    assert table(broken / "results") == expected
    weights = [
        load_checkpoint_to_cpu(str(out / "models/train/full/seed1/checkpoint_last.pt"))["model"]
        for out in (whole, broken)
    ]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
