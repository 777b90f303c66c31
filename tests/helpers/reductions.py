"""Every reduction, alone: what tests of each form of a model go through."""

REDUCTIONS = {
    "signal": {"downsample": "signal", "downsample_factor": 2.67},
    "conv": {"downsample": "conv", "downsample_factor": 2.0},
    "average": {"downsample": "average", "downsample_factor": 2.0},
    "layers": {"keep_layers": "0,1,3"},
    "exits": {"exit_layers": "1", "exit_criterion": "entropy", "exit_threshold": 2.6},
    "upsample": {"logit_upsample": 2},
    "mlp": {"head": "mlp", "head_dim": 12},
    "bilstm": {"head": "bilstm", "head_dim": 6},
    "fbank": {"frontend": "fbank"},
    "fbank40": {"frontend": "fbank", "frontend_frame_ms": 40},
    "pool": {"frame_pool": 2},
    "conv_pool": {"frame_pool": 3, "frame_pool_method": "conv"},
    "merge": {"merge_ratio": 0.2},
    "similar": {"merge_ratio": 0.5, "merge_threshold": 0.3, "merge_layers": "1"},
    "blank": {"drop_frames": "blank", "exit_layers": "1", "drop_threshold": 0.03},
    "factors": {
        "downsample": "conv",
        "downsample_factor": 2.0,
        "downsample_factors": [1.0, 2.0, 3.0],
    },
    "pools": {"frame_pool": 2, "frame_pools": [1, 2]},
    "depths": {"depths": [2, 3, 4]},
    "prune": {"prune_target": 0.999},
}


def name_of(options):
    return "-".join(f"{name}={value}" for name, value in options.items()) or "none"
