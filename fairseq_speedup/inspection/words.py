"""A report of :func:`~fairseq_speedup.inspection.facts.inspect_file` for a person."""

from fairseq_speedup.inspection.layers import has_cnn, kept_layers
from fairseq_speedup.low_rank.ranks import LINEARS

CNN_NORMS = {
    "default": "group norm after the first convolution",
    "layer_norm": "layer norm after each convolution",
}


def text(report: dict) -> str:
    """A report for a person."""
    rows = []
    if "bytes" in report:
        rows.append(("size", f"{report['bytes']:,} bytes, {report['format']}"))
    if "family" in report:
        rows += _model_rows(report)
    elif "era" in report:
        rows.append(("config", report["era"]))
    if report.get("types") is not None:
        rows.append(("its pickle has", ", ".join(report["types"]) or "no types"))
    if report.get("refused_types"):
        rows.append(("refused", ", ".join(report["refused_types"])))
    if "bytes" in report:
        rows.append(("safe to load", "yes" if report["safe"] else "no"))
    if report["error"]:
        rows.append(("cannot be used", report["error"]))
    head = f", {report['stage']} {report['family']}" if "family" in report else ""
    return "\n".join([f"{report['file']}{head}", *(f"  {name:<18}{value}" for name, value in rows)])


def _model_rows(report: dict) -> list[tuple[str, str]]:
    where = report.get("pretraining_config")
    rows = [
        ("use as", report["use"]),
        ("config", report["era"] + (f"; of its pretraining: {where}" if where else "")),
    ]
    if report["stage"] == "fine-tuned":
        options = " ".join(f"{name}={value}" for name, value in report["reductions"].items())
        rows += [
            ("kind", report["kind"]),
            ("reductions", options or "none"),
            ("dictionary", _dictionary(report)),
        ]
    rows += [
        (
            "transformer",
            f"{_layers(report)} {report['layer_type']} layers of {report['width']}, "
            f"{report['heads']} heads, feed-forward {report['feed_forward']}, "
            f"norm {'before' if report['layer_norm_first'] else 'after'} each block",
        ),
        ("CNN", _cnn(report)),
        *([("pruned", _pruned(report["pruned"]))] if report["pruned"] else []),
        *([("low rank", _low_rank(report["low_rank"]))] if report["low_rank"] else []),
        *([("widths", _widths(report["widths"]))] if report["widths"] else []),
        *([("attention maps", _reused(reused))] if (reused := report["reused_attention"]) else []),
        ("task.normalize", str(report["normalize"]).lower()),
        ("parameters", _by_stage(report["parameters"], report["parameters_by_stage"], "{:,}")),
    ]
    macs = report["macs_per_second_by_stage"]
    if macs is None:
        rows.append(("GMACs/s of audio", report["macs_unknown"]))
    else:
        gmacs = {stage: value / 1e9 for stage, value in macs.items()}
        counted = _by_stage(sum(gmacs.values()), gmacs, "{:.3f}")
        rows.append(("GMACs/s of audio", f"in {report['macs_seconds']:g} s: {counted}"))
    dropped = [
        f"{each['module']} ({each['tensors']} tensors, {each['parameters']:,} parameters)"
        for each in report["dropped"]
    ]
    rows.append(("left out", ", ".join(dropped) or "nothing"))
    return rows


def _layers(report: dict) -> str:
    count, kept = report["layers"], len(kept_layers(report))
    return str(count) if kept == count else f"{kept} of {count}"


def _cnn(report: dict) -> str:
    if not has_cnn(report):
        return "none: filterbanks are in its place"
    return (
        f"{len(report['cnn'])} convolutions, a frame every {report['frame_samples']} samples, "
        f"{CNN_NORMS.get(report['cnn_norm'], report['cnn_norm'])}"
    )


def _pruned(pruned: dict) -> str:
    heads, units = pruned.get("heads"), pruned.get("units")
    parts = ["before it was published"]
    if "share" in pruned:
        parts = [f"to {pruned['share']:.3f} of its MACs"]
    if heads:
        parts.append(f"heads of each layer {' '.join(str(len(kept)) for kept in heads)}")
    if units:
        parts.append(f"units {' '.join(map(str, units))}")
    return "; ".join(parts)


def _widths(widths: list) -> str:
    """Beside the whole."""
    return ", ".join(f"{width:g} ({share:.3f} of its MACs)" for width, share in widths)


def _reused(reused: dict) -> str:
    layers = [index for index, own in enumerate(reused["computes"]) if not own]
    return f"layers {' '.join(map(str, layers))} reuse the last one before them"


def _low_rank(low_rank: dict) -> str:
    """Ranks by linear layer, - where it is whole."""
    parts = [f"to {low_rank['share']:.3f} of its MACs"]
    for name in LINEARS:
        if any(name in ranks for ranks in low_rank["ranks"]):
            parts.append(f"{name} {' '.join(str(r.get(name, '-')) for r in low_rank['ranks'])}")
    return "; ".join(parts)


def _dictionary(report: dict) -> str:
    symbols = report["first_symbols"]
    named = f": {' '.join(symbols)} ..." if symbols else ", its symbols are not in the file"
    return f"{report['dictionary_size']} symbols{named}"


def _by_stage(total, stages: dict, form: str) -> str:
    parts = ", ".join(f"{stage} {form.format(value)}" for stage, value in stages.items() if value)
    return f"{form.format(total)} ({parts})"
