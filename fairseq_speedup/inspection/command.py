"""``inspect``: reports of files, and a picture of what is left of their layers."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.console import progress
from fairseq_speedup.inspection.facts import inspect_file
from fairseq_speedup.inspection.layers import sizes_by_layer
from fairseq_speedup.inspection.words import text


def run(args, draw: Callable[[dict, Path], None]) -> None:
    """
    Args:
        draw: a picture of sizes by layer, by file, into a file
    """
    files = progress.bar(args.checkpoints, "inspecting", unit=" files", delay=0)
    reports = [inspect_file(path, args.seconds) for path in files]
    print(json.dumps(reports, indent=2) if args.json else "\n\n".join(map(text, reports)))
    errors = [report["error"] for report in reports if report["error"]]
    if args.picture is not None:
        try:
            _draw(reports, Path(args.picture), draw)
        except OSError as error:
            errors.append(f"--picture {args.picture} cannot be written: {error.strerror}")
    if errors:
        raise CheckpointError("\n".join(errors))


def _draw(reports: list[dict], path: Path, draw) -> None:
    found = {report["file"]: sizes_by_layer(report) for report in reports if not report["error"]}
    if not found:
        print(f"{path} is not drawn: no file can be used", file=sys.stderr)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(found, path)
