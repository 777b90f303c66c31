"""The engines that are compared: each runs a batch of waveforms through a CTC model of a public
size with random weights.

An engine is built as ``ENGINES[name](arch, folder)`` and called with a waveform (B, S), lengths
(B,) and the factor by which the waveform is to be shortened; ours shortens by averaging, for the
others it is cut to that length, which costs nothing.
"""

import argparse
import dataclasses
import functools
import itertools
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from fairseq_speedup.inference import to_inference_form
from fairseq_speedup.lengths import lengths_of
from fairseq_speedup.profiling.profile import load_model

NUM_LABELS = 32
FACTORS = (1, 2, 3)
SAMPLES_PER_LABEL = 1200  # 13 letters a second
REPO = Path(__file__).parents[2]
ENGINES = {}


def engine(name: str):
    def add(build):
        ENGINES[name] = build
        return build

    return add


def shortened(waveform, lengths, factor: int):
    if factor == 1:
        return waveform, lengths
    return waveform[:, : waveform.size(1) // factor].contiguous(), lengths // factor


def padding_mask(waveform, lengths):
    mask = torch.arange(waveform.size(1)) >= lengths[:, None]
    return mask if mask.any() else None


def model_of(arch: str, *options: str, config: Path | None = None):
    names = argparse.Namespace(
        arch=arch,
        config=config and str(config),
        checkpoint=None,
        num_labels=NUM_LABELS,
        options=list(options),
    )
    torch.manual_seed(0)
    return load_model(names)[0].eval()


@engine("stock fairseq")
def stock(arch: str, folder: Path):
    model = model_of(arch, "padding=stock")

    def run(waveform, lengths, factor):
        waveform, lengths = shortened(waveform, lengths, factor)
        model(source=waveform, padding_mask=padding_mask(waveform, lengths))

    return run


def ours(form: str, arch: str, folder: Path):
    model = model_of(arch, "downsample=average", "downsample_factors=[1,2,3]")
    to_inference_form(model, form)
    speeds = model.w2v_encoder.speeds

    def run(waveform, lengths, factor):
        speeds.default = dataclasses.replace(speeds.default, factor=float(factor))
        model(source=waveform, padding_mask=padding_mask(waveform, lengths))

    return run


for _form in ("fp32", "bf16", "int8"):
    ENGINES[f"ours {_form}"] = functools.partial(ours, _form)


# by the files of config/finetuning/reduction
REDUCED = ["pool2", "pool2_keep8", "keep8", "merge5", "conv2", "fbank", "fbank+pool2"]
REDUCED += ["fbank+pool2_keep8"]
REDUCED_FORMS = ["fp32", "int8"]


def options_of(reduced: str) -> list[str]:
    """Options of the model, of files whose names are joined by ``+``."""
    folder = REPO / "config/finetuning/reduction"
    files = [OmegaConf.load(folder / f"{name}.yaml") for name in reduced.split("+")]
    return [f"{name}={value}" for name, value in OmegaConf.merge(*files).items()]


def ours_reduced(form: str, reduced: str, arch: str, folder: Path):
    model = model_of(arch, *options_of(reduced))
    to_inference_form(model, form)

    def run(waveform, lengths, factor):
        model(source=waveform, padding_mask=padding_mask(waveform, lengths))

    return run


for _form, _reduced in itertools.product(REDUCED_FORMS, REDUCED):
    ENGINES[f"ours {_form}, {_reduced}"] = functools.partial(ours_reduced, _form, _reduced)


UPDATES = {
    "update: stock fairseq": None,
    "update: x1": [],
    "update: conv x2": ["downsample=conv", "downsample_factor=2"],
    "update: conv x3": ["downsample=conv", "downsample_factor=3"],
    "update: signal x2": ["downsample=signal", "downsample_factor=2"],
    "update: signal x3": ["downsample=signal", "downsample_factor=3"],
}


def update(options: list[str] | None, arch: str, folder: Path):
    """An update of fine-tuning in place of a forward pass; options of the model, None for stock."""
    config = REPO / f"config/finetuning/{arch}_100h.yaml"
    model = model_of(arch, *(["padding=stock"] if options is None else options), config=config)
    model.train()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=3e-5)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def run(waveform, lengths, factor):
        waveform, lengths = waveform.clone(), lengths.clone()  # made in inference mode
        net_output = model(source=waveform, padding_mask=padding_mask(waveform, lengths))
        log_probs = model.get_normalized_probs(net_output, log_probs=True)
        frames = lengths_of(net_output["padding_mask"], log_probs.transpose(0, 1))
        num_labels = lengths // SAMPLES_PER_LABEL
        labels = torch.randint(4, NUM_LABELS, (int(num_labels.sum()),))
        loss = torch.nn.functional.ctc_loss(
            log_probs, labels, frames, num_labels, zero_infinity=True
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


for _name, _options in UPDATES.items():
    ENGINES[_name] = functools.partial(update, _options)


def hugging_face(arch: str):
    import transformers

    # a CPU build of PyTorch may lie beside a torchaudio that cannot be imported; it is not needed
    for module in (transformers.utils, transformers.utils.import_utils):
        module.is_torchaudio_available = lambda: False
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    large = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
    }
    config = Wav2Vec2Config(vocab_size=NUM_LABELS, **(large if arch == "large" else {}))
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    return Wav2Vec2ForCTC(config).eval()


@engine("transformers")
def hugging_face_sdpa(arch: str, folder: Path):
    model = hugging_face(arch)

    def run(waveform, lengths, factor):
        waveform, lengths = shortened(waveform, lengths, factor)
        mask = padding_mask(waveform, lengths)
        model(waveform, attention_mask=None if mask is None else (~mask).long())

    return run


class Exported(torch.nn.Module):
    """Logits of a waveform (B, S); a mask costs nothing worth measuring and is left out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, waveform):
        return self.model(waveform).logits


def exported(arch: str, folder: Path) -> Path:
    """The ONNX file of transformers' model."""
    path = folder / f"{arch}.onnx"
    if not path.exists():
        part = path.with_suffix(".part")
        torch.onnx.export(
            Exported(hugging_face(arch)),
            (torch.randn(1, 32000),),
            str(part),
            input_names=["waveform"],
            output_names=["logits"],
            dynamic_axes={"waveform": {0: "batch", 1: "samples"}, "logits": {0: "batch", 1: "t"}},
            opset_version=17,
            dynamo=False,
        )
        part.rename(path)
    return path


def onnx_runtime(int8: bool, arch: str, folder: Path):
    import onnxruntime

    path = exported(arch, folder)
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantised = folder / f"{arch}.int8.onnx"
        if not quantised.exists():
            part = quantised.with_suffix(".part")
            quantize_dynamic(
                str(path), str(part), op_types_to_quantize=["MatMul", "Gemm"],
                weight_type=QuantType.QInt8, per_channel=True,
            )  # fmt: skip
            part.rename(quantised)
        path = quantised
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])

    def run(waveform, lengths, factor):
        waveform, lengths = shortened(waveform, lengths, factor)
        session.run(None, {"waveform": waveform.numpy()})

    return run


def ctranslate2(compute_type: str, arch: str, folder: Path):
    """Of transformers' model, which must have the layer norms of large ones."""
    from ctranslate2 import StorageView
    from ctranslate2.converters.transformers import Wav2Vec2Loader
    from ctranslate2.models import Wav2Vec2

    if arch != "large":
        raise SystemExit("CTranslate2 runs wav2vec 2.0 with layer norms in its CNN alone: large")
    path = folder / f"{arch}.ctranslate2"
    if not path.exists():
        loader, model = Wav2Vec2Loader(), hugging_face(arch)
        with torch.no_grad():
            specification = loader.get_model_spec(model)
        loader.set_vocabulary(specification, [f"label{n}" for n in range(NUM_LABELS)])
        specification.validate()
        specification.optimize()
        part = path.with_suffix(".part")
        part.mkdir(exist_ok=True)
        specification.save(str(part))
        part.rename(path)
    threads = torch.get_num_threads()
    model = Wav2Vec2(str(path), "cpu", compute_type=compute_type, intra_threads=threads)

    def run(waveform, lengths, factor):
        waveform, lengths = shortened(waveform, lengths, factor)
        features = StorageView.from_array(waveform[:, None].numpy())
        model.encode(features, to_cpu=True)

    return run


def openvino(precision: str, arch: str, folder: Path):
    """Of transformers' model."""
    network = _network(exported(arch, folder))
    if precision != "fp32":
        kept = [] if precision == "int8" else [_name(each) for each in _convolutions(network)]
        network = quantised(network, kept, [{"waveform": each} for each in calibration()])
    compiled = compiled_by_openvino(network)

    def run(waveform, lengths, factor):
        waveform, lengths = shortened(waveform, lengths, factor)
        compiled([waveform.numpy()])

    return run


def ours_in_openvino(int8: bool, arch: str, folder: Path):
    """Our model as `export --to openvino` writes it, a file for each factor."""
    from fairseq_speedup.export.model import ExportableModel
    from fairseq_speedup.export.onnx_file import record
    from fairseq_speedup.export.openvino_int8 import PARTS, parts_of

    @functools.cache
    def compiled(factor: int):
        path = folder / f"ours_{arch}_x{factor}.onnx"
        model = model_of(arch, *shortening(factor))
        if not path.exists():
            part = path.with_suffix(".part")
            record(ExportableModel(model), str(part), model.w2v_encoder.needed_samples())
            part.rename(path)
        network = _network(path)
        if int8:
            layers = model.w2v_encoder.kept_layers
            chosen = {name for names in parts_of(network, PARTS, layers).values() for name in names}
            kept = [_name(each) for each in _operations(network) if _name(each) not in chosen]
            items = [{"waveform": e, "lengths": np.array([e.shape[1]])} for e in calibration()]
            network = quantised(network, kept, items)
        return compiled_by_openvino(network)

    def run(waveform, lengths, factor):
        compiled(factor)({"waveform": waveform.numpy(), "lengths": lengths.numpy()})

    return run


def shortening(factor: int) -> list[str]:
    return [] if factor == 1 else ["downsample=average", f"downsample_factor={factor}"]


def calibration() -> list[np.ndarray]:
    """Waveforms that scales are found on."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, count, generator=generator).numpy() for count in (32000, 64000, 96000)]


def quantised(network, kept: list[str], items: list[dict]):
    """An OpenVINO network in int8, but for the operations ``kept``."""
    from fairseq_speedup.export.openvino_int8 import nncf_installed

    nncf = nncf_installed()
    return nncf.quantize(
        network,
        nncf.Dataset(items),
        subset_size=len(items),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=kept),
    )


def compiled_by_openvino(network):
    from openvino import Core

    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    return Core().compile_model(network, "CPU", hints)


def _network(path: Path):
    from openvino import Core

    return Core().read_model(path)


def _operations(network) -> list:
    left_out = ("Constant", "Parameter", "Result")
    return [each for each in network.get_ordered_ops() if each.get_type_name() not in left_out]


def _convolutions(network) -> list:
    return [each for each in _operations(network) if each.get_type_name() == "Convolution"]


def _name(operation) -> str:
    return operation.get_friendly_name()


ENGINES["CTranslate2 fp32"] = functools.partial(ctranslate2, "float32")
ENGINES["CTranslate2 int8"] = functools.partial(ctranslate2, "int8")
for _precision in ("fp32", "int8", "int8, CNN in fp32"):
    ENGINES[f"OpenVINO {_precision}"] = functools.partial(openvino, _precision)
ENGINES["ours in OpenVINO, fp32"] = functools.partial(ours_in_openvino, False)
ENGINES["ours in OpenVINO, int8"] = functools.partial(ours_in_openvino, True)
ENGINES["ONNX Runtime fp32"] = functools.partial(onnx_runtime, False)
ENGINES["ONNX Runtime int8"] = functools.partial(onnx_runtime, True)
