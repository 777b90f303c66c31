"""Hydra's ``-m``: one process, several trainings."""

from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq_cli.train import should_stop_early
from helpers.commands import REPO, USER_DIR
from helpers.processes import run_forked

from fairseq_speedup.sweeps import forget_earlier_training


def sweep(folder: Path, config: str, *overrides) -> None:
    """Two jobs, of which the second learns nothing."""
    run_forked(
        "fairseq-hydra-train",
        "--multirun",
        "--config-dir",
        REPO / "config" / Path(config).parent,
        "--config-name",
        Path(config).name,
        f"common.user_dir={USER_DIR}",
        "common.cpu=true",
        "common.fp16=false",
        "task.normalize=true",
        "dataset.num_workers=0",
        "distributed_training.distributed_world_size=1",
        "optimization.max_update=4",
        "optimization.update_freq=[1]",
        "optimization.lr=[0.01],[0.0]",
        "checkpoint.save_dir=checkpoints",
        "checkpoint.best_checkpoint_metric=loss",
        f"hydra.sweep.dir={folder}",
        "hydra.sweep.subdir=${hydra.job.num}",
        *overrides,
    )


def best_losses(folder) -> list[float]:
    """Of each job's best checkpoint."""
    paths = [folder / job / "checkpoints/checkpoint_best.pt" for job in "01"]
    states = [torch.load(path, weights_only=False)["extra_state"] for path in paths]
    assert all(state["best"] == state["val_loss"] for state in states)
    return [state["best"] for state in states]


def test_a_job_that_is_worse_than_the_one_before_writes_its_best_checkpoint(
    tmp_path, corpus, pretrained
):
    sweep(
        tmp_path,
        "finetuning/base_100h",
        f"task.data={corpus}",
        f"model.w2v_path={pretrained}",
        "model.apply_mask=false",
        "dataset.valid_subset=valid",
    )
    first, second = best_losses(tmp_path)
    assert first < second


def test_so_does_a_student(tmp_path, corpus, pretrained):
    sweep(
        tmp_path,
        "distillation/base",
        f"task.data={corpus}",
        "task.min_sample_size=4000",
        f"model.w2v_path={pretrained}",
        "model.student_layers=1",
        'model.predict_layers="2"',
        "lr_scheduler.warmup_updates=1",
        "lr_scheduler.total_num_update=10",
    )
    first, second = best_losses(tmp_path)
    assert first < second


def test_patience_is_counted_anew(monkeypatch):
    for function in (checkpoint_utils.save_checkpoint, should_stop_early):
        monkeypatch.setitem(vars(function), "best", 1.0)
    monkeypatch.setitem(vars(should_stop_early), "num_runs", 3)
    forget_earlier_training()
    assert not vars(should_stop_early)
    assert not hasattr(checkpoint_utils.save_checkpoint, "best")
