"""What optimize leaves: a checkpoint that carries the choice, a table, a picture, commands."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from fairseq_speedup.checkpoints.opening import state_without_training, write_checkpoint
from fairseq_speedup.models.loading import load_finetuned
from fairseq_speedup.optimize.bench import Bench, Measured
from fairseq_speedup.optimize.candidates import Candidate
from fairseq_speedup.optimize.made import checkpoint_of
from fairseq_speedup.optimize.search import front
from fairseq_speedup.optimize.setup import Setup
from fairseq_speedup.optimize.worker import export, exported_ending, exported_path
from fairseq_speedup.report.significance import Difference, difference_of

MODEL = "model.pt"
EXPORTED = ("model.onnx", "model.xml", "model.bin")  # where another engine won: its file or files
TABLE, PICTURE, RESULT = "optimize.md", "error_against_time.png", "optimize.json"
NOISE_TO_RANK = 0.1  # of a time: beyond, a machine is called too noisy


@dataclass
class Line:
    """A line of the table.

    name: what it is
    measured: its candidate and what was found
    """

    name: str
    measured: Measured


def write_model(setup: Setup, candidate: Candidate, folder: Path) -> None:
    """The checkpoint, in which the choice is the default.

    Args:
        candidate: in torch
    """
    path = checkpoint_of(setup, candidate)
    options = setup.options_of(candidate)
    if candidate.form != "none":
        options["inference_form"] = candidate.form
    model, cfg, task = load_finetuned(path, "", options)
    state = state_without_training(
        model.state_dict(),
        cfg=OmegaConf.to_container(cfg, enum_to_str=True),
        task_state={"target_dictionary": task.target_dictionary},
    )
    write_checkpoint(state, str(folder / MODEL))


def exported_name(candidate: Candidate) -> str:
    """Of the file that is given to transcribe, for an engine's candidate."""
    return Path(MODEL).stem + exported_ending(candidate)


def keep_exported(setup: Setup, candidate: Candidate, folder: Path) -> list[str]:
    """The files of an engine's candidate, which were written when it was measured; their names."""
    made = Path(exported_path(setup.folder, candidate))
    if not made.exists():  # of a run before this one
        export(setup, candidate)
    kept = []
    for name in EXPORTED:
        part = made.with_suffix(Path(name).suffix)
        if part.exists():
            shutil.copyfile(part, folder / name)
            kept.append(name)
    return kept


def interval(bench: Bench, measured: Measured) -> Difference:
    """Of its loss, by the paired bootstrap of ``report``."""
    base = bench.measured[bench.base.key]
    return difference_of(
        np.array([measured.errors]), np.array([base.errors]), np.array(bench.num_words)
    )


def words_needed(bench: Bench, measured: Measured, budget: float) -> int | None:
    """Words of references that would tell the budget from chance, None where there are enough."""
    found = interval(bench, measured)
    half = (found.most - found.least) / 2
    if half <= budget or budget == 0:
        return None
    return math.ceil(sum(bench.num_words) * (half / budget) ** 2)


def table(bench: Bench, lines: list[Line]) -> str:
    """Markdown, a row a line."""
    measure = bench.scoring.measure if bench.by_labels else "distance"
    head = [
        "",
        f"{measure} %",
        "difference (95 % interval)",
        "time",
        "GMACs/s",
        "memory, MiB",
        "what",
    ]
    rows = [head, ["---", "---:", "---:", "---:", "---:", "---:", "---"]]
    for line in lines:
        measured = line.measured
        found = interval(bench, measured)
        macs, memory = measured.macs_per_second, measured.memory_bytes
        rows.append(
            [
                line.name,
                f"{bench.error_rate(measured):.2f}",
                f"{measured.loss:+.2f} ({found.least:+.2f} to {found.most:+.2f})",
                f"{measured.time:.2f} ({min(measured.ratios):.2f} to {max(measured.ratios):.2f})",
                "" if macs is None else f"{macs / 1e9:.2f}",
                "" if memory is None else f"{memory / 2**20:.0f}",
                measured.candidate.described(bench.base),
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def draw(bench: Bench, lines: list[Line], path: Path) -> None:
    """Error rate against time of all that was timed, the front named."""
    from fairseq_speedup.report.pictures import new_axes

    figure, axes = new_axes()
    timed = [each for each in bench.measured.values() if each.ratios]
    best = front(bench)
    base = bench.measured[bench.base.key]
    for each in timed:
        on_front = each in best
        axes.plot(
            each.time, bench.error_rate(each), "o" if on_front else "x",
            color="C0" if on_front else "0.6",
        )  # fmt: skip
    for each in {id(one): one for one in [*best, base]}.values():
        axes.annotate(
            each.candidate.described(bench.base), (each.time, bench.error_rate(each)),
            xytext=(4, 4), textcoords="offset points", fontsize=7,
        )  # fmt: skip
    chosen = lines[1].measured if len(lines) > 1 else lines[0].measured
    axes.plot(chosen.time, bench.error_rate(chosen), "o", mfc="none", ms=14, color="C3")
    measure = bench.scoring.measure if bench.by_labels else "distance from the model's own text"
    axes.set(xlabel="time, as a fraction of the model as it is", ylabel=f"{measure} (%)")
    axes.set_xlim(left=0)
    figure.savefig(path, dpi=150)


def as_json(bench: Bench, lines: list[Line], **more) -> dict:
    """All of the table, and what was tried."""
    return {
        "lines": [
            {
                "name": line.name,
                "error_rate": bench.error_rate(line.measured),
                "loss": line.measured.loss,
                "loss_interval": [(found := interval(bench, line.measured)).least, found.most],
                "time": line.measured.time,
                "times": line.measured.ratios,
                "macs_per_second": line.measured.macs_per_second,
                "memory_bytes": line.measured.memory_bytes,
                "candidate": vars(line.measured.candidate),
            }
            for line in lines
        ],
        "measure": bench.scoring.measure if bench.by_labels else "distance",
        "num_utterances": len(bench.indices),
        "num_words": int(sum(bench.num_words)),
        "num_tried": len(bench.measured),
        "noise": bench.noise,
        "failed": {
            each.candidate.described(bench.base): each.failed
            for each in bench.measured.values()
            if each.failed
        },
        **more,
    }


def write_json(found: dict, path: Path) -> None:
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
