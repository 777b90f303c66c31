"""One engine in a process of its own: reads batches from standard input, answers with seconds.

    python worker.py ENGINE ARCH THREADS FOLDER

A line in is ``{"lengths": [samples, ...], "factor": k}``; a line out is ``{"seconds": ...,
"peak_memory_bytes": ...}``, the first of them when the engine is ready.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch


def main(name: str, arch: str, threads: str, folder: str) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    torch.set_num_threads(int(threads))
    from engines import ENGINES

    run = ENGINES[name](arch, Path(folder))
    answer(answers, 0.0)
    for line in sys.stdin:
        batch = json.loads(line)
        lengths = torch.tensor(batch["lengths"])
        generator = torch.Generator().manual_seed(0)
        waveform = torch.randn(len(lengths), int(lengths.max()), generator=generator)
        waveform[torch.arange(waveform.size(1)) >= lengths[:, None]] = 0
        with torch.inference_mode():
            start = time.perf_counter()
            run(waveform, lengths, batch["factor"])
            answer(answers, time.perf_counter() - start)


def answer(file, seconds: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_memory_bytes": peak}), file=file, flush=True)


main(*sys.argv[1:])
