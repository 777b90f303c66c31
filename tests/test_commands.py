"""The command line itself: what it says, what it imports before there is work, and that the package
is what it was for everybody else."""

import json
import os
import re
import subprocess
import sys
import warnings

import pytest
from fairseq.data import Dictionary
from fairseq.dataclass.configs import GenerationConfig
from helpers.commands import REPO, USER_DIR, last_checkpoint, run_command
from helpers.processes import run_forked

from fairseq_speedup import commands
from fairseq_speedup.commands import (
    COMMANDS,
    TASKS,
    arguments,
    calibrate,
    library_warnings,
    profile,
    transcribe,
)
from fairseq_speedup.data.dictionary import SPECIALS, ManifestError, read_symbols
from fairseq_speedup.decoding.options import DEFAULTS, OF_FAIRSEQ
from fairseq_speedup.inference import InferenceConfig
from fairseq_speedup.inference.linear import LINEARS
from fairseq_speedup.macs import COUNTS
from fairseq_speedup.profiling.utterance_lengths import read_lengths
from fairseq_speedup.transcription.transcript import FORMATS
from fairseq_speedup.transformer.early_exit import EXIT_CRITERIA

HEAVY = {"torch", "fairseq", "sklearn", "scipy", "transformers", "numpy", "omegaconf", "onnx"}
MODULE = ["-m", "fairseq_speedup"]
REGISTERED = """
from fairseq import checkpoint_utils
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import MODEL_REGISTRY
from fairseq.models.wav2vec import wav2vec2
from fairseq.tasks import TASK_REGISTRY

def check():
    assert {"speedup_ctc", "distilled_student"} <= set(MODEL_REGISTRY)
    assert "speedup_finetuning" in TASK_REGISTRY
    names = {"ctc_exits", "ctc_distillation", "ctc_in_place_distillation"}
    names |= {"layer_distillation", "gram_distillation"}
    assert names <= set(CRITERION_REGISTRY)
    assert hasattr(checkpoint_utils.load_checkpoint_to_cpu, "__wrapped__")
    assert wav2vec2.ConformerEncoder.__module__ == "fairseq_speedup.transformer.conformer"
    print("registered")
"""


def imports(*words, command=MODULE) -> tuple[subprocess.CompletedProcess, set[str]]:
    """Runs a command; the modules that it imported, and what it wrote without their list."""
    done = run_command(sys.executable, "-X", "importtime", *command, *words, check=False)
    lines = done.stderr.splitlines()
    listed = [line for line in lines if line.startswith("import time:")]
    done.stderr = "\n".join(line for line in lines if not line.startswith("import time:"))
    return done, {line.rsplit("|", 1)[1].strip() for line in listed}


def script(folder, code: str):
    """A file as pip makes it for the console command, with more in it."""
    (target,) = re.findall(r"fairseq-speedup = ([\w.]+:\w+)", (REPO / "setup.py").read_text())
    module, function = target.split(":")
    path = folder / "fairseq-speedup"
    path.write_text(f"import sys\nfrom {module} import {function}\n{code}")
    return path


@pytest.fixture
def console(tmp_path):
    return script(tmp_path, "if __name__ == '__main__':\n    sys.exit(main())\n")


# -- help ----------------------------------------------------------------------------------------


def test_every_command_is_a_file_and_a_line():
    files = (REPO / "fairseq_speedup/commands").glob("*.py")
    names = {path.stem.replace("_", "-") for path in files} - {
        "--init--",
        "arguments",
        "library-warnings",
    }
    assert sorted(COMMANDS) == sorted(names)


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_neither_torch_nor_fairseq(words):
    done, names = imports(*words)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m fairseq_speedup")
    assert not names & HEAVY


@pytest.mark.parametrize("way", ["module", "console"])
def test_alone_it_says_what_can_be_done(way, console):
    done, names = imports(command=MODULE if way == "module" else [console])
    prog = "python -m fairseq_speedup" if way == "module" else "fairseq-speedup"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {prog} ")
    tasks = re.findall(r"^(\S.*):$", done.stdout, re.MULTILINE)[-len(TASKS) :]
    assert tasks == ["Make my model faster", "Fine-tune a faster one", "Decode", "Look inside"]
    listed = re.findall(r"^  ([a-z-]+)  .*[a-z].*\.$", done.stdout, re.MULTILINE)
    assert listed == [name for lines in TASKS.values() for name in lines]
    assert not names & HEAVY


def test_help_names_choices_and_defaults():
    text = " ".join(imports("transcribe", "--help")[0].stdout.split())
    assert "--inference {auto,none,fp32,bf16,int8,fp16}" in text
    assert "--ctc-decoder {greedy,beam}" in text
    for said in ("(default: auto)", "(default: 30)", "(default: 0)", "(default: greedy)"):
        assert said in text
    for group in ("model:", "speed and memory:", "decoding:"):
        assert group in text
    assert "(default: False)" not in text and "(default: None)" not in text


# -- wrong arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["trancribe"], 2, "invalid choice: 'trancribe'"),
        (["inspect", "x.pt", "--secnds", "3"], 2, "unrecognized arguments: --secnds 3"),
        (["optimize", "x.pt", "--output", "y", "--time-limit", "20x"], 2, "'20x' is no time;"),
        (["optimize", "x.pt", "--output", "y", "--time-limit", "0"], 2, "2h, 90s or a number of"),
        (["--user-dir", "lost", "inspect", "x.pt"], 1, "--user-dir lost is not a folder"),
        (["inspect", "x.pt", "--seconds", "0"], 1, "--seconds 0.0 is out of range"),
        (["profile", "--arch", "huge"], 1, "--arch huge is unknown; valid values: base, large"),
        (["profile", "--config", "lost.yaml"], 1, "lost.yaml does not exist"),
        (["profile", "--seconds", "1,x"], 1, "--seconds, line 2: expected a length in seconds"),
        (["profile", "factor"], 1, "'factor' is not of the form option=value"),
        (["prune", __file__, "--output", "y.pt", "--parts", "heads"], 1, "--parts is for --target"),
        (["profile", __file__], 1, "option=value; a checkpoint is given as --checkpoint"),
        (["export", "--path", "lost.pt", "--output", "x"], 1, "checkpoint lost.pt does not exist"),
        (["export", "--path", "{}", "--output", "x", "--minutes", "2"], 1, "--minutes is for --to"),
        (
            ["export", "--path", "{}", "--output", "x", "--gen-subset", "a"],
            1,
            "--gen-subset is for",
        ),
        (["low-rank", "{}", "--audio", "{}", "--output", "lost/x"], 1, "lost does not exist"),
        (["convert", "a.pt", "lost/b"], 1, "lost does not exist"),
        (["calibrate", ".", "--path", "a.pt", "--thresholds", "0"], 1, "--thresholds 0 is out of"),
        (["calibrate", ".", "--path", "a.pt", "--exit-criterion", "layer"], 1, "layer is unknown"),
        (["calibrate", ".", "--path", "a.pt", "--wer-budget", "nan"], 1, "--wer-budget nan is out"),
        (["tune-lm", ".", "--path", "a.pt", "--kenlm-model", "lost.arpa"], 1, "needs --lexicon"),
        (["transcribe", "a.wav", "--path", "a.pt", "--lm-weight", "1"], 1, "add --ctc-decoder"),
        (["transcribe", "a.wav", "--path", "a.pt", "--inference", "fp8"], 1, "fp8 is unknown"),
        (["transcribe", "a.wav", "--path", "a.pt", "--batch-size", "0"], 1, "--batch-size 0 is"),
        (["transcribe", "a.wav", "--path", "lost.pt"], 1, "checkpoint lost.pt does not exist"),
        (["lexicon", "lost", "--output", "x"], 1, "data folder lost does not exist"),
        (["merge", "lost", "--output", "x"], 1, "lost has no results of test"),
    ],
)
def test_wrong_arguments_are_named_before_torch_and_fairseq_are_imported(words, status, said):
    done, names = imports(*(word.replace("{}", __file__) for word in words))
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not names & {"torch", "fairseq", "sklearn", "scipy", "transformers"}


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_usage_is_a_line(command, capsys):
    prog = commands.build_parser().prog
    for words in (["--no-such-option"], ["--user-dir"]):  # that is of no command
        with pytest.raises(SystemExit) as end:
            commands.main([command, *words])
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{prog} {command}: error: ")
        assert line.endswith("; see --help")


def test_lengths_out_of_a_pipe_are_left_to_the_command():
    out, into = os.pipe()
    os.write(into, b"1.5\n2\n")
    os.close(into)
    words = ["profile", "--lengths", f"/dev/fd/{out}"]
    args = commands.build_parser().parse_args(words)
    profile.check(args)
    assert read_lengths(args).tolist() == [24000, 32000]
    os.close(out)


def test_a_name_that_a_users_package_may_have_is_looked_up_there(tmp_path, capsys):
    package = tmp_path / "my_sizes"
    package.mkdir()
    text = "from fairseq_speedup.architectures import ARCHITECTURES\n"
    (package / "__init__.py").write_text(text + "ARCHITECTURES['mine'] = {'encoder_layers': 2}\n")
    words = ["profile", "--arch", "mine", "--time", "0", "--seconds", "1"]
    found = run_forked(*MODULE, "--user-dir", package, *words)
    assert found.stdout.startswith("mine, random weights")
    assert commands.main(words) == 1
    assert "--arch mine is unknown" in capsys.readouterr().err


# -- commands that need little -------------------------------------------------------------------


def write_shard(folder, number: int):
    folder.mkdir(parents=True)
    lines = [f"T-{number}\tA B", f"H-{number}\t-1.0\tA C", f"D-{number}\t-1.0\tA C"]
    text = "\n".join([*lines, "Generate test with beam=5: WER: 50.00"])
    (folder / "generate-test.txt").write_text(text + "\n")
    report = {"gen_subset": "test", "num_utterances": 1, "num_shards": 2, "shard_id": number}
    report |= {"utterances_in_subset": 2, "audio_seconds": 1.0, "encoder_seconds": 0.1}
    report |= {"decoder_wait_seconds": 0.1, "peak_memory_bytes": 1, "macs_per_second": None}
    report |= {"options": {}, "hardware": {}}
    (folder / "compute.json").write_text(json.dumps(report))
    return folder


def test_results_and_labels_are_worked_on_without_torch_and_fairseq(corpus, tmp_path):
    shards = [write_shard(tmp_path / str(number), number) for number in range(2)]
    merged = tmp_path / "runs/full/test"
    for words, said in [
        (["merge", *shards, "--output", merged], "2 utterances of 2 shards: Generate test with"),
        (["report", tmp_path / "runs", "--no-pictures"], "| full/test | 1 | 50.00 |"),
        (["lexicon", corpus, "--output", tmp_path / "lexicon.txt"], f"of {corpus}/train.ltr"),
    ]:
        done, names = imports(*words)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
        assert not names & {"torch", "fairseq", "sklearn", "scipy", "transformers", "matplotlib"}


def test_a_dictionary_is_read_as_fairseq_reads_it(tmp_path):
    path = tmp_path / "dict.ltr.txt"
    path.write_text("| 9\nÉ 5\n</s> 1 #fairseq:overwrite\nA 0 \nB B 3\n", encoding="utf-8")
    assert read_symbols(str(path)) == Dictionary.load(str(path)).symbols
    assert Dictionary().symbols == SPECIALS
    for line, words in [("C", "expected a label and a count"), ("| 1", "'|' is there twice")]:
        path.write_text(f"| 9\n{line}\n")
        with pytest.raises((ValueError, RuntimeError)):
            Dictionary.load(str(path))
        with pytest.raises(ManifestError, match=re.escape(words)):
            read_symbols(str(path))


# -- tables that help reads ----------------------------------------------------------------------


def test_what_help_names_is_what_there_is():
    assert {"auto", "none", *LINEARS} == set(arguments.INFERENCE_FORMS)
    assert list(COUNTS) == profile.COUNTS
    assert list(FORMATS) == transcribe.FORMATS
    assert set(calibrate.CRITERIA) < set(EXIT_CRITERIA)
    assert Dictionary().nspecial + 1 == profile.MIN_LABELS
    assert {name: getattr(GenerationConfig(), name) for name in OF_FAIRSEQ} == OF_FAIRSEQ


def test_transcribe_takes_every_option_of_decoding():
    args = commands.build_parser().parse_args(["transcribe", "a.wav", "--path", "a.pt"])
    expected = {**DEFAULTS, "window_seconds": 30.0}
    expected.pop("ctm")
    assert {name: getattr(args, name) for name in expected} == expected
    assert args.inference == InferenceConfig().inference
    assert {name: getattr(args, name) for name in OF_FAIRSEQ} == OF_FAIRSEQ


# -- libraries' warnings -------------------------------------------------------------------------


def test_no_librarys_warning_reaches_the_user(corpus, with_exits):
    finetuned = last_checkpoint(with_exits)
    audio = corpus / "audio/test-0.wav"
    words = [*MODULE, "transcribe", "--cpu", "--path", finetuned, audio]
    errors = run_command(sys.executable, *words).stderr.replace("\r", "").strip()
    assert re.fullmatch(r"transcribed 1 file, .*", errors)
    assert not run_forked(*MODULE, "calibrate", corpus, "--cpu", "--path", finetuned).stderr.strip()


def test_other_warnings_do(monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        library_warnings.leave_out()
        for text, category in [
            ("`torch.nn.utils.weight_norm` is deprecated in favor of", FutureWarning),
            ("Detected pickle protocol 4 in the checkpoint, which was not", UserWarning),
            ("'pin_memory' argument is set as true but no accelerator is found", UserWarning),
            ("`torch.nn.utils.other` is deprecated", FutureWarning),
            ("weight_norm: the weights are not normal", UserWarning),
        ]:
            warnings.warn(text, category, stacklevel=2)
    assert [str(each.message) for each in caught] == [
        "`torch.nn.utils.other` is deprecated",
        "weight_norm: the weights are not normal",
    ]


# -- everybody else ------------------------------------------------------------------------------


def test_importing_the_package_registers_everything():
    code = f"import fairseq_speedup\n{REGISTERED}check()"
    assert run_command(sys.executable, "-c", code).stdout == "registered\n"
    # whatever is imported of it first, and fairseq before it
    code = f"{REGISTERED}from fairseq_speedup.decoding.options import DECODERS\ncheck()"
    assert run_forked("-c", code).stdout == "registered\n"
    done = run_command(sys.executable, "-c", code, *MODULE)
    assert done.stdout == "registered\n"


@pytest.mark.parametrize("own", [False, True])
def test_a_user_directory_registers_everything(own, tmp_path):
    folder = USER_DIR
    if own:
        folder = tmp_path / "my_package"
        folder.mkdir()
        (folder / "__init__.py").write_text("import fairseq_speedup\n")
    code = "import sys\nfrom argparse import Namespace\nfrom fairseq.utils import *\n"
    code += f"import_user_module(Namespace(user_dir=sys.argv[1]))\n{REGISTERED}check()"
    assert run_forked("-c", code, folder, cwd=tmp_path).stdout == "registered\n"


def test_a_commands_workers_have_everything(tmp_path):
    """Spawned ones, which import the program's file again."""
    code = f"{REGISTERED}if __name__ == '__main__':\n"
    code += "    import multiprocessing\n"
    code += "    worker = multiprocessing.get_context('spawn').Process(target=check)\n"
    code += "    worker.start()\n"
    code += "    worker.join()\n    sys.exit(worker.exitcode)\n"
    assert run_command(sys.executable, script(tmp_path, code)).stdout == "registered\n"


def test_without_fairseq_everybody_is_told(tmp_path):
    (tmp_path / "fairseq").mkdir()
    (tmp_path / "fairseq/__init__.py").write_text("raise ValueError('mutable default')\n")
    paths = os.pathsep.join([str(tmp_path), str(REPO)])
    said = r"fairseq cannot be imported here \(ValueError: mutable default\)"

    def run(*words):
        done = run_command(sys.executable, *words, check=False, env={"PYTHONPATH": paths})
        return done.returncode, done.stderr

    status, errors = run("-c", "import fairseq_speedup")
    assert status == 1 and re.search(rf"ImportError: .*{said}", errors)
    (tmp_path / "model.pt").write_text("")
    status, errors = run(*MODULE, "inspect", tmp_path / "model.pt")
    assert status == 1 and re.search(said, errors)
    assert "Traceback" not in errors
    assert run(*MODULE, "inspect", "--help") == (0, "")
