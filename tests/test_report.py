"""Comparing runs: what is read, significance, the Pareto front, tables and pictures."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.results import NUM_UTTERANCES, write_results

from fairseq_speedup.__main__ import main
from fairseq_speedup.report import command
from fairseq_speedup.report.pareto import COSTS, front
from fairseq_speedup.report.pictures import draw_costs
from fairseq_speedup.report.runs import RunsError, _training_in, read_runs
from fairseq_speedup.report.saved import save
from fairseq_speedup.report.significance import difference

CONFIG = """
common: {{seed: {seed}}}
task: {{data: {data}, labels: ltr, sample_rate: 16000}}
dataset: {{train_subset: {split}}}
"""


def without(folder, key):
    """Takes a field out of a compute.json."""
    report = json.loads((folder / "compute.json").read_text())
    del report[key]
    (folder / "compute.json").write_text(json.dumps(report))


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    for seed in (1, 2, 3):
        write_results(folder / f"full/seed{seed}/test", 0.10, seed, macs=4e9, rtf=0.04)
        write_results(folder / f"conv2/seed{seed}/test", 0.11, seed + 10, macs=2e9, rtf=0.02)
        write_results(folder / f"conv10/seed{seed}/test", 0.5, seed + 20, macs=0.5e9, rtf=0.03)
    return folder


def test_rows_are_read_with_their_seeds(runs):
    rows = {row.name: row for row in read_runs(str(runs))}
    assert list(rows) == ["conv2", "conv10", "full"]  # numbers by value
    assert rows["full"].seeds == [1, 2, 3]
    assert rows["full"].errors.shape == (3, NUM_UTTERANCES)
    assert rows["full"].wer == pytest.approx(np.mean(rows["full"].wers))
    assert rows["full"].spread == pytest.approx(np.std(rows["full"].wers, ddof=1))
    *_, last = (runs / "full/seed2/test/generate-test.txt").read_text().splitlines()
    assert f"WER: {rows['full'].wers[1]:.2f}" in last


class NamedRow:
    def __init__(self, name):
        self.name, self.test_set = name, "test"


def test_a_row_is_found_by_its_name_without_its_inference_form():
    """As of what optimize chose, which is in another form on another machine."""
    rows = [NamedRow(name) for name in ("full", "full, int8", "faster, ONNX Runtime fp32", "fast")]
    for name, expected in [("faster", "faster, ONNX Runtime fp32"), ("full", "full")]:
        assert [row.name for row in command.named(name, rows, "--rows")] == [expected]
    assert command.named("fas", rows, "--rows") == []
    with pytest.raises(command.RunsError, match="fast, a, fast, b"):
        command.named("fast", [NamedRow("fast, a"), NamedRow("fast, b")], "--rows")


@pytest.mark.parametrize("form, name", [("int8", "full, int8"), ("fp32", "full"), (None, "full")])
def test_what_was_decoded_in_a_form_that_rounds_is_a_row_of_its_own(tmp_path, form, name):
    for seed in (1, 2):
        write_results(tmp_path / f"full/seed{seed}/test", 0.1, seed)
        again = tmp_path / f"full/seed{seed}/again"
        write_results(again, 0.2 if form == "int8" else 0.1, seed)
        report = json.loads((again / "compute.json").read_text())
        report["inference"] = {} if form is None else {"form": form}
        (again / "compute.json").write_text(json.dumps(report))
    rows = {row.name: row for row in read_runs(str(tmp_path))}
    assert set(rows) == {"full", name}
    assert rows[name].seeds == [1, 2]


def test_repeats_give_a_median_time_and_must_agree(tmp_path):
    for number, rtf in enumerate([0.1, 0.5, 0.2], start=1):
        write_results(tmp_path / f"full/run{number}", 0.1, seed=7, rtf=rtf)
    (row,) = read_runs(str(tmp_path))
    assert (row.name, row.seeds, row.real_time_factor) == ("full", [None], 0.2)
    write_results(tmp_path / "full/run4", 0.2, seed=8)
    with pytest.raises(RunsError, match="two results differ"):
        read_runs(str(tmp_path))


@pytest.mark.parametrize("other", [{"hardware": {"cpu": "new"}}, {"inference": {"form": "fp32"}}])
def test_repeats_elsewhere_or_otherwise_are_left_out_of_times(tmp_path, capsys, other):
    for number, rtf in enumerate([0.1, 0.3, 0.9, 0.9], start=1):
        folder = tmp_path / f"full/run{number}"
        write_results(folder, 0.1, seed=7, rtf=rtf)
        if rtf == 0.9:
            report = json.loads((folder / "compute.json").read_text()) | other
            (folder / "compute.json").write_text(json.dumps(report))
    (row,) = read_runs(str(tmp_path))
    assert row.real_time_factor == pytest.approx(0.2)
    said = capsys.readouterr().err
    assert "note: full, test, seed None: of 4 decodings 2 are of another machine or infer" in said


def test_links_to_folders_are_followed_once(tmp_path):
    write_results(tmp_path / "elsewhere/pool2", 0.1)
    write_results(tmp_path / "runs/full", 0.1)
    (tmp_path / "runs/pool2").symlink_to(tmp_path / "elsewhere/pool2")
    (tmp_path / "runs/full/round").symlink_to(tmp_path / "runs")
    assert [row.name for row in read_runs(str(tmp_path / "runs"))] == ["full", "pool2"]


def test_the_time_of_a_training_that_was_broken_off_is_not_known(tmp_path):
    (tmp_path / "model/.hydra").mkdir(parents=True)
    config = CONFIG.format(seed=5, data=tmp_path, split="train")
    (tmp_path / "model/.hydra/config.yaml").write_text(config)
    start, end = "training on 1 devices (GPUs/TPUs)\n", "done training in 60.5 seconds\n"
    write_results(tmp_path / "runs/full", 0.1, checkpoint=f"{tmp_path}/model/last.pt")
    for log, seconds in [
        (start + end, 60.5),
        (2 * (start + end), 121),
        (start + start + end, None),
    ]:
        (tmp_path / "model/hydra_train.log").write_text(log)
        _training_in.cache_clear()
        (row,) = read_runs(str(tmp_path / "runs"))
        assert row.training_seconds == seconds


def test_training_is_read_from_beside_the_checkpoint(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.wav").write_bytes(b"")
    for split, seconds in [("train", 3600), ("train_10m", 600)]:
        (data / f"{split}.tsv").write_text(f"{data}\na.wav\t{seconds * 16000}\n")
        training = tmp_path / f"models/{split}/checkpoints"
        training.mkdir(parents=True)
        hydra = training.parent / ".hydra"
        hydra.mkdir()
        (hydra / "config.yaml").write_text(CONFIG.format(seed=5, data=data, split=split))
        (training.parent / "hydra_train.log").write_text("x\n[..] done training in 90.5 seconds\n")
        results = tmp_path / f"runs/{split}"
        write_results(results, 0.1, checkpoint=str(training / "checkpoint_best.pt"))
    rows = read_runs(str(tmp_path / "runs"))
    assert [row.hours for row in rows] == [1, pytest.approx(1 / 6)]
    assert [row.seeds for row in rows] == [[5], [5]]
    assert rows[0].training_seconds == 90.5
    assert rows[0].method == rows[1].method
    assert main(["report", str(tmp_path / "runs")]) == 0
    assert (tmp_path / "runs/report/test_data.png").is_file()


@pytest.mark.parametrize("text", ["task: [", "- 1\n", "task: {data: '${lost}'}"])
def test_a_broken_config_of_a_training_is_named(tmp_path, text):
    (tmp_path / "model/.hydra").mkdir(parents=True)
    config = tmp_path / "model/.hydra/config.yaml"
    config.write_text(text)
    write_results(tmp_path / "runs/full", 0.1, checkpoint=f"{tmp_path}/model/last.pt")
    with pytest.raises(RunsError, match=rf"{config} is no config of a training: ."):
        read_runs(str(tmp_path / "runs"))


def test_only_differences_beyond_chance_are_significant(runs, tmp_path):
    rows = {row.name: row for row in read_runs(str(runs))}
    near = difference(rows["conv2"], rows["full"])
    far = difference(rows["conv10"], rows["full"])
    assert near.least < near.points < near.most
    assert near.least < 0 < near.most
    assert near.p >= 0.05
    assert far.p < 0.05
    assert far.least > 25
    same = difference(rows["full"], rows["full"])
    assert same.points == 0
    assert same.p > 0.9
    write_results(tmp_path / "other/short", 0.1)
    (other,) = read_runs(str(tmp_path / "other"))
    other.words = other.words[:-1]
    with pytest.raises(ValueError, match="other data"):
        difference(other, rows["full"])


def test_an_interval_covers_the_truth_about_as_often_as_it_says(tmp_path):
    covered = 0
    for trial in range(40):
        for name, seed in [("a", 2 * trial), ("b", 2 * trial + 1)]:
            write_results(tmp_path / f"{trial}/{name}", 0.2, seed)
        first, second = read_runs(str(tmp_path / str(trial)))
        found = difference(first, second)
        covered += found.least <= 0 <= found.most
    assert 34 <= covered <= 40


def test_the_front_has_what_nothing_beats(runs):
    write_results(runs / "wasteful/seed1/test", 0.5, macs=3e9, rtf=0.5)
    rows = read_runs(str(runs))
    assert [row.name for row in front(rows, "MACs")] == ["conv10", "conv2", "full"]
    assert [row.name for row in front(rows, "time")] == ["conv2", "full"]


def test_rows_that_are_equal_are_on_the_front_together(runs):
    for seed in (1, 2, 3):
        shutil.copytree(runs / f"conv2/seed{seed}", runs / f"also2/seed{seed}")
    rows = read_runs(str(runs))
    best = front(rows, "MACs")
    assert [row.name for row in best] == ["conv10", "also2", "conv2", "full"]
    assert [row in best for row in read_runs(str(runs))] == [False] * 4
    assert all(row in best for row in rows)


def test_report_writes_table_csv_and_pictures(runs, tmp_path, capsys):
    layers = {"mean_layers_run": 1.5, "layers_run_histogram": {"1": 30, "2": 30}}
    write_results(runs / "exits/seed1/test", 0.1, **layers)
    lm = {"decoding": {"ctc_decoder": "beam", "kenlm_model": "x.arpa"}}
    write_results(runs / "full/seed1/test_lm", 0.05, **lm)
    names = tmp_path / "rows.tsv"
    names.write_text("full\tfull model\nconv2\nexits\nconv10\n")
    output = tmp_path / "out"
    arguments = ["report", str(runs), "--output", str(output), "--baseline", "full model"]
    assert main([*arguments, "--rows", str(names)]) == 0
    printed = capsys.readouterr().out
    text = (output / "report.md").read_text()
    assert "## test\n" in text
    assert "## test, LM\n" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in rows[1:6]] == [
        "| ---", "| full model", "| conv2", "| exits", "| conv10"
    ]  # fmt: skip
    assert rows[3] in printed
    with (output / "report.csv").open() as file:
        records = list(csv.DictReader(file))
    assert len(records) == 5
    found = {each["model"]: each for each in records if each["decoder"] == "greedy"}
    assert float(found["conv10"]["p"]) < 0.001
    assert found["full model"]["p"] == ""
    assert found["exits"]["pareto"] == "MACs time"
    assert found["conv2"]["pareto"] == ""
    pictures = {path.name for path in output.glob("*.png")}
    assert pictures >= {"test_wer_vs_macs.png", "test_wer_vs_time.png", "test_exits.png"}


def test_the_picture_of_costs_has_each_row_at_its_place_and_the_front(runs, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    rows = [row for row in read_runs(str(runs)) if row.test_set.decoder == "greedy"]
    draw_costs(rows, "MACs", tmp_path / "unused.png")
    (axes,) = drawn[0].axes
    points = sorted(tuple(each.lines[0].get_xydata()[0]) for each in axes.containers)
    of = COSTS["MACs"]
    expected = [(of(row), row.wer) for row in rows if of(row) is not None]
    np.testing.assert_allclose(points, sorted(expected))
    bold = {text.get_text() for text in axes.texts if text.get_weight() == "bold"}
    assert bold == {row.name for row in front(rows, "MACs")}
    assert axes.get_xlabel() == "GMACs per second of audio"


@pytest.mark.parametrize("name", ["runs.json", "runs.json.gz"])
def test_what_is_saved_gives_the_same_report(runs, tmp_path, name):
    first, second = tmp_path / "first", tmp_path / "second"
    saved = tmp_path / "saved" / name
    baseline = ["--baseline", "full"]
    assert main(["report", str(runs), "--output", str(first), "--save", str(saved), *baseline]) == 0
    shutil.rmtree(runs)
    assert main(["report", str(saved), "--output", str(second), *baseline]) == 0
    written = sorted(path.name for path in first.iterdir())
    assert len(written) == 4
    for each in written:
        assert (first / each).read_bytes() == (second / each).read_bytes()
    again = tmp_path / "again" / name
    assert main(["report", str(saved), "--save", str(again), "--no-pictures"]) == 0
    assert again.read_bytes() == saved.read_bytes()
    assert (saved.parent / "report.md").is_file()


def test_saved_rows_are_replaced_whole_or_not_at_all(runs, tmp_path, monkeypatch):
    saved = tmp_path / "runs.json"
    rows = read_runs(str(runs))
    save(rows, str(saved))
    before = saved.read_bytes()

    def cut_off(path, data):
        path.open("wb").write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", cut_off)
    with pytest.raises(OSError, match="No space left"):
        save(rows[:1], str(saved))
    assert saved.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["runs.json"]


def test_what_is_saved_does_not_tell_where_files_lay(tmp_path):
    decoding = {"ctc_decoder": "beam", "kenlm_model": "/home/me/words.arpa", "beam": 50}
    write_results(tmp_path / "runs/full/seed1/test", 0.1, 1, macs=1e9, rtf=0.1, decoding=decoding)
    saved = tmp_path / "runs.json"
    given = ["report", str(tmp_path / "runs"), "--save", str(saved), "--no-pictures"]
    assert main(given) == 0
    (row,) = json.loads(saved.read_text())["rows"]
    assert row["computes"][0]["decoding"] == {**decoding, "kenlm_model": "words.arpa"}


def test_seeds_of_several_sources_are_one_row(runs, tmp_path):
    whole = tmp_path / "whole"
    baseline = ["--baseline", "full", "--no-pictures"]
    assert main(["report", str(runs), "--output", str(whole), *baseline]) == 0
    for row in ("full", "conv2"):
        for seed in (2, 3):
            (tmp_path / f"later/{row}").mkdir(parents=True, exist_ok=True)
            (runs / f"{row}/seed{seed}").rename(tmp_path / f"later/{row}/seed{seed}")
    saved = tmp_path / "first.json.gz"
    assert main(["report", str(runs), "--save", str(saved), "--no-pictures"]) == 0
    parts = [str(saved), str(tmp_path / "later")]
    assert main(["report", *parts, "--output", str(tmp_path / "parts"), *baseline]) == 0
    for name in ("report.md", "report.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (whole / name).read_bytes()


def test_a_seed_in_two_sources_is_an_error(runs, tmp_path, capsys):
    write_results(tmp_path / "other/full/seed2/test", 0.1)
    assert main(["report", str(runs), str(tmp_path / "other")]) == 1
    error = capsys.readouterr().err
    assert f"full, test: seed 2 is in {runs} and in {tmp_path / 'other'}" in error


def test_times_of_several_machines_are_named(runs):
    assert main(["report", str(runs), "--no-pictures"]) == 0
    report = runs / "report/report.md"
    assert "Real-time factors: device cpu, threads 2." in report.read_text()
    compute = runs / "conv2/seed3/test/compute.json"
    compute.write_text(compute.read_text().replace('"cpu"', '"cuda"'))
    assert main(["report", str(runs), "--no-pictures"]) == 0
    several = "several: device cpu, threads 2; device cuda, threads 2."
    assert f"cannot be compared, as they are of {several}" in report.read_text()


def test_what_one_seed_cannot_tell_and_which_row_stands_for_the_baseline(runs, tmp_path, capsys):
    write_results(runs / "one/seed1/test", 0.2, seed=1)
    write_results(runs / "one/seed1/dev", 0.2, seed=1, subset="dev")
    assert main(["report", str(runs), "--no-pictures", "--baseline", "full"]) == 0
    report, said = (runs / "report/report.md").read_text(), capsys.readouterr().err
    assert "Rows of one seed, whose intervals lack what another would change: one." in report
    assert "Each row is of one seed" in report  # of dev
    assert "note: dev has no row full: its rows are compared with the one of the most MACs" in said


def test_times_can_come_from_another_run(runs, tmp_path, capsys):
    for run, rtf in [(1, 0.5), (2, 0.7), (3, 0.6)]:
        write_results(
            tmp_path / f"times/full/seed1/run{run}", 0.1, rtf=rtf, hardware={"device": "quiet"}
        )
    arguments = ["report", str(runs), "--baseline", "full", "--no-pictures", "--times"]
    saved = tmp_path / "timed.json"
    assert main([*arguments, str(tmp_path / "times"), "--save", str(saved)]) == 0
    first = (runs / "report/report.md").read_text()
    assert main([*arguments, str(saved)]) == 0  # two of whose rows have none
    assert (runs / "report/report.md").read_text() == first
    with (runs / "report/report.csv").open() as file:
        times = {each["model"]: each["real_time_factor"] for each in csv.DictReader(file)}
    assert times == {"full": "0.6", "conv2": "", "conv10": ""}
    assert "device quiet" in (runs / "report/report.md").read_text()
    assert main([*arguments[:-1], "--no-times"]) == 0
    assert "RTF" in first and "RTF" not in (runs / "report/report.md").read_text()
    write_results(tmp_path / "none/lost/seed1", 0.1)
    assert main([*arguments, str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert "has none of the rows: conv2 (test), conv10 (test), full (test); it has lost" in error


@pytest.mark.parametrize("data", [b"{}", b"[1", b"\xff", b'{"format": "x"}'])
@pytest.mark.parametrize("name", ["runs.json", "runs.json.gz"])
def test_a_file_that_report_did_not_save_is_named(tmp_path, capsys, name, data):
    (tmp_path / name).write_bytes(data)
    assert main(["report", str(tmp_path / name)]) == 1
    assert f"{tmp_path / name} is no file of `report --save`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(computes=None), "computes must be a list of 3, one for each seed"),
        (lambda row: row.update(computes=[]), "computes must be a list of 3, one for each seed"),
        (lambda row: row["computes"][0].pop("hardware"), "hardware is missing"),
        (lambda row: row["computes"][0].update(real_time_factor="x"), "is 'x', not a number"),
        (lambda row: row["errors"][1].pop(), "errors must be 3 x 60 whole numbers"),
        (lambda row: row.update(errors=row["errors"][:2]), "errors must be 3 x 60 whole numbers"),
        (lambda row: row.update(words=[]), "words must be a list"),
        (lambda row: row.update(words=None), "words must be a list"),
        (lambda row: row.pop("errors"), "errors is missing"),
        (lambda row: row.update(errors=None), "errors must be 3 x 60 whole numbers"),
        (lambda row: row["computes"][0].update(options=[]), "options is [], not a JSON object"),
        (lambda row: row["words"].append("ten"), "words must be 61 whole numbers"),
        (lambda row: row.update(seeds=7), "seeds is 7, not a list of whole numbers"),
        (lambda row: row.update(seeds=[]), "seeds is [], not a list of whole numbers"),
        (lambda row: row.update(trainings=None), "trainings must be a list of 3"),
        (lambda row: row["trainings"][0].update(hours="x"), "trainings holds {"),
        (lambda row: row["test_set"].update(subset=None), "None is no name"),
    ],
)
def test_a_saved_row_that_cannot_be_is_named(runs, tmp_path, capsys, change, message):
    path = tmp_path / "saved/runs.json"
    assert main(["report", str(runs), "--save", str(path), "--no-pictures"]) == 0
    found = json.loads(path.read_text())
    change(found["rows"][1])
    path.write_text(json.dumps(found))
    assert main(["report", str(path)]) == 1
    error = capsys.readouterr().err
    assert f"{path} is no file of `report --save`: row 2 (conv10): " in error
    assert message in error
    assert not (path.parent / "report.md").exists()


def test_a_saved_file_without_rows_or_with_other_bytes_is_named(runs, tmp_path, capsys):
    path = tmp_path / "saved/runs.json.gz"
    assert main(["report", str(runs), "--save", str(path), "--no-pictures"]) == 0
    data = bytearray(path.read_bytes())
    data[40:60] = bytes(byte ^ 255 for byte in data[40:60])
    path.write_bytes(data)
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps({"format": "fairseq_speedup report 1", "rows": []}))
    for each, message in [(path, ""), (empty, "it holds no rows")]:
        assert main(["report", str(each), "--output", str(tmp_path / "out")]) == 1
        assert f"{each} is no file of `report --save`: {message}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "compute.json").write_text("{}"), "is no report of"),
        (lambda folder: (folder / "compute.json").write_text("[1"), "is no report of"),
        (lambda folder: without(folder, "num_utterances"), "is no report of fairseq-generate: num"),
        (lambda folder: without(folder, "hardware"), "is no report of fairseq-generate: hardware"),
        (lambda folder: (folder / "generate-test.txt").unlink(), "does not exist"),
        (lambda folder: (folder / "generate-test.txt").write_text("T-0\tA\n"), "0 hypotheses"),
    ],
)
def test_what_cannot_be_read_is_named(runs, capsys, damage, message):
    damage(runs / "full/seed1/test")
    assert main(["report", str(runs)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "full/seed1/test" in error


def test_bad_arguments(runs, tmp_path, capsys):
    (tmp_path / "rows.tsv").write_text("lost\n")
    for arguments, message in [
        (["--baseline", "lost"], "--baseline lost is no row; rows: conv2, conv10, full"),
        (["--rows", str(tmp_path / "rows.tsv")], "there is no row lost; rows: conv10, conv2, full"),
        (["--rows", str(tmp_path / "rows.tsv")], "A tab parts a name from what to call it"),
        (["--rows", str(tmp_path / "none.tsv")], "none.tsv does not exist or is not a file"),
        (["--output", str(tmp_path / "rows.tsv")], "rows.tsv is a file; give a folder"),
        (["--output", str(tmp_path / "rows.tsv/a/b")], "rows.tsv is not a folder"),
        (["--save", str(tmp_path)], f"--save {tmp_path} is a folder; give a file"),
        (["--save", str(tmp_path / "rows.tsv/a")], "rows.tsv is not a folder"),
    ]:
        assert main(["report", str(runs), *arguments]) == 1
        error = capsys.readouterr().err
        assert arguments[0] in error
        assert message in error
    assert not (runs / "report").exists()
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 1
    assert "holds no compute.json" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "lost")]) == 1
    assert "is no folder of results" in capsys.readouterr().err


def test_a_row_without_seeds_goes_by_the_name_of_its_folder(tmp_path, capsys):
    runs, names = tmp_path / "runs", tmp_path / "rows.tsv"
    for name, macs in [("full/test", 1e9), ("half/test", 2e9), ("full/other", 1e9)]:
        write_results(runs / name, 0.1, macs=macs, subset=name.split("/")[1])
    names.write_text("half\nfull\tFull\n")
    words = ["report", str(runs), "--no-pictures"]
    for given, base in [(["--baseline", "full"], "full/test"), (["--rows", str(names)], "half")]:
        assert main([*words, *given]) == 0
        assert f"Difference: from {base}" in capsys.readouterr().out
    table = (runs / "report/report.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")] == [
        *("| model", "| ---", "| Full"),
        *("| model", "| ---", "| half", "| Full"),
    ]

    write_results(runs / "full/again", 0.1)
    for given, said in [
        (["--baseline", "full"], "--baseline full may be any of full/again, full/test: give one"),
        (["--rows", str(names)], f"--rows {names}: full may be any of full/again, full/test"),
    ]:
        assert main([*words, *given]) == 1
        assert said in capsys.readouterr().err


def test_it_says_which_pictures_there_are(tmp_path, capsys):
    write_results(tmp_path / "runs/full", 0.1)
    folder = tmp_path / "runs/report"
    assert main(["report", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"wrote {folder}/report.md, ")
    assert set(said.removeprefix("wrote ").split(", ")) == set(map(str, folder.iterdir()))
    without(tmp_path / "runs/full", "macs_per_second")
    without(tmp_path / "runs/full", "real_time_factor")
    for more, last in [([], "no picture: no row has MACs or a time"), (["--no-pictures"], "wrote")]:
        assert main(["report", str(tmp_path / "runs"), *more]) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith(last)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "names no row"),
        (b"\n# full\n", "names no row"),
        (b"full\tFull \xff\n", "is not UTF-8 text: invalid start byte at byte 10"),
        (b"full\tone\nconv2\tone\n", "calls two rows one"),
        (b"full\tconv2\nconv2\n", "calls two rows conv2"),
        (b"full\nfull\tagain\n", "names the row full twice"),
        (b"full model\n", "there is no row full model"),
    ],
)
def test_bad_rows_leave_the_earlier_report(runs, tmp_path, capsys, data, message):
    assert main(["report", str(runs), "--no-pictures"]) == 0
    before = {path.name: path.read_bytes() for path in (runs / "report").iterdir()}
    path = tmp_path / "rows.tsv"
    path.write_bytes(data)
    saved = tmp_path / "saved.json"
    assert main(["report", str(runs), "--rows", str(path), "--save", str(saved)]) == 1
    error = capsys.readouterr().err
    assert f"--rows {path}" in error
    assert message in error
    assert {each.name: each.read_bytes() for each in (runs / "report").iterdir()} == before
    assert not saved.exists()


def test_rows_may_have_blank_lines_comments_and_a_byte_order_mark(runs, tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_bytes(b"\xef\xbb\xbffull\tfull | all\r\n\r\n  \n# conv10\r\nconv2\r\n")
    assert main(["report", str(runs), "--rows", str(path), "--no-pictures"]) == 0
    lines = (runs / "report/report.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert rows[2].startswith(r"| full \| all | 3 |")
    assert rows[3].startswith("| conv2 | 3 |")
    assert len(rows) == 4
    with (runs / "report/report.csv").open() as file:
        assert next(csv.DictReader(file))["model"] == "full | all"


@pytest.mark.parametrize("package", ["matplotlib", "adjustText"])
def test_packages_for_pictures_are_looked_for_first(runs, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delattr(command, "read_all")
    assert main(["report", str(runs)]) == 1
    assert "pip install matplotlib adjustText" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["report", str(runs), "--no-pictures"]) == 0
