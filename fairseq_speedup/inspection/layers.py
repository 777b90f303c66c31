"""What a report says of single layers."""

from fairseq_speedup.transformer.layer_removal import parse_keep_layers


def sizes_by_layer(report: dict) -> dict[str, list[int]]:
    """Channels of the CNN's convolutions, heads and feed-forward units of the layers, of those that
    the model has."""
    pruned, count = report["pruned"] or {}, report["layers"]
    heads = [len(kept) for kept in pruned.get("heads") or []] or [report["heads"]] * count
    units = list(pruned.get("units") or [report["feed_forward"]] * count)
    kept = kept_layers(report)
    return {
        "CNN channels": [dim for dim, _, _ in report["cnn"]] if has_cnn(report) else [],
        "attention heads": [heads[index] for index in kept],
        "feed-forward units": [units[index] for index in kept],
    }


def kept_layers(report: dict) -> list[int]:
    """Indices of the layers that are left."""
    reductions = report.get("reductions") or {}
    return parse_keep_layers(reductions.get("keep_layers", "all"), report["layers"])


def has_cnn(report: dict) -> bool:
    return (report.get("reductions") or {}).get("frontend", "cnn") == "cnn"
