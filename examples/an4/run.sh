#!/usr/bin/env bash
# AN4 from the folder that its archive unpacks to, to a report: letters, language model, the full
# model and reduced ones fine-tuned and decoded.
#
#   bash examples/an4/run.sh /path/to/an4 OUTPUT_FOLDER [--skip] [overrides of recorded.yaml]
#
# --skip leaves out utterances that cannot be used. Rows of examples/study/rows.yaml and seeds:
#   bash examples/an4/run.sh /path/to/an4 out row=full,conv3,layers4 seed=1,2,3
# JOBS=2 at a time, one thread each. Run again after a break, it goes on; what is finished is skipped.
# W2V_PATH=FILE starts from another checkpoint than examples/recorded/hubert_ctc.pt.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
OVERRIDES=(updates=600)
source "$HERE/../recorded/recipe.sh"
