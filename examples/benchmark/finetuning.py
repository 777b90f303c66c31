"""Times updates of fine-tuning at x1, x2 and x3 against stock fairseq; see README.md.

    python finetuning.py OUTPUT_FOLDER [--arch base] [--batch-seconds 6,7,8,9]

A row is a process of its own, with random weights of a public size and the settings of
config/finetuning: CNN frozen, masking, dropout, Adam. An update is forward, CTC loss, backward and
optimiser on one batch. In every round each row does one update, in turn.
"""

import argparse
import json
from pathlib import Path
from statistics import median

import torch
from benchmark import SAMPLE_RATE, Engine

from fairseq_speedup.profiling.environment import hardware, versions

STOCK = "stock fairseq"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", choices=["base", "large"], default="base")
    parser.add_argument("--batch-seconds", default="6,7,8,9", help="utterances of the batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    from engines import UPDATES

    batch = [round(float(each) * SAMPLE_RATE) for each in args.batch_seconds.split(",")]
    rows = [Engine.start(name, args.arch, args.threads, args.folder) for name in UPDATES]
    seconds = {row.name: [] for row in rows}
    for number in range(args.rounds + 1):  # the first warms up
        for row in rows:
            spent = row.run(batch, 1)
            seconds[row.name] += [spent] if number else []
    (stock,) = (row.name for row in rows if STOCK in row.name)
    print("| | seconds an update | ratio | peak memory, MiB |\n| --- | ---: | ---: | ---: |")
    report = []
    for row in rows:
        pairs = zip(seconds[row.name], seconds[stock], strict=True)
        ratios = [mine / theirs for mine, theirs in pairs]
        print(
            f"| {row.name.removeprefix('update: ')} | {median(seconds[row.name]):.2f} | "
            f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
            f"{row.peak_memory_bytes / 2**20:.0f} |",
            flush=True,
        )
        report.append(
            {
                "name": row.name,
                "seconds": seconds[row.name],
                "ratio": median(ratios),
                "peak_memory_bytes": row.peak_memory_bytes,
            }
        )
    found = {
        "arch": args.arch,
        "batch_samples": batch,
        "threads": args.threads,
        "rows": report,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
    }
    (args.folder / f"finetuning_{args.arch}.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
