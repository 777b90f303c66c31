"""Times engines against each other on a GPU; see README.md.

    python gpu.py OUTPUT_FOLDER [options]

Models have public sizes and random weights. In every round each batch goes through all engines, one
after another in changing order; a ratio is that of two totals of the same round, and printed are
medians over rounds. What an engine compiles or captures is done before.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from statistics import median

import torch
from benchmark import add_workload, batches_of, subsampled
from engines import hugging_face, model_of, padding_mask, shortened

from fairseq_speedup.inference import to_inference_form
from fairseq_speedup.profiling.environment import hardware, versions
from fairseq_speedup.profiling.utterance_lengths import read_lengths

BASELINE = "stock fairseq fp16"
SAMPLE_RATE = 16000
WARM_UPS = 3  # of each shape: a graph is captured when a shape comes again


def stock(dtype: torch.dtype, arch: str):
    """As ``fairseq-generate`` runs it, with ``--fp16`` where that is the type."""
    model = model_of(arch, "padding=stock").cuda().to(dtype)

    def run(waveform, lengths, factor):
        waveform, lengths = shortened(waveform.to(dtype), lengths, factor)
        model(source=waveform, padding_mask=mask_of(waveform, lengths))

    return run


def transformers(compiled: bool, arch: str):
    model = hugging_face(arch).cuda().half()
    if compiled:
        model = torch.compile(model, mode="reduce-overhead", dynamic=False)

    def run(waveform, lengths, factor):
        waveform, lengths = shortened(waveform.half(), lengths, factor)
        mask = mask_of(waveform, lengths)
        model(waveform, attention_mask=None if mask is None else (~mask).long())

    return run


def ours(form: str, arch: str):
    model = model_of(arch, "downsample=average", "downsample_factors=[1,2,3]").cuda()
    to_inference_form(model, form)
    speeds = model.w2v_encoder.speeds

    def run(waveform, lengths, factor):
        speeds.default = dataclasses.replace(speeds.default, factor=float(factor))
        model(source=waveform, padding_mask=mask_of(waveform, lengths))

    run.captured = model.w2v_encoder.captured
    return run


def mask_of(waveform, lengths):
    mask = padding_mask(waveform.cpu(), lengths.cpu()) if waveform.size(0) > 1 else None
    return None if mask is None else mask.cuda()


ENGINES = {
    "stock fairseq fp32": lambda arch: stock(torch.float32, arch),
    BASELINE: lambda arch: stock(torch.float16, arch),
    "transformers fp16, SDPA": lambda arch: transformers(False, arch),
    "transformers fp16, torch.compile": lambda arch: transformers(True, arch),
    "ours fp32": lambda arch: ours("fp32", arch),
    "ours bf16": lambda arch: ours("bf16", arch),
    "ours fp16": lambda arch: ours("fp16", arch),
}


def inputs_of(lengths: list[int]):
    """Waveform (B, S) and lengths (B,), on the GPU."""
    counts = torch.tensor(lengths)
    waveform = torch.randn(len(lengths), max(lengths), generator=torch.Generator().manual_seed(0))
    waveform[torch.arange(waveform.size(1)) >= counts[:, None]] = 0
    return waveform.cuda(), counts.cuda()


def seconds_of(run, *given) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    run(*given)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def race(runs: dict, batches, factor: int, rounds: int) -> dict[str, dict]:
    """By engine, seconds of each batch in each round, and the memory it takes beside the weights of
    all."""
    names, found = list(runs), {name: {"rounds": [], "peak": 0} for name in runs}
    inputs = [inputs_of(batch) for batch in batches]
    for name in names:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for given in inputs:
            for _ in range(WARM_UPS):
                runs[name](*given, factor)
        torch.cuda.synchronize()
        found[name]["peak"] = torch.cuda.max_memory_allocated() - before
        captured = getattr(runs[name], "captured", None)
        if captured is not None and captured.graphs.note:
            print(f"{name}: {captured.graphs.note}")
    for number in range(rounds):
        times = {name: [0.0] * len(batches) for name in names}
        for position, given in enumerate(inputs):
            for turn in range(len(names)):
                name = names[(turn + position + number) % len(names)]
                times[name][position] = seconds_of(runs[name], *given, factor)
        for name in names:
            found[name]["rounds"].append(times[name])
    return found


def profiled(name: str, arch: str, batch: list[int], top: int) -> str:
    """Where a GPU's time goes."""
    run, given = ENGINES[name](arch), inputs_of(batch)
    for _ in range(WARM_UPS):
        run(*given, 1)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run(*given, 1)
        torch.cuda.synchronize()
    table = profile.key_averages().table(
        sort_by="cuda_time_total", row_limit=top, max_name_column_width=70
    )
    return f"{name}, {arch}, {len(batch)} x {max(batch) / SAMPLE_RATE:.1f} s\n{table}"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for tables and JSON")
    add_workload(parser, "1,2.4,4,5.5,7,8.5,10.5,13,16.7,30", "base", [1], list(ENGINES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--profile", type=int, metavar="KERNELS", help="also of ours fp16")
    args = parser.parse_args()
    if BASELINE not in args.engines:
        parser.error(f"--engines must hold {BASELINE!r}: ratios are of its time")
    args.folder.mkdir(parents=True, exist_ok=True)
    lengths = subsampled(read_lengths(args), args.subsample)
    batches = batches_of(lengths, args.batch_size)
    report = {
        **{"arch": args.arch, "batch_size": args.batch_size, "rounds": args.rounds},
        "lengths_samples": lengths,
        "hardware": hardware(torch.device("cuda")),
        "versions": versions(),
        "factors": {},
    }
    heads = [f"{max(batch) / SAMPLE_RATE:g} s" for batch in batches]
    runs = {name: ENGINES[name](args.arch) for name in args.engines}
    first = None  # the baseline's rounds at the first factor
    for factor in args.factors:
        found = race(runs, batches, factor, args.rounds)
        report["factors"][str(factor)] = found
        at = found[BASELINE]["rounds"]
        first = first or at
        print(f"\n| {args.arch}, batches of {args.batch_size}, x{factor} | ms | total | "
              f"{' | '.join(heads)} | MiB |")  # fmt: skip
        print("| --- |" + " ---: |" * (len(batches) + 3))
        for name in args.engines:
            rounds = found[name]["rounds"]
            total = median(sum(m) / sum(b) for m, b in zip(rounds, first, strict=True))
            each = [
                median(m[i] / b[i] for m, b in zip(rounds, first, strict=True))
                for i in range(len(batches))
            ]
            cells = " | ".join(f"{ratio:.2f}" for ratio in each)
            spent = median(sum(m) for m in rounds) * 1000
            peak = found[name]["peak"] / 2**20
            print(f"| {name} | {spent:.1f} | {total:.2f} | {cells} | {peak:.0f} |")
    if args.profile:
        print(profiled("ours fp16", args.arch, batches[len(batches) // 2], args.profile))
    name = f"{args.arch}_batch{args.batch_size}_gpu.json"
    (args.folder / name).write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{report['hardware']}: ratios to {BASELINE} at x{args.factors[0]}")


if __name__ == "__main__":
    main()
