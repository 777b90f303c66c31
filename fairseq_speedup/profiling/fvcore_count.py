"""MACs counted by fvcore, which traces a forward pass and counts every operator that it sees."""

import contextlib
import logging

import torch
import torch.nn.functional as F
from fairseq.models.wav2vec import wav2vec2
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import nn

from fairseq_speedup.macs import MacCounter, Macs

# Operators without multiply-accumulates of the kind counted here, which fvcore would count
# or complain of.
NOT_COUNTED = [
    "aten::layer_norm",
    "aten::group_norm",
    "aten::native_layer_norm",
    "aten::native_group_norm",
    "aten::batch_norm",
    "aten::adaptive_avg_pool1d",
]


def _attention_macs(inputs, outputs) -> int:
    """scaled_dot_product_attention: q.k and weights.v; q (..., T, D), k and v (..., S, D)."""
    *batch, num_queries, dim = get_shape(inputs[0])
    num_keys, value_dim = get_shape(inputs[2])[-2:]
    macs = num_queries * num_keys * (dim + value_dim)
    for size in batch:
        macs *= size
    return macs


def _lstm_macs(inputs, outputs) -> int:
    """lstm on (T, B, C), whatever its layers and directions: every weight once in a frame."""
    num_frames, batch_size = get_shape(inputs[0])[:2]
    weights = [get_shape(value) for value in inputs[2].node().inputs()]
    return num_frames * batch_size * sum(w[0] * w[1] for w in weights if len(w) == 2)


def _no_macs(inputs, outputs) -> int:
    return 0


class _Encoder(nn.Module):
    """The encoder as a function of the waveform alone, which tracing needs."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.layer_frames = None  # of the last call, where frames merge

    def forward(self, source):
        output = self.encoder(source=source, padding_mask=None)
        if "layer_frames" in output:
            self.layer_frames = output["layer_frames"].tolist()
        return output["encoder_out"]


def _pad_to_multiple(x, multiple, dim=-1, value=0):
    """fairseq's function of that name, for sizes that are tensors, as they are under tracing."""
    if x is None:
        return None, 0
    missing = -int(x.size(dim)) % multiple
    return F.pad(x, (0, 0) * (-1 - dim) + (0, missing), value=value), missing


@contextlib.contextmanager
def _traceable(encoder):
    """Lets an encoder be traced, through all layers whatever exits it has, and fvcore list no
    operators that it leaves out."""
    stages = getattr(encoder, "stages", [])
    given = list(stages)
    stages[:] = _whole_depth(given)
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    level, pad_to_multiple = logger.level, wav2vec2.pad_to_multiple
    logger.setLevel(logging.ERROR)
    wav2vec2.pad_to_multiple = _pad_to_multiple
    try:
        yield
    finally:
        logger.setLevel(level)
        wav2vec2.pad_to_multiple = pad_to_multiple
        stages[:] = given


def _whole_depth(stages: list) -> list:
    """Those that end no utterance's way through the layers."""
    return [stage for stage in stages if not stage.ends_early]


def fvcore_macs(model, num_samples: int) -> Macs:
    """Counts one utterance of ``num_samples`` by tracing ``model`` (``w2v_encoder`` inside).

    The model runs once, in eval mode, on its own device, through all its layers.
    """
    return _trace(model, num_samples)[0]


def _trace(model, num_samples: int):
    """The counts, and the frames that each layer was given (1, layers), where frames merge."""
    was_training = model.training
    model.eval()
    parameter = next(model.parameters())
    source = torch.zeros(1, num_samples, device=parameter.device, dtype=parameter.dtype)
    source[0, ::2] = 0.1  # any signal: counts do not depend on it, unless similar frames merge
    encoder = _Encoder(model.w2v_encoder)
    try:
        with torch.no_grad(), _traceable(model.w2v_encoder):
            analysis = FlopCountAnalysis(encoder, source)
            analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
            analysis.set_op_handle("aten::lstm", _lstm_macs)
            for name in NOT_COUNTED:
                analysis.set_op_handle(name, _no_macs)
            analysis.tracer_warnings("none")
            by_module = analysis.by_module()
    finally:
        model.train(was_training)

    def of(*names: str) -> int:
        return int(sum(by_module.get(f"encoder.{name}", 0) for name in names))

    macs = Macs(
        waveform_reduction=of("waveform_reduction"),
        front_end=of("w2v_model.feature_extractor", "fbank", "w2v_model.post_extract_proj"),
        frame_reduction=of("frame_reduction"),
        transformer=of("w2v_model.encoder"),
        head=of("proj", "exit_heads"),
    )
    return macs, encoder.layer_frames


def check_macs(models, num_samples: int) -> dict:
    """Both counts of one utterance of ``num_samples``, through all layers, summed over models."""
    closed_form = traced = 0
    for model in models:
        macs, layer_frames = _trace(model, num_samples)
        closed_form += int(_full_depth(model, num_samples, layer_frames).total)
        traced += macs.total
    return {"num_samples": num_samples, "closed_form": closed_form, "fvcore": traced}


def _full_depth(model, num_samples: int, layer_frames) -> Macs:
    counter = MacCounter(model)
    counter.stages = _whole_depth(counter.stages)
    return counter.count([num_samples], layer_frames).sum()
