"""DPHuBERT and DPWavLM (arXiv 2305.17651) as their authors publish them: models that were pruned
before they are fine-tuned, under the names that torchaudio has for wav2vec 2.0."""

import torch

from fairseq_speedup.checkpoints import CheckpointError
from fairseq_speedup.pretrained.families import Pretrained, as_wav2vec2, sort_weights

HUBERT, WAVLM = "dphubert", "dpwavlm"
WEIGHTS = "state_dict"
BY_LAYER = ("encoder_use_attention", "encoder_use_feed_forward", "encoder_ff_interm_features")
EXTRACTOR_MODES = {"group_norm": "default", "layer_norm": "layer_norm"}
# options: name there -> name in fairseq
OPTIONS = {
    "extractor_conv_bias": "conv_bias",
    "encoder_embed_dim": "encoder_embed_dim",
    "encoder_projection_dropout": "dropout_input",
    "encoder_pos_conv_kernel": "conv_pos",
    "encoder_pos_conv_groups": "conv_pos_groups",
    "encoder_num_layers": "encoder_layers",
    "encoder_attention_dropout": "attention_dropout",
    "encoder_ff_interm_dropout": "activation_dropout",
    "encoder_dropout": "dropout",
    "encoder_layer_norm_first": "layer_norm_first",
    "encoder_layer_drop": "encoder_layerdrop",
}
POSITIONS = {"encoder_num_buckets": "num_buckets", "encoder_max_distance": "max_distance"}


def is_dphubert(state: dict) -> bool:
    config = state.get("config")
    return isinstance(config, dict) and "encoder_use_attention" in config and WEIGHTS in state


def read_dphubert(path: str, state: dict) -> Pretrained:
    """The encoder in a file.

    Raises:
        CheckpointError: a config that is not whole, naming the field
    """
    given = _Config(path, state["config"])
    family = WAVLM if "encoder_remaining_heads" in given.config else HUBERT
    options = {ours: given[theirs] for theirs, ours in OPTIONS.items()}
    mode = given["extractor_mode"]
    if mode not in EXTRACTOR_MODES:
        given.refuse("extractor_mode", mode, " or ".join(EXTRACTOR_MODES))
    options["extractor_mode"] = EXTRACTOR_MODES[mode]
    layers = given["extractor_conv_layer_config"]
    if not isinstance(layers, list | tuple) or not all(isinstance(e, list | tuple) for e in layers):
        given.refuse("extractor_conv_layer_config", layers, "a list of (dim, kernel, stride)")
    options["conv_feature_layers"] = str([tuple(each) for each in layers])
    uses_attention, uses_units, units = (given.by_layer(name) for name in BY_LAYER)
    units = [count if used else 0 for count, used in zip(units, uses_units, strict=True)]
    options["encoder_ffn_embed_dim"] = max(*units, 1)
    options["encoder_attention_heads"] = given.num_heads(family)
    heads = given.heads(family)
    heads = [kept if used else [] for kept, used in zip(heads, uses_attention, strict=True)]
    options |= {
        "pruned": {"heads": heads, "units": units},
        "positions": {ours: given[t] for t, ours in POSITIONS.items()} if family == WAVLM else {},
    }
    cfg = as_wav2vec2(path, family, options, given["normalize_waveform"])
    weights, dropped = sort_weights(path, family, _with_norms_named(state[WEIGHTS], mode))
    _complete(weights, cfg)
    return Pretrained(family, cfg, weights, dropped)


class _Config:
    """A config whose fields are asked for by name, and missed in words."""

    def __init__(self, path: str, config: dict):
        self.path, self.config = path, config

    def __getitem__(self, name: str):
        if name not in self.config:
            raise CheckpointError(f"{self.path}: its config has no {name}")
        return self.config[name]

    def refuse(self, name: str, value, valid: str):
        raise CheckpointError(
            f"{self.path}: {name} is {str(value)[:100]}; it must be {valid}"
        ) from None

    def by_layer(self, name: str) -> list:
        values, count = self[name], self["encoder_num_layers"]
        if not isinstance(values, list | tuple) or len(values) != count:
            self.refuse(name, values, f"a list, one for each of {count} layers")
        if not all(type(each) in (int, bool) and each >= 0 for each in values):
            self.refuse(name, values, "a list of numbers that are not negative")
        return list(values)

    def num_heads(self, family: str) -> int:
        """Before any were cut: as many as the frames have channels for."""
        if family == WAVLM:
            return self["encoder_total_num_heads"]
        dim, head_dim = self["encoder_embed_dim"], self["encoder_head_dim"]
        if type(head_dim) is not int or head_dim < 1 or dim % head_dim:
            self.refuse("encoder_head_dim", head_dim, f"a divisor of encoder_embed_dim={dim}")
        return dim // head_dim

    def heads(self, family: str) -> list[list[int]]:
        """Of each layer, those that are left; which they were counts for WavLM's bias alone."""
        whole, count = self.num_heads(family), self["encoder_num_layers"]
        if family == HUBERT:
            counts = self.by_layer("encoder_num_heads")
            if max(counts) > whole:
                self.refuse("encoder_num_heads", counts, f"at most {whole} for each layer")
            return [list(range(each)) for each in counts]
        kept = self["encoder_remaining_heads"]
        valid = isinstance(kept, list | tuple) and len(kept) == count
        if not valid or not all(set(each) <= set(range(whole)) for each in kept):
            wanted = f"a list for each of {count} layers, of heads from 0 to {whole - 1}"
            self.refuse("encoder_remaining_heads", kept, wanted)
        return [sorted(set(each)) for each in kept]


def _with_norms_named(weights, mode: str) -> dict:
    """Norms of the CNN, whose names in fairseq are others where every convolution has one."""
    if not isinstance(weights, dict):
        return {}
    place = ".2." if mode == "group_norm" else ".2.1."
    return {
        name.replace(".layer_norm.", place) if name.startswith("feature_extractor.") else name: each
        for name, each in weights.items()
    }


def _complete(weights: dict, cfg) -> None:
    """What a part that is gone has here, a bias of zero, and WavLM's bias for its heads alone."""
    dim, num_heads = cfg.model.encoder_embed_dim, cfg.model.encoder_attention_heads
    variant, pruned = cfg.encoder_variant, cfg.encoder_variant.pruned
    # it was trained without masks: those of fine-tuning begin as silence
    weights.setdefault("mask_emb", torch.zeros(dim))
    for index, (heads, units) in enumerate(zip(pruned.heads, pruned.units, strict=True)):
        layer = f"encoder.layers.{index}"
        if not heads:
            _empty(weights, f"{layer}.self_attn", ("q_proj", "k_proj", "v_proj"), "out_proj", dim)
        if not units:
            _empty(weights, layer, ("fc1",), "fc2", dim)
        if variant.family == WAVLM:
            gate = f"{layer}.self_attn.grep_"
            weights.setdefault(f"{gate}linear.weight", torch.zeros(8, dim // num_heads))
            weights.setdefault(f"{gate}linear.bias", torch.zeros(8))
            whole = weights.get(f"{gate}a", torch.ones(1, num_heads, 1, 1))
            weights[f"{gate}a"] = whole[:, list(heads)]
    if variant.family == WAVLM:  # without attention in its first layer it has no bias in any
        table = torch.zeros(variant.relative_positions.num_buckets, num_heads)
        weights.setdefault("encoder.relative_attention_bias.weight", table)


def _empty(weights: dict, prefix: str, inputs: tuple[str, ...], output: str, dim: int) -> None:
    for name in inputs:
        weights[f"{prefix}.{name}.weight"] = torch.zeros(0, dim)
        weights[f"{prefix}.{name}.bias"] = torch.zeros(0)
    weights[f"{prefix}.{output}.weight"] = torch.zeros(dim, 0)
    weights[f"{prefix}.{output}.bias"] = torch.zeros(dim)
