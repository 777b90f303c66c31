"""Prints the quickstart's table and draws WER against MACs, from fairseq-generate's results.

    python report.py FOLDER [--rows ROWS.tsv] [--decoders]

FOLDER holds one folder a row and in it one folder a decoding run, each with the generate-test.txt
and compute.json that fairseq-generate left there. Times are medians over runs. ROWS.tsv names the
rows in order, folder and label; costs are compared with the first. --decoders has rows that differ
in how they are decoded: its table tells the encoder's time from the decoder's, and has no picture.
"""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MODELS = {"full": "full model", "conv2": "conv x2"}


@dataclass
class Row:
    name: str
    wer_percent: float
    gmacs_per_second: float
    real_time_factor: float
    num_utterances: int
    num_runs: int
    mean_layers_run: float | None  # of a model with exits
    encoder_seconds: float
    decoder_seconds: float
    share_searched: float | None  # of frames, by a beam search


def read_wer(results: Path) -> float:
    """The WER that fairseq-generate printed, in percent."""
    found = re.search(r"WER: ([\d.]+)", results.read_text().splitlines()[-1])
    if not found:
        raise SystemExit(f"{results} does not end with a WER: was decoding interrupted?")
    return float(found[1])


def read_model(folder: Path, name: str) -> Row:
    runs = sorted(path.parent for path in folder.glob("*/compute.json"))
    if not runs:
        raise SystemExit(f"{folder} holds no compute.json: nothing was decoded there")
    reports = [json.loads((run / "compute.json").read_text()) for run in runs]
    wers = {read_wer(run / "generate-test.txt") for run in runs}
    if len(wers) > 1:
        raise SystemExit(f"the runs in {folder} are of different models: WER {sorted(wers)}")
    return Row(
        name,
        wers.pop(),
        reports[0]["macs_per_second"] / 1e9,
        median(report["real_time_factor"] for report in reports),
        reports[0]["num_utterances"],
        len(runs),
        reports[0].get("mean_layers_run"),
        median(report["encoder_seconds"] for report in reports),
        median(report["decoder_seconds"] for report in reports),
        reports[0].get("share_of_frames_searched"),
    )


def table(rows: list[Row]) -> str:
    """Markdown; each cost also as its ratio to the first row."""
    full = rows[0]
    with_exits = any(row.mean_layers_run is not None for row in rows)
    lines = [
        "| model | WER % | GMACs/s of audio | ratio | RTF | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.wer_percent:.2f} | {row.gmacs_per_second:.4f} "
            f"| {row.gmacs_per_second / full.gmacs_per_second:.2f} "
            f"| {row.real_time_factor:.5f} "
            f"| {row.real_time_factor / full.real_time_factor:.2f} |"
        )
        if with_exits:
            lines[-1] += f" {row.mean_layers_run:.2f} |" if row.mean_layers_run else " |"
    if with_exits:
        lines[0] += " exit layers |"
        lines[1] += " ---: |"
    return "\n".join(lines)


def decoder_table(rows: list[Row]) -> str:
    """Markdown: what decoding gains and costs."""
    lines = [
        "| | WER % | encoder s | decoder s | RTF | frames searched % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        searched = "" if row.share_searched is None else f"{100 * row.share_searched:.1f}"
        lines.append(
            f"| {row.name} | {row.wer_percent:.2f} | {row.encoder_seconds:.2f} "
            f"| {row.decoder_seconds:.2f} | {row.real_time_factor:.5f} | {searched} |"
        )
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(5, 3.5) if len(rows) < 5 else (10, 7))
    for row in rows:
        axes.scatter(row.gmacs_per_second, row.wer_percent)
        axes.annotate(
            row.name,
            (row.gmacs_per_second, row.wer_percent),
            xytext=(6, 6),
            textcoords="offset points",
        )
    axes.set(xlabel="GMACs per second of audio", ylabel="WER (%)", title="quickstart, test voices")
    axes.set_xlim(left=0, right=1.3 * max(row.gmacs_per_second for row in rows))
    axes.set_ylim(bottom=0, top=1.3 * max(row.wer_percent for row in rows) + 1)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=Path, help="TSV of folder and label")
    parser.add_argument("--decoders", action="store_true", help="rows differ in the decoder")
    args = parser.parse_args()
    folder, models = args.folder, MODELS
    if args.rows:
        models = dict(line.split("\t") for line in args.rows.read_text().splitlines())
    rows = [read_model(folder / model, name) for model, name in models.items()]
    if args.decoders:
        print(decoder_table(rows))
        return
    text = table(rows)
    (folder / "table.md").write_text(text + "\n")
    draw(rows, folder / "wer_vs_macs.png")
    print(text)
    print(
        f"{rows[0].num_utterances} utterances of voices that no other split has; RTF: median of "
        f"{rows[0].num_runs} runs on this machine; one training seed, and WER differs between "
        "seeds: see examples/quickstart/README.md before you read anything into the gap.\n"
        f"picture: {folder / 'wer_vs_macs.png'}"
    )


if __name__ == "__main__":
    main()
