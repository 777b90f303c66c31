"""One run of a study: fine-tunes a row of a grid and decodes it. All of them: Hydra's multirun.

    python study.py --config-dir FOLDER --config-name STUDY row=conv2 seed=1
    python study.py --config-dir FOLDER --config-name STUDY -m

STUDY is a Hydra config that says where data and checkpoint are (see open_corpus.yaml beside this
file), its `rows` a file such as rows.yaml. What is finished is skipped; a run that fails leaves
failed.txt in its folder and the others go on. Several GPUs and Slurm are Hydra's launchers
(`hydra/launcher=joblib hydra.launcher.n_jobs=2`, `submitit_slurm`). With repeat=1, 2 and so on the
rows are decoded again, for their times.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import hydra
from grid import StudyError, read_rows
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

REPO = Path(__file__).resolve().parents[2]
USER_DIR = Path(find_spec("fairseq_speedup").origin).parent  # fairseq is not waited for
OPTIONS, DONE, DECODED = "options.json", "done", "decoded.json"
FAILED, LOG, LOCK, RUN_LOCK = "failed.txt", "log.txt", ".lock", ".run.lock"
CHECKPOINT, PRUNED, ORDERED = "checkpoint_last.pt", "pruned.pt", "ordered.pt"
FILE_OPTIONS = ("--lexicon", "--kenlm-model")  # of a decoder
TAIL = 15  # lines of a log in an error


@dataclass
class Study:
    """What the config says, for one amount of labelled data and one seed.

    cfg: see open_corpus.yaml
    rows: see rows.yaml
    """

    cfg: DictConfig
    rows: dict

    @classmethod
    def of(cls, cfg: DictConfig) -> "Study":
        rows = read_rows(cfg)
        asked = {f"tests.{test}": of for test, of in cfg.tests.items()}
        asked |= {f"times.tests.{test}": of for test, of in cfg.times.tests.items()}
        asked |= {f"row {name}": row["decoders"] for name, row in rows.items() if "decoders" in row}
        for where, decoders in asked.items():
            if isinstance(decoders, str):
                raise StudyError(f"{where} is {decoders!r}; it must be a list, such as [greedy]")
            for decoder in decoders:
                if decoder not in cfg.decoders:
                    valid = ", ".join(cfg.decoders)
                    raise StudyError(
                        f"{where}: unknown decoder {decoder}; the study's decoders: {valid}"
                    )
        check_teachers(cfg, rows)
        check_parts(cfg)
        check_device(cfg)
        return cls(cfg, rows)

    def row(self, name: str) -> dict:
        if name not in self.rows:
            raise StudyError(f"row={name} is not in {self.cfg.rows}: {', '.join(self.rows)}")
        return self.rows[name]

    def folder(self, name: str) -> Path:
        """Of the row's model."""
        seed = f"seed{self.cfg.seed}"
        return Path(self.cfg.out).resolve() / "models" / self.cfg.train_subset / name / seed

    def results(self, name: str, test: str, decoder: str) -> Path:
        """As `python -m fairseq_speedup report` wants it."""
        top = Path(self.cfg.out).resolve() / ("results" if self.cfg.repeat is None else "times")
        folder = top / self.cfg.train_subset / name / f"seed{self.cfg.seed}"
        if self.cfg.repeat is not None:
            folder = folder / f"run{self.cfg.repeat}"
        return folder / f"{test}_{decoder}"

    def labels(self, name: str) -> str:
        row = self.row(name)
        return self.labels(row["of"]) if "of" in row else row.get("labels", self.cfg.labels)

    def check_files(self, name: str) -> None:
        """Before hours of training.

        Raises:
            StudyError: a file that the row needs does not exist
        """
        data, labels = Path(self.cfg.data), self.labels(name)
        hint = "; `python -m fairseq_speedup spm` makes them" if labels == "spm" else ""
        first = "w2v_path"
        if Path(self.cfg.out).resolve() in Path(self.cfg.w2v_path).resolve().parents:
            first += f"; train it first: the row full of recorded.yaml, seed {self.cfg.seed}"
        needed = {Path(self.cfg.w2v_path): first, data / f"dict.{labels}.txt": f"labels{hint}"}
        hints = {self.cfg.train_subset: ""}
        hints |= {test: f"; ~tests.{test} leaves it out" for test in self.cfg.tests}
        for split, hint in hints.items():
            for ending in ("tsv", labels):
                needed[data / f"{split}.{ending}"] = f"split {split}{hint}"
        asked = {decoder for decoders in self.cfg.tests.values() for decoder in decoders}
        for decoder in sorted(asked.intersection(self._decoders(name))):
            for option, value in pairwise(self.cfg.decoders[decoder]):
                if option in FILE_OPTIONS:
                    needed[Path(value)] = f"decoder {decoder}, {option}"
        for path, what in needed.items():
            if not path.is_file():
                raise StudyError(f"row {name} needs {path}, which does not exist ({what})")
        start = Path(self.cfg.w2v_path)
        if self._is_of_a_study(start) and not (start.parent / DONE).is_file():
            raise StudyError(f"row {name} starts from {start}, whose training has not ended yet")

    @staticmethod
    def _is_of_a_study(checkpoint: Path) -> bool:
        return (checkpoint.parent / OPTIONS).is_file()

    def _decoders(self, name: str) -> list[str]:
        return self.row(name).get("decoders", list(self.cfg.decoders))

    # -- training --------------------------------------------------------------------------------

    def checkpoint(self, name: str) -> Path:
        """Of a row that is trained, or of the one that it is decoded with."""
        return self.folder(self.row(name).get("of", name)) / CHECKPOINT

    def train(self, name: str) -> None:
        """Fine-tunes a row, and first what it starts from."""
        row = self.row(name)
        if "of" in row:
            self.train(row["of"])
            return
        if "from" in row:
            self.train(row["from"])
        w2v_path = self.checkpoint(row["from"]) if "from" in row else Path(self.cfg.w2v_path)
        start = OmegaConf.merge(self.cfg, {"w2v_path": str(w2v_path)})  # which is the teacher
        taught = list(start.teachers[row["teacher"]]) if "teacher" in row else []
        if "student" in row:
            w2v_path = self._student(name, row["student"])
        if "widths" in row:
            w2v_path = self._ordered(name, w2v_path, row["widths"])
        options = row.get("train", [])
        if "prune" in row:
            of_all = self.cfg.get("pruning", {"gates": [], "healing": []})
            gates = [*options, *of_all["gates"], *row["prune"], *taught]
            w2v_path = self._pruned(name, w2v_path, gates)
            options = [*options, *of_all["healing"]]
        overrides = [*self._finetuning(name, w2v_path), *options, *taught]
        starts = w2v_path, Path(start.w2v_path)
        self._finetune(name, self.folder(name), overrides, *starts)

    def _finetune(self, name: str, folder: Path, overrides: list[str], *starts: Path) -> None:
        """
        Args:
            starts: checkpoints that the training begins with, and learns from
        """
        files = [*starts, *self._split(name, self.cfg.train_subset)]
        self._hydra_train(folder, self.cfg.finetuning, overrides, files)

    def _split(self, name: str, split: str) -> list[Path]:
        """Manifest and labels."""
        return [Path(self.cfg.data) / f"{split}.{each}" for each in ("tsv", self.labels(name))]

    def _finetuning(self, name: str, w2v_path: Path) -> list[str]:
        return [
            *self.cfg.finetuning.overrides,
            f"common.user_dir='{USER_DIR}'",
            f"common.seed={self.cfg.seed}",
            f"task.data='{Path(self.cfg.data).resolve()}'",
            f"task.labels={self.labels(name)}",
            f"dataset.train_subset={self.cfg.train_subset}",
            f"model.w2v_path='{w2v_path.resolve()}'",
            f"++criterion.post_process={self._post_process(name)}",
            *self._device(),
        ]

    def _device(self) -> list[str]:
        """Overrides of a training: what its config says, unless the study wants a GPU."""
        return [] if self.cfg.get("cpu", True) else ["common.cpu=false"]

    def _post_process(self, name: str) -> str:
        return "sentencepiece" if self.labels(name) == "spm" else "letter"

    def _student(self, name: str, overrides: list[str]) -> Path:
        """The checkpoint of a distilled student. All seeds and amounts share that of one teacher;
        where the teacher is of a study, each has its own."""
        teacher = Path(self.cfg.w2v_path).resolve()
        if self._is_of_a_study(teacher):
            folder = self.folder(name) / "student"
        else:
            words = [each.split("=")[-1].strip("\"'").replace(",", "-") for each in overrides]
            folder = Path(self.cfg.out).resolve() / "students" / "_".join(words)
        given = [
            *self.cfg.distillation.overrides,
            f"common.user_dir='{USER_DIR}'",
            f"task.data='{Path(self.cfg.data).resolve()}'",
            f"model.w2v_path='{teacher}'",
            *self._device(),
            *overrides,
        ]
        self._hydra_train(folder, self.cfg.distillation, given, [teacher])
        return folder / CHECKPOINT

    def _pruned(self, name: str, w2v_path: Path, overrides: list[str]) -> Path:
        """What is left of a model once its gates have been trained and cut."""
        folder = self.folder(name) / "gates"
        given = self._finetuning(name, w2v_path) + overrides
        self._finetune(name, folder, given, w2v_path)
        pruned = folder / PRUNED
        if not pruned.is_file():
            command = [Path(sys.executable).name, "-m", "fairseq_speedup", "prune"]
            call([*command, folder / CHECKPOINT, "--output", pruned], folder / "prune.txt")
        return pruned

    def _ordered(self, name: str, w2v_path: Path, widths: list[str]) -> Path:
        """A model with its parts in the order of what they are worth on the training audio."""
        folder = self.folder(name)
        ordered = folder / ORDERED
        if not ordered.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            command = [Path(sys.executable).name, "-m", "fairseq_speedup", "widths", w2v_path]
            command += ["--widths", *widths, "--data", self.cfg.data, "--output", ordered]
            command += ["--gen-subset", self.cfg.train_subset]
            call(command, folder / "widths.txt")
        return ordered

    def _hydra_train(self, folder: Path, config, overrides: list[str], files: list[Path]) -> None:
        """fairseq-hydra-train, unless that is done; goes on where it was interrupted. Runs side by
        side that start from one model wait for the one that trains it.

        Args:
            files: what decides the model besides options
        """
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK):
            self._hydra_train_alone(folder, config, overrides, files)

    def _hydra_train_alone(
        self, folder: Path, config, overrides: list[str], files: list[Path]
    ) -> None:
        given = Path(config.config_dir).resolve()
        file = given / f"{config.config_name}.yaml"
        if not file.is_file():
            raise StudyError(f"config_dir={config.config_dir}: there is no {file}")
        options = {"config": file.read_text(encoding="utf-8"), "overrides": overrides}
        if self._is_of_a_study(Path(self.cfg.w2v_path)):  # which may train it again
            options["start"] = Path(self.cfg.w2v_path).stat().st_mtime_ns
        options["files"] = contents_of(files)
        started = folder / OPTIONS
        if started.is_file() and (other := difference(started, options)):
            raise StudyError(
                f"{folder} was trained with other {other} than the grid now has (see {started}): "
                "move it away to train it again"
            )
        if (folder / DONE).is_file():
            return
        write_json(started, options)
        places = [f"checkpoint.save_dir='{folder}'", f"hydra.run.dir='{folder}'"]
        command = ["fairseq-hydra-train", "--config-dir", str(given)]
        command += ["--config-name", config.config_name, *places, *overrides]
        call(command, folder / LOG)
        (folder / DONE).touch()

    # -- decoding --------------------------------------------------------------------------------

    def decode(self, name: str) -> None:
        """Decodes each variant of a row, each test set, with each decoder that is both the test
        set's and the row's."""
        self._decode(name, self.cfg.tests)

    def time(self, name: str) -> None:
        """Decodes once more what the study takes times of."""
        if self.cfg.seed != self.cfg.times.seed:
            return
        checkpoint = self.checkpoint(name)
        if not (checkpoint.parent / DONE).is_file():
            raise StudyError(f"repeat={self.cfg.repeat}: {checkpoint} is not trained yet")
        self._decode(name, self.cfg.times.tests)

    def _decode(self, name: str, tests: DictConfig) -> None:
        row = self.row(name)
        allowed = self._decoders(name)
        for variant, overrides in row.get("decode", {name: {}}).items():
            for test, decoders in tests.items():
                for decoder in decoders:
                    if decoder in allowed:
                        self._generate(name, variant, overrides, test, decoder)

    def _generate(self, name: str, variant: str, overrides: dict, test: str, decoder: str) -> None:
        folder, checkpoint = self.results(variant, test, decoder), self.checkpoint(name)
        options = ["--task", "speedup_finetuning", "--gen-subset", test]
        options += ["--labels", self.labels(name), "--post-process", self._post_process(name)]
        options += ["--scoring", "wer", "--model-overrides", repr(overrides)]
        options += ["--cpu"] if self.cfg.get("cpu") else []
        options += [*self.cfg.generate, *self.cfg.decoders[decoder]]
        given = pairwise(self.cfg.decoders[decoder])
        files = [Path(value) for option, value in given if option in FILE_OPTIONS]
        files += self._split(name, test)
        record = {"options": options, "model": checkpoint.stat().st_mtime_ns}
        record["files"] = contents_of(files)
        if (folder / DECODED).is_file():
            if (other := difference(folder / DECODED, record)) is None:
                return
            print(f"other {other} than before: {folder} is decoded again", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = ["fairseq-generate", self.cfg.data, "--user-dir", str(USER_DIR)]
        command += ["--path", str(checkpoint), "--results-path", str(folder), *options]
        call(command, folder / LOG)
        if not has_wer(folder, test):
            raise StudyError(f"{folder} has no WER; see {folder / LOG}")
        write_json(folder / DECODED, record)


def contents_of(files: list[Path]) -> dict[str, str]:
    """What tells files from others of their names, wherever they are."""
    return {
        "/".join(path.resolve().parts[-2:]): _content(path, path.stat().st_mtime_ns)
        for path in files
        if path.is_file()
    }


@cache
def _content(path: Path, written: int) -> str:
    with path.open("rb") as file:
        if path.suffix == ".tsv":
            file.readline()  # where the audio is
        return hashlib.file_digest(file, "sha256").hexdigest()


def difference(record: Path, now: dict) -> str | None:
    """What is other than an earlier run recorded, by name; None where nothing is. What earlier
    versions did not record is not compared."""
    before = json.loads(record.read_text())
    for name in {**now, **before}:
        old, new = before.get(name, now.get(name)), now.get(name)
        if old == new:
            continue
        if not isinstance(old, dict) or not isinstance(new, dict):
            return name
        files = [file for file in sorted({**old, **new}) if old.get(file) != new.get(file)]
        return f"{name} ({', '.join(files)})"
    return None


def check_teachers(cfg: DictConfig, rows: dict) -> None:
    """Raises StudyError for a row whose teacher the study does not describe."""
    for name, row in rows.items():
        if "teacher" in row and row["teacher"] not in cfg.get("teachers", {}):
            valid = ", ".join(cfg.get("teachers", {})) or "none in this study"
            raise StudyError(f"row {name}: unknown teacher {row['teacher']}; valid: {valid}")


def check_parts(cfg: DictConfig) -> None:
    """Raises StudyError for parts of a row's updates that do not make up all of them."""
    if "gates" not in cfg:
        return
    if cfg.gates + cfg.healing != cfg.updates or not 0 < cfg.match < cfg.updates:
        raise StudyError(
            f"gates={cfg.gates} and healing={cfg.healing} must be updates={cfg.updates} together, "
            f"and match={cfg.match} fewer than those"
        )


def check_device(cfg: DictConfig) -> None:
    """Raises StudyError where a GPU is asked for that is not there."""
    if cfg.get("cpu", True):
        return
    import torch

    if not torch.cuda.is_available():
        raise StudyError("cpu=false, but torch finds no GPU here: leave it out")


def has_wer(folder: Path, test: str) -> bool:
    generated = folder / f"generate-{test}.txt"
    if not generated.is_file() or not (folder / "compute.json").is_file():
        return False
    return "WER: " in generated.read_text(encoding="utf-8").rpartition("\nGenerate")[2]


def write_json(path: Path, value) -> None:
    """The whole of it or nothing."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(value), encoding="utf-8")
    part.replace(path)


@contextmanager
def locked(path: Path):
    """Holds a lock. Commands that are called meanwhile hold it too: where this process is killed,
    the next one waits for what it has left running."""
    with path.open("w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that works on {path.parent}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def call(command, log: Path) -> None:
    """Runs a command of fairseq's, its output in a log."""
    command = [str(word) for word in command]
    command[0] = str(Path(sys.executable).parent / command[0])
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, close_fds=False)
    if done.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
        raise StudyError("\n".join([f"{' '.join(command)}", f"failed, {log} ends with", *tail]))


class Summary(Callback):
    """Checks the grid before a multirun, and says at its end what failed."""

    def on_multirun_start(self, config: DictConfig, **unused) -> None:
        self.start = time.time()
        HydraConfig.instance().set_config(config)  # for ${hydra:runtime.cwd}
        sweep = dict(config.hydra.sweeper.params or {})
        sweep |= dict(each.split("=", 1) for each in config.hydra.overrides.task if "=" in each)
        try:
            study = Study.of(config)
            for name in str(sweep.get("row", config.row)).replace(" ", "").split(","):
                study.row(name)
        except ERRORS as error:
            sys.exit(f"study: {error}")

    def on_multirun_end(self, config: DictConfig, **unused) -> None:
        failed = sorted(Path(config.out).resolve().rglob(FAILED))
        failed = [path for path in failed if path.stat().st_mtime >= self.start]
        for path in failed:
            print(f"failed: {path}", file=sys.stderr)
        if failed:
            print(f"study: {len(failed)} runs failed")
            sys.exit(1)
        print("study: every run is finished")


ERRORS = (StudyError, OmegaConfBaseException, OSError)


def _run(study: Study, failed: Path) -> bool:
    """Whether the run could be finished."""
    cfg = study.cfg
    failed.unlink(missing_ok=True)
    print(f"== {cfg.train_subset}, {cfg.row}, seed {cfg.seed}", flush=True)
    try:
        study.check_files(cfg.row)
        if cfg.repeat is None:
            study.train(cfg.row)
            study.decode(cfg.row)
        else:
            study.time(cfg.row)
    except ERRORS as error:
        failed.write_text(f"{error}\n", encoding="utf-8")
        print(f"failed: {error}", file=sys.stderr, flush=True)
        return False
    return True


def main(cfg: DictConfig) -> None:
    try:
        study = Study.of(cfg)
        study.row(cfg.row)
        folder = study.folder(cfg.row)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / RUN_LOCK):  # the same study, started twice
            finished = _run(study, folder / FAILED)
    except ERRORS as error:
        sys.exit(f"study: {error}")
    if not finished and HydraConfig.get().mode == RunMode.RUN:
        sys.exit(1)  # a multirun goes on; see Summary


if __name__ == "__main__":  # hydra.main here, as it sets the hydra version of whatever imports this
    hydra.main(version_base="1.3", config_path=None)(main)()
