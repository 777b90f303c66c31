"""fairseq's own commands, run as a user runs them, on a small corpus."""

import dataclasses
import functools
import json
import re
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig
from fairseq.tasks.audio_finetuning import AudioFinetuningConfig
from helpers.commands import (
    REPO,
    USER_DIR,
    fairseq_command,
    generate,
    last_checkpoint,
    log_of,
    run_command,
    train,
)
from helpers.models import write_pretrained
from helpers.results import check_results, words_of
from omegaconf import OmegaConf

from fairseq_speedup.__main__ import main
from fairseq_speedup.config import switched_on

STOCK = ["model._name=wav2vec_ctc", "task._name=audio_finetuning"]


def options_of_ours(stock_options: dict[str, type]) -> list[str]:
    """Hydra's words that take out of the configs what stock dataclasses do not know."""
    every = OmegaConf.load(REPO / "config/finetuning/setting/every.yaml")
    return [
        f"~{group}.{name}"
        for group, stock_config in stock_options.items()
        for name in every[group]
        if name not in {"_name", *(each.name for each in dataclasses.fields(stock_config))}
    ]


WITHOUT_OURS = options_of_ours({"model": Wav2Vec2CtcConfig, "task": AudioFinetuningConfig})
CONV2 = ["model.downsample=conv", "model.downsample_factor=2", "model.logit_upsample=2"]


def train_losses(output: str) -> list[tuple[str, ...]]:
    """(loss, gradient norm) of each update, from fairseq's JSON log."""
    rows = [json.loads(found) for found in re.findall(r"\[train_inner\]\[INFO\] - ({.*})", output)]
    return [(row["loss"], row["gnorm"]) for row in rows]


@pytest.fixture(scope="module")
def reduced(made_once, corpus) -> Path:
    """Its pretrained model is lost."""

    def make(folder):
        w2v_path = write_pretrained(folder / "lost.pt")
        train(folder, corpus, w2v_path, *CONV2)
        w2v_path.unlink()

    return made_once("reduced", make)


@pytest.fixture(scope="module")
def stock(trained) -> Path:
    batches = ["dataset.required_batch_size_multiple=1"]
    return trained("stock", *STOCK, *WITHOUT_OURS, *batches)


@pytest.fixture(scope="module")
def decoded(reduced, corpus, tmp_path_factory):
    """What fairseq-generate prints with the reduced model at a batch size, and its results."""

    @functools.cache
    def run(batch_size: int) -> tuple[str, Path]:
        folder = tmp_path_factory.mktemp("decoded")
        done = generate(corpus, last_checkpoint(reduced), folder, "--batch-size", batch_size)
        return done.stdout, folder

    return run


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_reduced_model_is_decoded_whole_at_any_batch_size(decoded, corpus, batch_size):
    printed, results = decoded(batch_size)
    compute = check_results(results, corpus)
    assert switched_on(compute["options"]) == {
        "downsample": "conv",
        "downsample_factor": 2.0,
        "logit_upsample": 2,
    }
    assert compute["real_time_factor"] > 0
    assert compute["macs_per_second_by_stage"]["waveform_reduction"] > 0
    assert "decoded 11 utterances" in printed
    assert "every utterance was decoded: 11 of 11" in printed


def test_the_transcripts_do_not_depend_on_the_batch_size(decoded):
    alone, batched = (words_of(decoded(n)[1] / "generate-test.txt", "H-") for n in (1, 8))
    assert alone == batched


def test_a_stock_checkpoint_is_decoded(stock, corpus, tmp_path):
    generate(corpus, last_checkpoint(stock), tmp_path, "--print-alignment", "hard")
    compute = check_results(tmp_path, corpus)
    assert compute["options"] == {}
    alignments = words_of(tmp_path / "generate-test.txt", "A-")
    assert len(alignments) == 11
    assert all(re.fullmatch(r"\d+-\d+", pair) for line in alignments.values() for pair in line)


def test_decoding_needs_no_pretrained_file(reduced, tmp_path, corpus):
    state = torch.load(last_checkpoint(reduced), weights_only=False)
    assert not Path(state["cfg"]["model"]["w2v_path"]).exists()
    generate(corpus, last_checkpoint(reduced), tmp_path)
    compute = check_results(tmp_path, corpus)
    assert compute["max_tokens"] == 1_600_000  # what was used, as no batch size was given


def test_early_exits_are_trained_decoded_and_calibrated(with_exits, corpus, tmp_path, capsys):
    (row,) = re.findall(r"\[train\]\[INFO\] - ({.*})", log_of(with_exits))
    assert float(json.loads(row)["train_loss_exit_0"]) > 0
    checkpoint = last_checkpoint(with_exits)
    layers = {}
    for name, threshold in (("never", -1), ("always", 99)):
        overrides = f"{{'exit_criterion': 'entropy', 'exit_threshold': {threshold}}}"
        results = tmp_path / name
        generate(corpus, checkpoint, results, "--batch-size", 4, "--model-overrides", overrides)
        layers[name] = check_results(results, corpus)
    assert layers["never"]["layers_run_histogram"] == {"2": 11}
    assert layers["always"]["layers_run_histogram"] == {"1": 11}
    assert layers["always"]["macs_per_second"] < layers["never"]["macs_per_second"]

    # what calibration foretells is what decoding at that threshold gives
    options = ["--gen-subset", "test", "--cpu", "--wer-budget", "1000", "--thresholds", "5"]
    assert main(["calibrate", str(corpus), "--path", str(checkpoint), *options]) == 0
    printed = capsys.readouterr().out
    threshold, wer, mean_layers = printed.splitlines()[4].split()
    overrides = f"{{'exit_criterion': 'entropy', 'exit_threshold': {threshold}}}"
    generate(corpus, checkpoint, tmp_path / "some", "--model-overrides", overrides)
    compute = check_results(tmp_path / "some", corpus)
    assert compute["mean_layers_run"] == pytest.approx(float(mean_layers), abs=0.006)
    assert f"WER: {wer}" in (tmp_path / "some/generate-test.txt").read_text()
    assert "--model-overrides \"{'exit_criterion': 'entropy'" in printed


def test_calibration_of_a_model_without_exits_is_refused(reduced, corpus, capsys):
    assert main(["calibrate", str(corpus), "--path", str(last_checkpoint(reduced)), "--cpu"]) == 1
    errors = capsys.readouterr().err
    assert "exit" in errors
    assert len(errors.strip().splitlines()) == 1


def test_exits_with_a_stock_criterion_are_refused(corpus, pretrained, tmp_path):
    done = train(tmp_path, corpus, pretrained, "model.exit_layers=upper", check=False)
    assert done.returncode
    assert "criterion=ctc does not train the heads of model.exit_layers" in done.stderr


def test_a_list_of_layers_is_kept_and_further_reduced_at_decoding(corpus, tmp_path):
    w2v_path = write_pretrained(tmp_path / "deep.pt", encoder_layers=6)
    train(tmp_path, corpus, w2v_path, 'model.keep_layers="0,2,3,5"')
    overrides = "{'keep_layers': '0,5'}"
    generate(corpus, last_checkpoint(tmp_path), tmp_path / "r", "--model-overrides", overrides)
    assert check_results(tmp_path / "r", corpus)["options"]["keep_layers"] == "0,5"


def test_reports_of_several_subsets_are_kept(reduced, decoded, corpus, tmp_path):
    shutil.copytree(decoded(8)[1], tmp_path, dirs_exist_ok=True)
    generate(corpus, last_checkpoint(reduced), tmp_path, "--gen-subset", "valid")
    check_results(tmp_path, corpus, "valid")
    kept = json.loads((tmp_path / "compute-test.json").read_text())
    assert kept["gen_subset"] == "test"


def test_with_every_reduction_off_training_equals_stock(stock, full):
    expected = train_losses(log_of(stock))
    assert len(expected) == 4
    assert train_losses(log_of(full)) == expected
    ours = torch.load(last_checkpoint(full))["model"]
    theirs = torch.load(last_checkpoint(stock))["model"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_compute_reaches_fairseqs_log(reduced):
    log = log_of(reduced)
    (train_row,) = re.findall(r"\[train\]\[INFO\] - ({.*})", log)
    (valid_row,) = re.findall(r"\[valid\]\[INFO\] - ({.*})", log)
    for row, split in ((json.loads(train_row), "train"), (json.loads(valid_row), "valid")):
        assert float(row[f"{split}_rtf"]) > 0
        assert float(row[f"{split}_gmacs_per_s"]) > 0
    assert "CTC feasibility of train: 0 of 13 utterances (0.0 %)" in log
    assert "CTC feasibility of valid: 0 of 5 utterances (0.0 %)" in log


def test_a_resumed_run_equals_an_uninterrupted_one(corpus, pretrained, tmp_path):
    options = [*CONV2, "checkpoint.save_interval_updates=2", "lr_scheduler.phase_ratio=null"]
    options += ["+lr_scheduler.warmup_steps=1", "+lr_scheduler.hold_steps=2"]
    options += ["+lr_scheduler.decay_steps=3"]
    train(tmp_path / "whole", corpus, pretrained, *options, "optimization.max_update=6")
    train(tmp_path / "parts", corpus, pretrained, *options, "optimization.max_update=4")
    resumed = tmp_path / "resumed"
    (resumed / "checkpoints").mkdir(parents=True)
    shutil.copy(last_checkpoint(tmp_path / "parts"), last_checkpoint(resumed))
    train(resumed, corpus, pretrained, *options, "optimization.max_update=6")
    assert "Loaded checkpoint" in log_of(resumed)
    whole, again = (
        torch.load(last_checkpoint(tmp_path / name))["model"] for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert train_losses(log_of(resumed)) == train_losses(log_of(tmp_path / "whole"))[4:]


def train_on_two_processes(folder, *arguments):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def train_rank(rank):
        distributed = {
            "distributed_world_size": 2,
            "distributed_rank": rank,
            "distributed_backend": "gloo",
            "distributed_init_method": f"tcp://localhost:{port}",
            "distributed_no_spawn": "true",
        }
        options = [f"++distributed_training.{name}={value}" for name, value in distributed.items()]
        save_dir = f"checkpoint.save_dir={folder}/checkpoints"
        train(folder / f"rank{rank}", *arguments, *options, save_dir)

    with ThreadPoolExecutor() as pool:
        list(pool.map(train_rank, [0, 1]))


def test_two_processes_train_together_and_go_on_after_a_break(corpus, pretrained, tmp_path):
    given = [corpus, pretrained, *CONV2]
    train_on_two_processes(tmp_path, *given, "optimization.max_update=2")
    assert "training on 2 devices" in log_of(tmp_path / "rank0")
    train_on_two_processes(tmp_path, *given, "optimization.max_update=4")  # read by rank 0 alone
    assert "Loaded checkpoint" in log_of(tmp_path / "rank0")
    assert torch.load(last_checkpoint(tmp_path))["optimizer_history"][-1]["num_updates"] == 4
    generate(corpus, last_checkpoint(tmp_path), tmp_path / "results")
    check_results(tmp_path / "results", corpus)


def test_sentencepiece_labels_from_the_helper_to_decoding(corpus, pretrained, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "valid", "test"):
        for ending in ("tsv", "ltr"):
            shutil.copy(corpus / f"{split}.{ending}", data)
    assert main(["spm", str(data), "--vocab-size", "16"]) == 0
    assert main(["spm", str(data), "--vocab-size", "16"]) == 1
    assert "exists; give --overwrite to replace it" in capsys.readouterr().err
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    with (data / "test.ltr").open("a") as labels:
        labels.write("E | Z |\n")
    assert main(["spm", str(data), "--vocab-size", "15", "--overwrite"]) == 1
    assert "characters that the training transcripts lack: 'E Z'" in capsys.readouterr().err
    before["test.ltr"] += b"E | Z |\n"
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before
    shutil.copy(corpus / "test.ltr", data)
    spm = ["task.labels=spm", "criterion.post_process=sentencepiece"]
    train(tmp_path / "run", data, pretrained, *spm)
    options = ["--labels", "spm", "--post-process", "sentencepiece"]
    generate(data, last_checkpoint(tmp_path / "run"), tmp_path / "results", *options)
    check_results(tmp_path / "results", data)

    done = train(tmp_path / "wrong", data, pretrained, "task.labels=spm", check=False)
    assert "criterion.post_process=letter does not fit the labels spm" in done.stderr
    checkpoint = last_checkpoint(tmp_path / "run")
    done = generate(data, checkpoint, None, "--labels", "spm", check=False)
    assert "--post-process letter does not fit the labels spm" in done.stderr


def test_another_dictionary_than_the_checkpoints_is_refused(reduced, corpus, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(corpus, data)
    lines = (data / "dict.ltr.txt").read_text().splitlines()
    (data / "dict.ltr.txt").write_text("\n".join(reversed(lines)) + "\n")
    done = generate(data, last_checkpoint(reduced), check=False)
    assert done.returncode
    assert "is not the checkpoint's" in done.stderr
    assert "the same symbols in another order" in done.stderr


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("{'keep_layer': '1'}", "override 'keep_layer' is no option of .*did you mean keep_layers"),
        ("{'exit_criterion': 'entropy'}", "exit_criterion=entropy needs exits: set exit_layers"),
    ],
)
def test_overrides_are_never_ignored(reduced, corpus, overrides, words):
    checkpoint = last_checkpoint(reduced)
    done = generate(corpus, checkpoint, None, "--model-overrides", overrides, check=False)
    assert done.returncode
    assert re.search(words, done.stderr)


def test_a_stock_checkpoint_can_be_reduced_without_training(stock, corpus, tmp_path):
    generate(corpus, last_checkpoint(stock), tmp_path / "whole")
    override = ["--model-overrides", "{'keep_layers': '1', 'frame_pool': 2}"]
    generate(corpus, last_checkpoint(stock), tmp_path / "reduced", *override)
    whole, reduced = (check_results(tmp_path / name, corpus) for name in ("whole", "reduced"))
    assert reduced["options"]["padding"] == "stock"
    assert reduced["macs_per_second"] < whole["macs_per_second"]


def test_an_override_reaches_a_checkpoint_older_than_the_option(reduced, corpus, tmp_path):
    state = torch.load(last_checkpoint(reduced))
    del state["cfg"]["model"]["keep_layers"]
    torch.save(state, tmp_path / "old.pt")
    overrides = ["--model-overrides", "{'keep_layers': '1'}"]
    generate(corpus, tmp_path / "old.pt", tmp_path / "results", *overrides)
    assert check_results(tmp_path / "results", corpus)["options"]["keep_layers"] == "1"


def test_a_pretrained_checkpoint_is_refused_for_decoding(pretrained, corpus, capsys):
    done = generate(corpus, pretrained, check=False)
    assert done.returncode
    assert "a pretrained checkpoint is given as model.w2v_path" in done.stderr
    assert main(["profile", "--checkpoint", str(pretrained), "--time", "0"]) == 1
    assert "holds a wav2vec2 model" in capsys.readouterr().err


def test_a_refused_decoding_leaves_no_report_beside_empty_results(
    reduced, decoded, corpus, tmp_path
):
    shutil.copytree(decoded(8)[1], tmp_path, dirs_exist_ok=True)
    again = generate(corpus, last_checkpoint(reduced), tmp_path, "--nbest", 2, check=False)
    assert again.returncode
    assert not (tmp_path / "compute.json").exists()


def test_too_small_batches_are_refused_in_words(reduced, corpus):
    done = generate(corpus, last_checkpoint(reduced), None, "--max-tokens", 5000, check=False)
    assert done.returncode
    assert "--max-tokens 5000 is smaller than the longest utterance" in done.stderr


@pytest.mark.parametrize("name", ["lost.pt", "cut.pt"])
def test_a_bad_checkpoint_is_named_by_fairseq_generate(reduced, corpus, tmp_path, name):
    if name == "cut.pt":
        (tmp_path / name).write_bytes(last_checkpoint(reduced).read_bytes()[:3000])
    done = generate(corpus, tmp_path / name, check=False)
    assert done.returncode
    last_line = done.stderr.strip().splitlines()
    assert any(str(tmp_path / name) in line for line in last_line)


def test_the_profile_of_a_checkpoint(reduced, capsys, tmp_path):
    checkpoint = str(last_checkpoint(reduced))
    figures = str(tmp_path / "profile.json")
    assert main(["profile", "--checkpoint", checkpoint, "--cpu", "--json", figures]) == 0
    assert "downsample=conv downsample_factor=2.0 logit_upsample=2" in capsys.readouterr().out
    found = json.loads(Path(figures).read_text())
    assert found["macs_check"]["closed_form"] == found["macs_check"]["fvcore"]
    assert found["real_time_factor"] > 0
    assert main(["profile", "--checkpoint", checkpoint, "--json", figures]) == 1


def test_the_task_is_found_by_its_user_dir_from_any_folder(reduced, corpus, tmp_path):
    done = run_command(
        fairseq_command("fairseq-generate"),
        corpus,
        *("--user-dir", USER_DIR, "--task", "speedup_finetuning", "--cpu"),
        *("--path", last_checkpoint(reduced), "--gen-subset", "test", "--scoring", "wer"),
        cwd=tmp_path,
    )
    assert "every utterance was decoded: 11 of 11" in done.stdout
