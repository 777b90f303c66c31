"""Gives every file of a folder to every door through which checkpoints come in, and writes what
Python's audit hooks saw meanwhile: python hostile_doors.py FILES CORPUS PRETRAINED RESULTS.jsonl

Doors that train or decode are slow, and get those files alone whose name begins with "all". At the
end every file is loaded once more as trusted, which shows what would have run. A process of its
own, for audit hooks cannot be taken away again.
"""

import contextlib
import functools
import io
import json
import os
import sys
from pathlib import Path

MARK = "canary"  # in every payload
STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.", "pty.")
REACHES_OUT = ("socket.connect", "urllib.", "ctypes.dlopen", "pickle.find_class", "shutil.")
SLOW = ("generate", "w2v_path", "teacher_path", "restore_file", "finetune_from_model")
seen = []


def hook(event: str, arguments: tuple) -> None:
    if event.startswith((*STARTS, *REACHES_OUT)):
        seen.append(f"{event} {arguments}"[:300])
    elif event in ("open", "import"):
        if MARK in str(arguments[0])[:5000]:
            seen.append(f"{event} {arguments}"[:300])
    elif event == "exec" and MARK in str(getattr(arguments[0], "co_consts", "")):
        seen.append("exec of a payload")


def doors(corpus: Path, pretrained: Path, results: Path) -> dict:
    """Every way in, as a function of the path of a checkpoint."""
    from fairseq import checkpoint_utils
    from fairseq.dataclass.initialize import add_defaults, hydra_init
    from fairseq_cli import generate, train
    from helpers.commands import REPO, USER_DIR
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from fairseq_speedup.__main__ import main

    def decode(path):
        sys.argv = ["fairseq-generate", str(corpus), "--user-dir", str(USER_DIR), "--cpu"]
        sys.argv += ["--task", "speedup_finetuning", "--labels", "ltr", "--path", path]
        generate.cli_main()

    hydra_init("base_100h")

    @functools.cache
    def config_with(*overrides):
        overrides = [
            f"common.user_dir={USER_DIR}",
            "common.cpu=true",
            "common.fp16=false",
            f"task.data={corpus}",
            "task.normalize=true",
            f"model.w2v_path={pretrained}",
            "dataset.num_workers=0",
            "optimization.max_update=1",  # a file that is not refused is trained on
            "dataset.valid_subset=valid",
            "distributed_training.distributed_world_size=1",
            f"checkpoint.save_dir={results.parent / 'saved'}",
            *overrides,
        ]
        with initialize_config_dir(str(REPO / "config/finetuning"), version_base="1.1"):
            cfg = compose("base_100h", overrides=overrides)
        add_defaults(cfg)
        return OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)

    def fine_tune(place, path, *overrides):
        cfg = OmegaConf.create(config_with(*overrides))
        OmegaConf.update(cfg, place, path)
        train.main(cfg)

    def command(*words):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            status = main(list(words))
        if status:
            raise SystemExit(errors.getvalue().strip().split("\n")[-1])

    return {
        "load": lambda path: checkpoint_utils.load_checkpoint_to_cpu(path),
        "ensemble": lambda path: checkpoint_utils.load_model_ensemble_and_task([path]),
        "generate": decode,
        "w2v_path": lambda path: fine_tune("model.w2v_path", path),
        "teacher_path": lambda path: fine_tune(
            "criterion.teacher_path", path, "criterion._name=ctc_distillation"
        ),
        "restore_file": lambda path: fine_tune("checkpoint.restore_file", path),
        "finetune_from_model": lambda path: fine_tune("checkpoint.finetune_from_model", path),
        "inspect": lambda path: command("inspect", path, "--json"),
        "profile": lambda path: command("profile", "--checkpoint", path, "--time", "0"),
        "calibrate": lambda path: command("calibrate", str(corpus), "--path", path),
    }


def main() -> None:
    files, corpus, pretrained, results = map(Path, sys.argv[1:5])
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("run", os.system)  # as programs do, with eval for example
    ways = doors(corpus, pretrained, results)
    paths = sorted(files.glob("*.pt"))
    sys.addaudithook(hook)
    with results.open("w") as file:

        def attempt(path, name, door):
            seen.clear()
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    door(str(path))
                error = ""
            except (Exception, SystemExit) as caught:
                error = f"{type(caught).__name__}: {caught}"
            canary = files / f"{MARK} {path.stem}"
            entry = {"file": path.stem, "door": name, "error": error, "seen": list(seen)}
            file.write(json.dumps(entry | {"ran": canary.exists()}) + "\n")

        for path in paths:
            for name, door in ways.items():
                if name not in SLOW or path.name.startswith("all"):
                    attempt(path, name, door)
        os.environ["FAIRSEQ_SPEEDUP_TRUST_CHECKPOINTS"] = "1"
        for path in paths:
            attempt(path, "trusted", ways["load"])


if __name__ == "__main__":
    main()
