"""DPHuBERT and DPWavLM (arXiv 2305.17651) as their authors publish them: models that were pruned
before they are fine-tuned, under the names that torchaudio has for wav2vec 2.0."""

import torch

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.pretrained.families import (
    Pretrained,
    as_wav2vec2,
    begin_masks,
    sort_weights,
)

HUBERT, WAVLM = "dphubert", "dpwavlm"
WEIGHTS = "state_dict"
EXTRACTOR_MODES = {"group_norm": "default", "layer_norm": "layer_norm"}
LARGEST = 1 << 16  # of a size in a config
# options: name there -> name in fairseq
SIZES = {
    "encoder_embed_dim": "encoder_embed_dim",
    "encoder_pos_conv_kernel": "conv_pos",
    "encoder_pos_conv_groups": "conv_pos_groups",
    "encoder_num_layers": "encoder_layers",
}
SHARES = {
    "encoder_projection_dropout": "dropout_input",
    "encoder_attention_dropout": "attention_dropout",
    "encoder_ff_interm_dropout": "activation_dropout",
    "encoder_dropout": "dropout",
    "encoder_layer_drop": "encoder_layerdrop",
}
SWITCHES = {"extractor_conv_bias": "conv_bias", "encoder_layer_norm_first": "layer_norm_first"}
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
    is_wavlm = "encoder_remaining_heads" in given.config or "encoder_num_buckets" in given.config
    family = WAVLM if is_wavlm else HUBERT
    options: dict = {ours: given.size(theirs) for theirs, ours in SIZES.items()}
    options |= {ours: given.share(theirs) for theirs, ours in SHARES.items()}
    options |= {ours: given.switch(theirs) for theirs, ours in SWITCHES.items()}
    mode = given["extractor_mode"]
    if not isinstance(mode, str) or mode not in EXTRACTOR_MODES:
        given.refuse("extractor_mode", mode, " or ".join(EXTRACTOR_MODES))
    options["extractor_mode"] = EXTRACTOR_MODES[mode]
    options["conv_feature_layers"] = str(given.convolutions())
    dim, groups = options["encoder_embed_dim"], options["conv_pos_groups"]
    if dim % groups:
        given.refuse("encoder_pos_conv_groups", groups, f"a divisor of encoder_embed_dim={dim}")
    units = given.sizes_left("encoder_ff_interm_features", "encoder_use_feed_forward")
    options["encoder_ffn_embed_dim"] = max(*units, 1)
    num_heads = given.num_heads(family, dim)
    options["encoder_attention_heads"] = num_heads
    heads = given.heads_left(family, num_heads)
    options |= {
        "pruned": {"heads": heads, "units": units},
        "positions": {ours: given.size(t) for t, ours in POSITIONS.items()} if is_wavlm else {},
    }
    if is_wavlm:
        given.check_positions()
    cfg = as_wav2vec2(path, family, options, given.switch("normalize_waveform"))
    weights = state[WEIGHTS]
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise CheckpointError(f"{path}: its {WEIGHTS} holds no weights by their names")
    weights, dropped = sort_weights(path, family, _with_norms_named(weights, mode))
    _complete(path, weights, cfg)
    return Pretrained(family, cfg, weights, dropped)


class _Config:
    """A config whose fields are asked for by name and kind, and missed in words."""

    def __init__(self, path: str, config: dict):
        self.path, self.config = path, config

    def __getitem__(self, name: str):
        if name not in self.config:
            raise CheckpointError(f"{self.path}: its config has no {name}")
        return self.config[name]

    def refuse(self, name: str, value, valid: str):
        raise CheckpointError(f"{self.path}: {name} is {str(value)[:100]}; it must be {valid}")

    def size(self, name: str, least: int = 1) -> int:
        value = self[name]
        if type(value) is not int or not least <= value <= LARGEST:
            self.refuse(name, value, f"a whole number from {least} to {LARGEST}")
        return value

    def share(self, name: str) -> float:
        value = self[name]
        if type(value) not in (int, float) or not 0 <= value <= 1:
            self.refuse(name, value, "a number from 0 to 1")
        return float(value)

    def switch(self, name: str) -> bool:
        value = self[name]
        if type(value) is not bool:
            self.refuse(name, value, "true or false")
        return value

    def by_layer(self, name: str, kind: type) -> list:
        values, count = self[name], self.size("encoder_num_layers")
        if not isinstance(values, list | tuple) or len(values) != count:
            self.refuse(name, values, f"a list, one for each of {count} layers")
        if not all(type(each) is kind for each in values):
            self.refuse(name, values, f"a list of {kind.__name__}, one for each layer")
        return list(values)

    def sizes_left(self, name: str, used: str) -> list[int]:
        """Of each layer, 0 of those that do without."""
        sizes, uses = self.by_layer(name, int), self.by_layer(used, bool)
        if not all(0 <= each <= LARGEST for each in sizes):
            self.refuse(name, sizes, f"a list of numbers from 0 to {LARGEST}")
        return [size if use else 0 for size, use in zip(sizes, uses, strict=True)]

    def convolutions(self) -> list[tuple[int, int, int]]:
        name = "extractor_conv_layer_config"
        layers = self[name]
        valid = isinstance(layers, list | tuple) and len(layers) > 0
        for layer in layers if valid else []:
            valid = valid and isinstance(layer, list | tuple) and len(layer) == 3
            valid = valid and all(type(n) is int and 1 <= n <= LARGEST for n in layer)
        if not valid:
            self.refuse(name, layers, "a list of (dim, kernel, stride), each a number from 1")
        return [tuple(layer) for layer in layers]

    def num_heads(self, family: str, dim: int) -> int:
        """Before any were cut: as many as the frames have channels for."""
        name = "encoder_total_num_heads" if family == WAVLM else "encoder_head_dim"
        value = self.size(name)
        if dim % value:
            self.refuse(name, value, f"a divisor of encoder_embed_dim={dim}")
        return value if family == WAVLM else dim // value

    def heads_left(self, family: str, num_heads: int) -> list[list[int]]:
        """Of each layer, the heads that are left; which they are counts for WavLM's bias alone."""
        if family == HUBERT:
            counts = self.sizes_left("encoder_num_heads", "encoder_use_attention")
            if max(counts) > num_heads:
                self.refuse("encoder_num_heads", counts, f"at most {num_heads} for each layer")
            return [list(range(each)) for each in counts]
        kept, uses = self["encoder_remaining_heads"], self.by_layer("encoder_use_attention", bool)
        valid = isinstance(kept, list | tuple) and len(kept) == len(uses)
        for heads in kept if valid else []:
            valid = valid and isinstance(heads, list | tuple)
            valid = valid and all(type(head) is int and 0 <= head < num_heads for head in heads)
        if not valid:
            wanted = f"a list for each of {len(uses)} layers, of heads from 0 to {num_heads - 1}"
            self.refuse("encoder_remaining_heads", kept, wanted)
        return [sorted(set(heads)) if use else [] for heads, use in zip(kept, uses, strict=True)]

    def check_positions(self) -> None:
        """Distances up to a quarter of the buckets have one apiece; the rest share what is left."""
        buckets, furthest = self.size("encoder_num_buckets", 4), self.size("encoder_max_distance")
        if furthest <= buckets // 4:
            wanted = f"more than a quarter of encoder_num_buckets={buckets}"
            self.refuse("encoder_max_distance", furthest, wanted)


def _with_norms_named(weights, mode: str) -> dict:
    """Norms of the CNN, whose names in fairseq are others where every convolution has one."""
    place = ".2." if mode == "group_norm" else ".2.1."
    return {
        name.replace(".layer_norm.", place) if name.startswith("feature_extractor.") else name: each
        for name, each in weights.items()
    }


def _complete(path: str, weights: dict, cfg) -> None:
    """What a part that is gone has here, a bias of zero, and WavLM's bias for its heads alone.

    Raises:
        CheckpointError: weights of a part that the config says is gone
    """
    dim, num_heads = cfg.model.encoder_embed_dim, cfg.model.encoder_attention_heads
    variant, pruned = cfg.encoder_variant, cfg.encoder_variant.pruned
    begin_masks(weights, cfg)
    for index, (heads, units) in enumerate(zip(pruned.heads, pruned.units, strict=True)):
        layer = f"encoder.layers.{index}"
        if not heads:
            attention = f"{layer}.self_attn"
            _check_gone(path, weights, f"{attention}.", "encoder_use_attention")
            _empty(weights, attention, ("q_proj", "k_proj", "v_proj"), "out_proj", dim)
            if variant.family == WAVLM:
                weights[f"{attention}.grep_linear.weight"] = torch.zeros(8, dim // num_heads)
                weights[f"{attention}.grep_linear.bias"] = torch.zeros(8)
                weights[f"{attention}.grep_a"] = torch.ones(1, 0, 1, 1)
        elif f"{layer}.self_attn.grep_a" in weights:
            whole = weights[f"{layer}.self_attn.grep_a"]
            if whole.shape != (1, num_heads, 1, 1):
                raise CheckpointError(
                    f"{path}: gru_rel_pos_const of layer {index} is {tuple(whole.shape)}, not "
                    f"(1, {num_heads}, 1, 1)"
                )
            weights[f"{layer}.self_attn.grep_a"] = whole[:, list(heads)]
        if not units:
            _check_gone(path, weights, f"{layer}.fc", "encoder_use_feed_forward")
            _empty(weights, layer, ("fc1",), "fc2", dim)
    if variant.family == WAVLM and not pruned.heads[0]:
        # without attention in its first layer it has no bias in any
        table = torch.zeros(variant.relative_positions.num_buckets, num_heads)
        weights["encoder.relative_attention_bias.weight"] = table


def _check_gone(path: str, weights: dict, prefix: str, field: str) -> None:
    there = [name for name in weights if name.startswith(prefix)]
    if there:
        raise CheckpointError(
            f"{path}: {field} and the sizes say that a part is gone whose weights are there: "
            f"{there[0]}"
        )


def _empty(weights: dict, prefix: str, inputs: tuple[str, ...], output: str, dim: int) -> None:
    for name in inputs:
        weights[f"{prefix}.{name}.weight"] = torch.zeros(0, dim)
        weights[f"{prefix}.{name}.bias"] = torch.zeros(0)
    weights[f"{prefix}.{output}.weight"] = torch.zeros(dim, 0)
    weights[f"{prefix}.{output}.bias"] = torch.zeros(dim)
