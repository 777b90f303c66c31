"""One run of a study: fine-tunes a row of a grid and decodes it. All of them: Hydra's multirun.

    python study.py --config-dir FOLDER --config-name STUDY row=conv2 seed=1
    python study.py --config-dir FOLDER --config-name STUDY -m

STUDY is a Hydra config that says where data and checkpoint are (see open_corpus.yaml beside this
file), its `rows` a file such as rows.yaml. What is finished is skipped; a run that fails leaves
failed.txt in its folder and the others go on. Several GPUs and Slurm are Hydra's launchers
(`hydra/launcher=joblib hydra.launcher.n_jobs=2`, `submitit_slurm`). With repeat=1, 2 and so on the
rows are decoded again, for their times.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import hydra
from filelock import FileLock
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import fairseq_speedup

REPO = Path(__file__).resolve().parents[2]
USER_DIR = Path(fairseq_speedup.__file__).parent
DONE, FAILED, LOG, LOCK, RUN_LOCK = "done.json", "failed.txt", "log.txt", ".lock", ".run.lock"
CHECKPOINT = "checkpoint_last.pt"
KEYS = {"train", "decode", "of", "from", "student", "labels", "decoders"}
TAIL = 15  # lines of a log in an error


class StudyError(Exception):
    """A run that cannot be finished; the message says why."""


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
        for name, row in rows.items():
            unknown = set(row) - KEYS
            if unknown:
                raise StudyError(
                    f"{cfg.rows}, row {name}: unknown {', '.join(sorted(unknown))}; valid: "
                    f"{', '.join(sorted(KEYS))}"
                )
        tests = [cfg.tests, cfg.times.tests]
        asked = [each for some in tests for decoders in some.values() for each in decoders]
        asked += [each for row in rows.values() for each in row.get("decoders", [])]
        for decoder in asked:
            if decoder not in cfg.decoders:
                raise StudyError(
                    f"unknown decoder {decoder}; the study's decoders: {', '.join(cfg.decoders)}"
                )
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
        folder = self.folder(name)
        w2v_path = self._student(row["student"]) if "student" in row else Path(self.cfg.w2v_path)
        overrides = [
            *self.cfg.finetuning.overrides,
            f"common.user_dir='{USER_DIR}'",
            f"common.seed={self.cfg.seed}",
            f"task.data='{Path(self.cfg.data).resolve()}'",
            f"task.labels={self.labels(name)}",
            f"dataset.train_subset={self.cfg.train_subset}",
            f"model.w2v_path='{w2v_path.resolve()}'",
            *self._post_process(name),
            *row.get("train", []),
        ]
        if "from" in row:
            start = self.checkpoint(row["from"])
            overrides.append(f"+checkpoint.finetune_from_model='{start}'")
        self._hydra_train(folder, self.cfg.finetuning, overrides)

    def _post_process(self, name: str) -> list[str]:
        kind = "sentencepiece" if self.labels(name) == "spm" else "letter"
        return [f"++criterion.post_process={kind}"]

    def _student(self, overrides: list[str]) -> Path:
        """The checkpoint of a distilled student, which all seeds and amounts share."""
        name = "_".join(each.split("=")[-1].strip("\"'").replace(",", "-") for each in overrides)
        folder = Path(self.cfg.out).resolve() / "students" / name
        teacher = Path(self.cfg.w2v_path).resolve()
        given = [
            *self.cfg.distillation.overrides,
            f"common.user_dir='{USER_DIR}'",
            f"task.data='{Path(self.cfg.data).resolve()}'",
            f"model.w2v_path='{teacher}'",
            *overrides,
        ]
        self._hydra_train(folder, self.cfg.distillation, given)
        return folder / CHECKPOINT

    def _hydra_train(self, folder: Path, config, overrides: list[str]) -> None:
        """fairseq-hydra-train, unless that is done; goes on where it was interrupted. Runs side by
        side that start from one model wait for the one that trains it."""
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK):
            self._hydra_train_alone(folder, config, overrides)

    def _hydra_train_alone(self, folder: Path, config, overrides: list[str]) -> None:
        done = folder / DONE
        if done.is_file():
            if json.loads(done.read_text()) != overrides:
                raise StudyError(
                    f"{folder} was trained with other options than the grid now has (see {done}): "
                    "move it away to train it again"
                )
            return
        places = [f"checkpoint.save_dir='{folder}'", f"hydra.run.dir='{folder}'"]
        command = ["fairseq-hydra-train", "--config-dir", str(Path(config.config_dir).resolve())]
        command += ["--config-name", config.config_name, *places, *overrides]
        call(command, folder / LOG)
        done.write_text(json.dumps(overrides))

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
        allowed = row.get("decoders", list(self.cfg.decoders))
        for variant, overrides in row.get("decode", {name: {}}).items():
            for test, decoders in tests.items():
                for decoder in decoders:
                    if decoder in allowed:
                        self._generate(name, variant, overrides, test, decoder)

    def _generate(self, name: str, variant: str, overrides: dict, test: str, decoder: str) -> None:
        folder = self.results(variant, test, decoder)
        if is_decoded(folder, test):
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        labels = self.labels(name)
        command = ["fairseq-generate", self.cfg.data, "--user-dir", str(USER_DIR)]
        command += ["--task", "speedup_finetuning", "--path", str(self.checkpoint(name))]
        command += ["--gen-subset", test, "--labels", labels, "--scoring", "wer"]
        command += ["--post-process", "sentencepiece" if labels == "spm" else "letter"]
        command += ["--results-path", str(folder), "--model-overrides", repr(overrides)]
        call([*command, *self.cfg.generate, *self.cfg.decoders[decoder]], folder / LOG)
        if not is_decoded(folder, test):
            raise StudyError(f"{folder} has no WER; see {folder / LOG}")


def read_rows(cfg: DictConfig) -> dict:
    """The rows, with the study's own values where they name them: ``${w2v_path}``."""
    path = Path(cfg.rows)
    if not path.is_file():
        raise StudyError(f"rows={path} is not a file")
    try:
        rows = OmegaConf.load(path)
        rows = OmegaConf.to_container(OmegaConf.merge({"grid": rows}, cfg).grid, resolve=True)
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise StudyError(f"rows={path} cannot be read: {error}") from None
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise StudyError(f"rows={path}: each row is a name with {', '.join(sorted(KEYS))}, or {{}}")
    return rows


def is_decoded(folder: Path, test: str) -> bool:
    generated = folder / f"generate-{test}.txt"
    if not generated.is_file() or not (folder / "compute.json").is_file():
        return False
    return "WER: " in generated.read_text(encoding="utf-8").rpartition("\nGenerate")[2]


def call(command, log: Path) -> None:
    """Runs a command of fairseq's, its output in a log."""
    command = [str(word) for word in command]
    command[0] = str(Path(sys.executable).parent / command[0])
    with log.open("w", encoding="utf-8") as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    if status:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
        raise StudyError("\n".join([f"{' '.join(command)}", f"failed, {log} ends with", *tail]))


class Summary(Callback):
    """Says at the end of a multirun what failed."""

    def on_multirun_end(self, config: DictConfig, **unused) -> None:
        failed = sorted(Path(config.out).resolve().rglob(FAILED))
        for path in failed:
            print(f"failed: {path}", file=sys.stderr)
        print(f"study: {len(failed)} runs failed" if failed else "study: every run is finished")


def _run(study: Study, failed: Path) -> None:
    cfg = study.cfg
    failed.unlink(missing_ok=True)
    print(f"== {cfg.train_subset}, {cfg.row}, seed {cfg.seed}", flush=True)
    try:
        if cfg.repeat is None:
            study.train(cfg.row)
            study.decode(cfg.row)
        else:
            study.time(cfg.row)
    except StudyError as error:
        failed.write_text(f"{error}\n", encoding="utf-8")
        print(f"failed: {error}", file=sys.stderr, flush=True)


@hydra.main(version_base="1.3", config_path=None)
def main(cfg: DictConfig) -> None:
    study = Study.of(cfg)
    study.row(cfg.row)
    folder = study.folder(cfg.row)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / RUN_LOCK):  # the same study, started twice
        _run(study, folder / FAILED)


if __name__ == "__main__":
    main()
