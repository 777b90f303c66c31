"""Writes a checkpoint small: weights in half precision, no optimiser and nothing that only
pretraining needs.

    python slim.py CHECKPOINT OUTPUT
"""

import os
import sys

import torch

from fairseq_speedup.hugging_face.checkpoint import checkpoint_of
from fairseq_speedup.pretrained import read_file


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, output = sys.argv[1:]
    state = checkpoint_of(read_file(source))
    state["model"] = {name: weight.half() for name, weight in state["model"].items()}
    torch.save(state, output)
    parameters = sum(weight.numel() for weight in state["model"].values())
    print(f"{output}: {parameters:,} parameters, {os.path.getsize(output):,} bytes")


if __name__ == "__main__":
    main()
