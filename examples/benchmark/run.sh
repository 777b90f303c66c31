#!/usr/bin/env bash
# Times stock fairseq, transformers, ONNX Runtime and the inference forms against each other.
#
#   bash examples/benchmark/run.sh OUTPUT_FOLDER [options of benchmark.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
# the peers, and the pictures
python -m pip install --progress-bar off -q -c "$REPO/constraints.txt" \
    transformers onnx onnxruntime onnxscript openvino matplotlib
exec python "$REPO/examples/benchmark/benchmark.py" "$@"
