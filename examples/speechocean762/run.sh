#!/usr/bin/env bash
# speechocean762 from the folder that its archive unpacks to, to a report: letters, language model,
# the full model and reduced ones fine-tuned and decoded.
#
#   bash examples/speechocean762/run.sh /path/to/speechocean762 OUTPUT_FOLDER [--min-age=18] [--skip] \
#       [overrides of recorded.yaml]
#
# --skip leaves out utterances that cannot be used, --min-age younger speakers. Rows of
# examples/study/rows.yaml and seeds:
#   bash examples/speechocean762/run.sh /path/to/speechocean762 out row=full,conv3 seed=1,2,3
# JOBS=2 at a time, one thread each. Run again after a break, it goes on; what is finished is skipped.
# W2V_PATH=FILE starts from another checkpoint than examples/recorded/hubert_ctc.pt.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
OVERRIDES=(updates=1000 max_tokens=480000) # some utterances are longer than 20 s
source "$HERE/../recorded/recipe.sh"
