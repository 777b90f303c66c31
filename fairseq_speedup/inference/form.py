"""Turns a loaded model into its inference form."""

import logging
import sys
from dataclasses import dataclass, field
from functools import cache

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models.wav2vec.wav2vec2 import TransformerSentenceEncoderLayer
from fairseq.modules import MultiheadAttention
from torch import nn

from fairseq_speedup.frontend import MaskedCnn
from fairseq_speedup.inference import kernels
from fairseq_speedup.inference.attention import FusedAttention
from fairseq_speedup.inference.batched_cnn import BatchedCnn
from fairseq_speedup.inference.captured import CapturedPath
from fairseq_speedup.inference.cnn import ChannelsLastCnn
from fairseq_speedup.inference.fbank import FusedFbank
from fairseq_speedup.inference.int8 import product_here
from fairseq_speedup.inference.layer import FusedLayer
from fairseq_speedup.inference.linear import LINEARS, multiplies_bf16
from fairseq_speedup.inference.positions import kind_for
from fairseq_speedup.inference.transformer import MaskedLayers, PackedLayers
from fairseq_speedup.models.exported_ctc import ExportedCtc
from fairseq_speedup.models.speedup_encoder import SpeedupEncoder
from fairseq_speedup.pruning.cut import cut
from fairseq_speedup.transformer.attention import SelfAttention
from fairseq_speedup.transformer.conformer import hears_padding
from fairseq_speedup.transformer.reused_attention import shares_map

logger = logging.getLogger(__name__)

AS_SAVED = "auto"


@dataclass
class InferenceConfig(FairseqDataclass):
    inference: str = field(
        default=AS_SAVED,
        metadata={
            "help": "form of the model that decodes: none, as it was trained, fp32 (the same "
            "numbers, faster), bf16, int8 (on CPUs) or fp16 (on GPUs); auto is what the checkpoint "
            "says (model.inference_form), where optimize has left it, else none"
        },
    )


def form_of(asked: str, model: nn.Module) -> str:
    """The form that ``--inference`` asks for, or the checkpoint where it does not; fp32 where this
    device cannot run the checkpoint's."""
    if asked != AS_SAVED:
        return asked
    saved = getattr(getattr(model, "cfg", None), "inference_form", "none")  # a stock one has none
    if saved == "none":
        return saved
    try:
        check_device(saved, next(model.parameters()).device)
    except ValueError as error:
        said = f"the checkpoint decodes in {saved}, which cannot be here ({error}): fp32 is used"
        print(said, file=sys.stderr)
        return "fp32"
    return saved


def to_inference_form(model: nn.Module, form: str) -> dict[str, str]:
    """Changes a CTC model, ours or stock ``wav2vec_ctc``, in place. It cannot be trained or saved
    any more.

    Args:
        model: on its device
        form: ``fp32``, the model's numbers to 1e-4; ``bf16`` or ``fp16``, those types throughout;
            ``int8``, linear layers with int8 weights and activations, on CPUs; ``none``, no change
    Returns:
        what was switched on, and why something was not
    Raises:
        ValueError: a form that does not exist or that this device cannot run, or a model that is
            in one already
    """
    if form == "none":
        return model.report() if isinstance(model, ExportedCtc) else {}
    if isinstance(model, ExportedCtc):
        raise ValueError(
            f"--inference {form} does not change {model.session.path}, which is as it was "
            "exported: leave it out"
        )
    if form not in LINEARS:
        valid = ", ".join([AS_SAVED, "none", *LINEARS])
        raise ValueError(f"--inference {form} is unknown; valid values: {valid}")
    linear = LINEARS.lookup(form)
    if (before := getattr(model, "inference_form", None)) is not None:
        raise ValueError(
            f"--inference {form}: the model is in its inference form {before}; load it again for "
            "another"
        )
    check_device(form, next(model.parameters()).device)
    cut(model)
    model.eval()  # fairseq's may return None
    model.requires_grad_(False)
    if not isinstance(model.w2v_encoder, SpeedupEncoder):
        model.w2v_encoder = SpeedupEncoder.around(model.w2v_encoder)
    model.inference_form = form
    encoder = model.w2v_encoder
    transformer = encoder.w2v_model.encoder
    on_cpu = is_on_cpu(model)
    report = {"form": form}
    if form == "bf16" and on_cpu and not multiplies_bf16():
        report["note"] = "this CPU has no instructions for bf16: fp32 is faster"
    if on_cpu:
        model.float()
        report["kernels"] = kernels.how()
        _warn_of_slow_kernels(kernels.how())
    if form == "int8" and (product := product_here()) is not None:
        report["products"] = product.HOW
    report["front_end"] = _front_end(encoder, linear, on_cpu)
    report["positional_convolution"] = _positions(transformer, linear)
    report["layers"] = _layers(transformer.layers, linear)
    if on_cpu and report["layers"] == "fused":
        report |= _in_c(list(transformer.layers))
    report["padding"] = _padding(encoder, transformer, report["layers"], on_cpu)
    _call_projections(model)
    _other_linears(model, linear)
    if not on_cpu:
        use_type_throughout(encoder, linear.dtype)
        _capture(encoder, report)
    return report


@cache
def _warn_of_slow_kernels(how: str) -> None:
    """Once, where none are compiled."""
    if kernels.LIBRARY is None:
        logger.warning("--inference takes longer here than it needs to: %s", how)


def is_on_cpu(model: nn.Module) -> bool:
    return next(model.parameters()).device.type == "cpu"


def check_device(form: str, device: torch.device) -> None:
    """Raises ValueError for a form that the device cannot run."""
    if form == "int8" and device.type != "cpu":
        raise ValueError(f"--inference int8 runs on CPUs, not on {device.type}: use fp16 or bf16")
    if form == "int8" and product_here() is None:
        raise ValueError(
            "--inference int8 needs a CPU that multiplies int8 (AVX2, AVX-512, AVX VNNI or AMX), "
            "which this one does not, or a torch with kernels for it (oneDNN, FBGEMM): use fp32"
        )
    if form == "fp16" and device.type == "cpu":
        raise ValueError("--inference fp16 is for GPUs: CPUs run none, fp32, bf16 or int8")


def _front_end(encoder, linear, on_cpu: bool) -> str:
    w2v_model = encoder.w2v_model
    if encoder.fbank is not None:
        if not on_cpu:
            return "filterbanks, as they are"
        encoder.fbank = FusedFbank.of(encoder.fbank, linear.of)
        return "filterbanks, half of the Fourier transform's products"
    cnn, masked = w2v_model.feature_extractor, isinstance(w2v_model.feature_extractor, MaskedCnn)
    if on_cpu:
        cnn = ChannelsLastCnn(cnn, linear.of, masked)
    else:
        cnn = BatchedCnn(cnn, linear.dtype, masked)
    w2v_model.feature_extractor = cnn
    folded = cnn.group_norm is not None
    return "channels last" + (", group norm folded into the first convolution" if folded else "")


def _positions(transformer, linear) -> str:
    if transformer.pos_conv is None:
        return "none"
    modules = transformer.pos_conv.modules()
    convs = [module for module in modules if isinstance(module, nn.Conv1d)]
    kind = kind_for(convs[0].bias.device, linear)
    for conv in convs:
        kind.convert(conv, linear.dtype)
    return f"weight norm folded, {kind.how}"


def _layers(layers, linear) -> str:
    for name, layer in layers.named_children():
        if type(layer) is not TransformerSentenceEncoderLayer:
            return f"as it is: {type(layer).__name__} has no fused form"
        attention = FusedAttention.of(layer.self_attn, linear.of)
        layers._modules[name] = FusedLayer.of(layer, linear.of, attention)
    return "fused"


def _in_c(layers: list[nn.Module]) -> dict[str, str]:
    """In how many layers C computes all in one call, and in how many attention."""
    whole = sum(getattr(layer, "in_c", None) is not None for layer in layers)
    attention = sum(getattr(layer.self_attn, "in_c", False) for layer in layers)
    return {
        "layers_in_c": f"{whole} of {len(layers)}",
        "attention_in_c": f"{attention} of {len(layers)}",
    }


def _padding(encoder, transformer, layers: str, on_cpu: bool) -> str:
    if not hears_padding(transformer):
        transformer.required_seq_len_multiple = 1
    if layers != "fused":
        return "computed: the layers are not fused"
    if encoder.stages and not on_cpu:
        return "computed: exits and merging follow the batch through the layers"
    if encoder.stages and any(map(shares_map, transformer.layers)):
        return "computed: attention maps that layers reuse are of the padded batch"
    if not on_cpu:
        encoder.transformer.layers = MaskedLayers(transformer, encoder.kept_layers)
        return "computed: graphs have one size for many lengths"
    encoder.transformer.layers = PackedLayers(transformer, encoder.kept_layers, encoder.stages)
    return "left out of the layers"


def use_type_throughout(encoder, dtype: torch.dtype) -> None:
    """Frames stay in ``dtype`` from the front-end on. Filterbanks, which need float32 for their
    logarithms, give float32, and every layer after them returns to it."""
    if encoder.fbank is not None:
        return
    for child in encoder.children():
        if child is not encoder.waveform_reduction:  # waveforms stay in float32
            child.to(dtype)


def _capture(encoder, report: dict[str, str]) -> None:
    """Has the encoder run as one graph, where its way does not depend on what frames hold. The
    report says so, and while the model runs also of what was not captured."""
    if report["layers"] != "fused" or encoder.stages:
        report["graphs"] = "none"
    elif getattr(encoder.proj, "needs_lengths", False):
        report["graphs"] = f"none: {type(encoder.proj).__name__} asks for lengths"
    else:
        report["graphs"] = "CUDA graphs from the waveform to the logits"
        encoder.captured = CapturedPath(encoder, report)


def _call_projections(model) -> None:
    """In layers that have no fused form, fairseq's attention hands weights of its projections to a
    function of torch, and these layers' linear layers are to be called."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is MultiheadAttention:
                setattr(module, name, SelfAttention(child))


def _other_linears(model, linear) -> None:
    for module in list(model.modules()):
        if isinstance(module, MultiheadAttention):  # of another class, which takes their weights
            continue
        for name, child in module.named_children():
            if type(child) is nn.Linear and child.weight.numel():  # none where all was pruned
                setattr(module, name, linear.of(child))
