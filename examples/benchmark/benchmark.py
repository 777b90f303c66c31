"""Times engines against each other on the lengths of a data set; see README.md.

    python benchmark.py OUTPUT_FOLDER --lengths test-clean.tsv --subsample 8 [options]

Each engine runs in a process of its own. In every round each batch goes through all engines, one
after another in changing order, so that what else the machine does falls on all alike. A ratio is
that of two totals of the same round; printed are medians over rounds, and the range.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from engines import REDUCED, REDUCED_FORMS, model_of, options_of
from torch import nn

from fairseq_speedup.inference.int8 import Int8Linear, product_here
from fairseq_speedup.inference.linear import Bf16Linear, Fp32Linear, multiplies_bf16
from fairseq_speedup.macs import MacCounter
from fairseq_speedup.profiling.environment import hardware, versions
from fairseq_speedup.profiling.utterance_lengths import read_lengths

HERE = Path(__file__).parent
BASELINE = "stock fairseq"
PEERS = [BASELINE, "transformers", "ONNX Runtime fp32", "ONNX Runtime int8"]
PEERS += ["OpenVINO fp32", "OpenVINO int8", "OpenVINO int8, CNN in fp32"]
OF_LARGE = ["CTranslate2 fp32", "CTranslate2 int8"]  # peers that run no other, and are asked for
OURS = ["ours fp32", "ours bf16", "ours int8", "ours in OpenVINO, fp32", "ours in OpenVINO, int8"]
OF_X1 = [f"ours {form}, {each}" for form in REDUCED_FORMS for each in REDUCED]  # asked for too
NOT_REDUCED = "none"
SAMPLE_RATE = 16000
ONE_FRAME_MORE = 320  # samples


@dataclass
class Engine:
    """An engine's process.

    Attributes:
        by_batch: by factor, for each round the time of each batch
    """

    name: str
    process: subprocess.Popen
    log: Path
    by_batch: dict[int, list[list[float]]] = field(default_factory=dict)
    peak_memory_bytes: int = 0

    @property
    def seconds(self) -> dict[int, list[float]]:
        """By factor, for each round the time of all batches."""
        return {factor: [sum(each) for each in rounds] for factor, rounds in self.by_batch.items()}

    @classmethod
    def start(cls, name: str, arch: str, threads: int, folder: Path) -> "Engine":
        command = [sys.executable, str(HERE / "worker.py"), name, arch, str(threads), str(folder)]
        path = folder / f"{name} {arch}.log"
        log = path.open("w")
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        engine = cls(name, process, path)
        engine.answer()
        return engine

    def answer(self) -> float:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} has stopped; see {self.log}")
        found = json.loads(line)
        self.peak_memory_bytes = found["peak_memory_bytes"]
        return found["seconds"]

    def run(self, lengths: list[int], factor: int) -> float:
        """Seconds that a batch takes."""
        print(json.dumps({"lengths": lengths, "factor": factor}), file=self.process.stdin)
        self.process.stdin.flush()
        return self.answer()


def subsampled(lengths, count: int | None) -> list[int]:
    """``count`` lengths at equal distances of their order, all with None."""
    ordered = sorted(int(length) for length in lengths)
    if count is None or count >= len(ordered):
        return ordered
    places = (np.arange(count) + 0.5) / count * len(ordered)
    return [ordered[int(place)] for place in places]


def batches_of(lengths: list[int], batch_size: int) -> list[list[int]]:
    return [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]


def race(engines: list[Engine], batches, factor: int, rounds: int, same_lengths: bool) -> None:
    """Fills in the engines' seconds; a round before the first warms them up and is not counted.

    Args:
        same_lengths: in all rounds; else every round has lengths of its own, as the utterances of a
            corpus have, for which some libraries compile kernels
    """
    for number in range(rounds + 1):
        times = [[0.0] * len(batches) for _ in engines]
        for position, batch in enumerate(batches):
            if not same_lengths:
                batch = [length + number * ONE_FRAME_MORE * factor for length in batch]
            for turn in range(len(engines)):
                index = (turn + position + number) % len(engines)
                times[index][position] = engines[index].run(batch, factor)
        if number > 0:
            for engine, found in zip(engines, times, strict=True):
                engine.by_batch.setdefault(factor, []).append(found)


def at_each(engine: Engine, baseline: Engine, factor: int) -> list[float]:
    """Of each batch, the median over rounds of the engine's time as a fraction of the baseline's at
    the same factor."""
    paired = zip(engine.by_batch[factor], baseline.by_batch[factor], strict=True)
    ratios = [[mine / theirs for mine, theirs in zip(*each, strict=True)] for each in paired]
    return [median(each) for each in zip(*ratios, strict=True)]


def table_by_length(report: dict) -> str:
    """Engines by length, each as a fraction of the baseline at that length and factor."""
    lengths = [f"{samples / SAMPLE_RATE:g} s" for samples in report["lengths_samples"]]
    lines = [f"| engine | {' | '.join(lengths)} |", "| --- |" + " ---: |" * len(lengths)]
    for factor in map(str, report["factors"]):
        for row in report["engines"]:
            if row["name"] != BASELINE:
                cells = [f"{ratio:.2f}" for ratio in row["ratio_by_batch"][factor]]
                lines.append(f"| {row['name']}, x{factor} | {' | '.join(cells)} |")
    return "\n".join(lines)


def peaks(threads: int) -> dict[str, float]:
    """The machine's fastest matrix products, in MACs per second, of the size of a large model's
    feed-forward layer, median of 15; of what it has instructions for."""
    torch.set_num_threads(threads)
    rows, linear = torch.randn(500, 1024), nn.Linear(1024, 4096)
    products = {"nn.Linear": linear, "fp32": Fp32Linear(linear)}
    if multiplies_bf16():
        products["bf16"] = Bf16Linear(linear)
    if product_here() is not None:
        products["int8"] = Int8Linear(linear)
    found = {}
    with torch.inference_mode():
        for name, product in products.items():
            seconds = []
            for _ in range(16):
                start = time.perf_counter()
                product(rows)
                seconds.append(time.perf_counter() - start)
            found[name] = rows.size(0) * linear.weight.numel() / median(seconds[1:])
    return found


def macs_of(reduced: str, arch: str, batches, factors) -> dict[int, int]:
    """MACs of all batches by factor, true lengths, of a model that is reduced or not."""
    counter = MacCounter(model_of(arch, *options_of(reduced)))
    samples = np.array([length for batch in batches for length in batch])
    return {factor: counter.count(samples // factor).sum().total for factor in factors}


def table(report: dict) -> str:
    factors = report["factors"]
    head = [f"x{factor}" for factor in factors]
    lines = [
        "| engine | " + " | ".join(head) + " | RTF x1 | GMACs/s x1 | peak memory, MiB |",
        "| --- |" + " ---: |" * (len(factors) + 3),
    ]
    for row in report["engines"]:
        ratios = [
            f"{row['ratio'][str(f)]['median']:.2f} ({row['ratio'][str(f)]['least']:.2f} to "
            f"{row['ratio'][str(f)]['most']:.2f})"
            for f in factors
        ]
        lines.append(
            f"| {row['name']} | {' | '.join(ratios)} | {row['real_time_factor']:.3f} | "
            f"{row['gmacs_per_second']:.0f} | {row['peak_memory_bytes'] / 2**20:.0f} |"
        )
    return "\n".join(lines)


def draw(report: dict, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    width = 0.8 / len(report["engines"])
    for index, row in enumerate(report["engines"]):
        found = [row["ratio"][str(factor)] for factor in report["factors"]]
        middle = [each["median"] for each in found]
        spread = [
            [each["median"] - each["least"] for each in found],
            [each["most"] - each["median"] for each in found],
        ]
        places = np.arange(len(found)) + index * width
        axes.bar(places, middle, width, yerr=spread, label=row["name"])
    axes.set_xticks(np.arange(len(report["factors"])) + 0.4 - width / 2)
    axes.set_xticklabels([f"x{factor}" for factor in report["factors"]])
    axes.set_ylabel(f"time, as a fraction of {BASELINE} at x1")
    axes.set_title(f"{report['arch']}, batches of {report['batch_size']}")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def draw_by_length(report: dict, path: Path) -> None:
    """Each engine as a fraction of the baseline at each length, a panel for each factor."""
    factors = report["factors"]
    figure, panels = plt.subplots(
        1,
        len(factors),
        figsize=(4 * len(factors) + 3, 4),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    seconds = [samples / SAMPLE_RATE for samples in report["lengths_samples"]]
    for factor, axes in zip(factors, panels[0], strict=True):
        for row in report["engines"]:
            axes.plot(seconds, row["ratio_by_batch"][str(factor)], marker="o", label=row["name"])
        axes.set_xscale("log")
        axes.set_xticks(seconds, [f"{each:.3g}" for each in seconds], minor=False)
        axes.minorticks_off()
        axes.set_xlabel("seconds of audio")
        axes.set_title(f"{report['arch']}, x{factor}")
        axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel(f"time, as a fraction of {BASELINE} there")
    panels[0, 0].set_ylim(bottom=0)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=120)


def add_workload(
    parser,
    seconds: str,
    arch: str,
    factors: list[int],
    engines: list[str],
    more: Sequence[str] = (),
) -> None:
    """Options of what is run and by what, with their defaults.

    Args:
        more: engines that run only when they are named
    """
    parser.add_argument("--lengths", help="seconds a line, or a manifest .tsv")
    parser.add_argument("--seconds", default=seconds, help="or these")
    parser.add_argument("--subsample", type=int, help="so many of the lengths, evenly")
    parser.add_argument("--arch", choices=["base", "large"], default=arch)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--factors", type=int, nargs="+", default=factors, choices=[1, 2, 3])
    parser.add_argument("--engines", nargs="+", default=engines, choices=[*engines, *more])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the table, JSON, picture and ONNX files")
    more = OF_LARGE + OF_X1
    add_workload(parser, "2.4,4,5.5,7,8.5,10.5,13,16.7", "large", [1, 2, 3], PEERS + OURS, more)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--same-lengths", action="store_true", help="in all rounds")
    args = parser.parse_args()
    if BASELINE not in args.engines:
        parser.error(f"--engines must hold {BASELINE!r}: ratios are of its time")
    if args.arch != "large" and (named := set(OF_LARGE) & set(args.engines)):
        parser.error(
            f"{', '.join(sorted(named))}: of --arch large alone, with layer norms in its CNN"
        )
    if args.factors != [1] and (named := set(OF_X1) & set(args.engines)):
        parser.error(f"{', '.join(sorted(named))}: reduced already, so of --factors 1 alone")
    args.folder.mkdir(parents=True, exist_ok=True)
    lengths = subsampled(read_lengths(args), args.subsample)
    batches = batches_of(lengths, args.batch_size)
    torch.set_num_threads(args.threads)
    peak = peaks(args.threads)
    engines = [Engine.start(name, args.arch, args.threads, args.folder) for name in args.engines]
    baseline = engines[args.engines.index(BASELINE)]
    for factor in args.factors:
        race(engines, batches, factor, args.rounds, args.same_lengths)
    audio_seconds = sum(lengths) / SAMPLE_RATE
    rows = []
    by_reduction: dict[str, dict[int, int]] = {}
    for engine in engines:
        ratios = {}
        for factor in args.factors:
            paired = zip(engine.seconds[factor], baseline.seconds[args.factors[0]], strict=True)
            found = [mine / theirs for mine, theirs in paired]
            ratios[str(factor)] = {
                "median": median(found), "least": min(found), "most": max(found)
            }  # fmt: skip
        seconds = median(engine.seconds[args.factors[0]])
        reduced = engine.name.partition(", ")[2] if engine.name in OF_X1 else NOT_REDUCED
        if reduced not in by_reduction:
            by_reduction[reduced] = macs_of(reduced, args.arch, batches, args.factors)
        macs = by_reduction[reduced]
        rows.append(
            {
                "name": engine.name,
                "ratio": ratios,
                "seconds": {str(f): engine.seconds[f] for f in args.factors},
                "ratio_by_batch": {str(f): at_each(engine, baseline, f) for f in args.factors},
                "real_time_factor": seconds / audio_seconds,
                "macs": {str(factor): count for factor, count in macs.items()},
                "gmacs_per_second": macs[args.factors[0]] / seconds / 1e9,
                "peak_memory_bytes": engine.peak_memory_bytes,
            }
        )
    report = {
        **{"arch": args.arch, "batch_size": args.batch_size, "factors": args.factors},
        **{"rounds": args.rounds, "threads": args.threads, "same_lengths": args.same_lengths},
        "lengths_samples": lengths,
        "macs": rows[engines.index(baseline)]["macs"],
        "peak_macs_per_second": peak,
        "engines": rows,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
    }
    name = f"{args.arch}_batch{args.batch_size}"
    (args.folder / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(report, args.folder / f"{name}.png")
    print(table(report))
    if args.batch_size == 1:
        draw_by_length(report, args.folder / f"{name}_by_length.png")
        print(f"\nBy length, as a fraction of {BASELINE} at that length and factor:\n")
        print(table_by_length(report), end="\n\n")
    print(
        f"{len(lengths)} utterances, {audio_seconds:.1f} s of audio, batches of "
        f"{args.batch_size}, {args.threads} threads, {args.rounds} rounds; ratios to {BASELINE} at "
        f"x{args.factors[0]}: median (range). Matrix products of this machine, GMACs/s: "
        + ", ".join(f"{name} {value / 1e9:.0f}" for name, value in peak.items())
    )


if __name__ == "__main__":
    main()
