"""Attention maps that layers reuse: ARMHuBERT's files, and what is made of them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.corpora import LETTERS, letters_dictionary, write_noise
from helpers.models import batch_of, build_model, check_alone, write_finetuned, write_pretrained
from omegaconf import OmegaConf
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("transformers")
from public_checkpoints import REUSE_PATTERN, write_reusing

from fairseq_speedup.__main__ import main
from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.inference import to_inference_form
from fairseq_speedup.inference.int8 import product_here
from fairseq_speedup.inference.transformer import MaskedLayers
from fairseq_speedup.inspection.facts import inspect_file
from fairseq_speedup.macs import MacCounter
from fairseq_speedup.models.distilled_student import DistilledStudent, DistilledStudentConfig
from fairseq_speedup.optimize.candidates import Candidate, Subject, without_a_layer
from fairseq_speedup.optimize.worker import _map_sources
from fairseq_speedup.pretrained.encoder import build_encoder
from fairseq_speedup.pretrained.families import as_wav2vec2
from fairseq_speedup.profiling.fvcore_count import check_macs
from fairseq_speedup.pruning.gates import can_be_pruned
from fairseq_speedup.transformer.reused_attention import attend_and_share, reused_of
from fairseq_speedup.without_training.factorize import can_have_low_ranks

COUNTS = [9000, 4000, 7000]
NUM_HEADS = 2
SIZES = ["base", "large"]
REUSING = [index for index, computes in enumerate(REUSE_PATTERN) if not computes]
OPTIONS = {
    "none": {},
    "stock padding": {"padding": "stock"},
    "layers": {"keep_layers": "0,2,4"},
    "the first": {"keep_layers": "2"},
    "pool": {"frame_pool": 2},
    "conv2": {"downsample": "conv", "downsample_factor": 2.0},
    "exits": {"exit_layers": "2", "exit_criterion": "layer", "exit_threshold": 2},
    "depths": {"depths": [2, 4, 5]},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(path, weights under fairseq's names) by size"""
    folder = tmp_path_factory.mktemp("reusing")
    paths = {size: folder / f"{size}.ckpt" for size in SIZES}
    return {
        size: (paths[size], write_reusing(paths[size], large=size == "large")) for size in SIZES
    }


@pytest.fixture(params=SIZES)
def file(files, request):
    return files[request.param]


@pytest.fixture(scope="module")
def path(files):
    return files["base"][0]


@pytest.fixture(scope="module")
def finetuned(path, tmp_path_factory):
    written = tmp_path_factory.mktemp("finetuned") / "model.pt"
    return write_finetuned(written, path, letters_dictionary(), normalize=False)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Two recordings, 5 seconds."""
    return write_noise(tmp_path_factory.mktemp("speech"), a=2, b=3)


def logits_of(model, net_input):
    """Of valid frames."""
    output = model(**net_input)
    logits, padding_mask = output["encoder_out"], output["padding_mask"]
    return logits if padding_mask is None else logits[~padding_mask.T]


def change(path, **options) -> None:
    given = OmegaConf.load(path.with_suffix(".yaml"))
    OmegaConf.save(OmegaConf.merge(given, {"distiller": options}), path.with_suffix(".yaml"))


# -- the numbers ---------------------------------------------------------------------------------


def layer_as_published(weights, hidden, shared, norm_first: bool, again: bool):
    """What the authors' code computes of one utterance's frames in a layer.

    Args:
        weights: of the layer, by their names in it
        hidden: (T, C)
        shared: the last map before it (heads, T, T)
        again: a map that is reused goes through the softmax once more
    Returns:
        (T, C), and the last map after it
    """

    def linear(name, x):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def heads(name, x):
        return linear(f"self_attn.{name}", x).unflatten(1, (NUM_HEADS, -1)).transpose(0, 1)

    def attention(x, shared):
        if "self_attn.q_proj.weight" in weights:
            query, key = heads("q_proj", x), heads("k_proj", x)
            reused = shared = F.softmax(query @ key.transpose(1, 2) / query.size(2) ** 0.5, -1)
        else:
            reused = F.softmax(shared, -1) if again else shared
        attended = (reused @ heads("v_proj", x)).transpose(0, 1).flatten(1)
        return linear("self_attn.out_proj", attended), shared

    def feed_forward(x):
        return linear("fc2", F.gelu(linear("fc1", x)))

    if norm_first:
        attended, shared = attention(norm("self_attn_layer_norm", hidden), shared)
        hidden = hidden + attended
        return hidden + feed_forward(norm("final_layer_norm", hidden)), shared
    attended, shared = attention(hidden, shared)
    hidden = norm("self_attn_layer_norm", hidden + attended)
    return norm("final_layer_norm", hidden + feed_forward(hidden)), shared


def as_published(encoder, weights, frames, again=True):
    """(T, C) of each layer, of one utterance's frames (T, C).

    Args:
        encoder: has what is before the layers
    """
    hidden = frames + encoder.pos_conv(frames.T[None])[0].T
    if not encoder.layer_norm_first:
        hidden = encoder.layer_norm(hidden)
    found, shared = [], None
    for index in range(len(REUSE_PATTERN)):
        prefix = f"encoder.layers.{index}."
        layer = {name.removeprefix(prefix): weights[name] for name in weights if prefix in name}
        hidden, shared = layer_as_published(layer, hidden, shared, encoder.layer_norm_first, again)
        found.append(hidden)
    return found


@torch.no_grad()
def test_hidden_states_are_those_of_the_authors_layer_by_layer(file):
    path, weights = file
    encoder = build_model(path, normalize=False).w2v_encoder
    source = batch_of([9000])["source"]
    frames, lengths, _ = encoder.frames(source, torch.tensor([9000]))
    _, _, results = encoder.transformer(frames, lengths, None)
    expected = as_published(encoder.w2v_model.encoder, weights, frames[0])
    for (hidden, _, _), theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(hidden[:, 0], theirs, atol=2e-5, rtol=1e-4)
    otherwise = as_published(encoder.w2v_model.encoder, weights, frames[0], again=False)
    assert (otherwise[1] - expected[1]).abs().max() > 1e-3  # it would be seen


@pytest.mark.parametrize(("dim", "units", "millions"), [(432, 816, 22.39), (480, 864, 26.45)])
def test_parameters_are_as_many_as_published(dim, units, millions):
    """Of ARMHuBERT-S and ARMHuBERT, with a projection of each layer to the teacher's size."""
    last = f"[({dim}, 1, 1)] + [({dim}, 2, 2)] * 2"
    cnn = f"[(128, 10, 5)] + [(256, 1, 1)] + [(256, 3, 2)] * 4 + {last}"
    sizes = {
        "encoder_layers": 12,
        "encoder_embed_dim": dim,
        "encoder_ffn_embed_dim": units,
        "encoder_attention_heads": 12,
        "conv_feature_layers": cnn,
        "computes": [True, False] * 6,
    }
    with FakeTensorMode():
        model = build_encoder(as_wav2vec2("published", "armhubert", sizes, normalize=False))
    projections = 12 * (dim * 768 + 768)
    counted = sum(parameter.numel() for parameter in model.parameters()) + projections
    assert round(counted / 1e6, 2) == millions


@pytest.mark.parametrize("grad", [True, False])
def test_what_is_reused_is_nothing_at_padding(grad):
    query, key, value = (torch.randn(2, 3, 5, 4) for _ in range(3))
    padding_mask = torch.tensor([[False] * 5, [False, False, False, True, True]])
    given = query.clone(), key.clone(), value.clone()
    with torch.set_grad_enabled(grad):
        attended, shared = attend_and_share(query, key, value, padding_mask)
    for ours, before in zip((query, key, value), given, strict=True):
        assert torch.equal(ours, before)
    for i, count in enumerate((5, 3)):
        q, k, v = (each[i : i + 1, :, :count] for each in given)
        expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        torch.testing.assert_close(attended[i, :count], expected[0])
        weights = torch.softmax(q @ k.transpose(2, 3) / 2, dim=-1)
        torch.testing.assert_close(shared[i, :, :count, :count], torch.softmax(weights, -1)[0])
        assert not shared[i, :, :, count:].any()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_utterance_gives_alone_what_it_gives_in_a_batch(path, options):
    model = build_model(path, normalize=False, **options)
    net_input = batch_of(COUNTS)
    if options.get("padding") != "stock":
        with torch.no_grad():
            check_alone(model, net_input, model.get_logits(model(**net_input)))
    check = check_macs([model], 8000)
    assert check["closed_form"] == check["fvcore"]


@torch.no_grad()
def test_those_who_stay_keep_their_maps_when_others_leave(path):
    """A map is computed after layer 2's exit by none: layers 3 and 4 take that of layer 2."""
    options = {"exit_layers": "2,3", "exit_criterion": "entropy"}
    model = build_model(path, normalize=False, **options)
    exits = model.w2v_encoder.exit
    net_input = batch_of([4000, 9000, 7000, 9000])
    exits.observed = True
    measured = model(**net_input)["exit_measured"]
    exits.observed = False
    exits.threshold = float(measured[2].sort().values[1:3].mean())
    output = model(**net_input)
    assert sorted((output["layer_frames"][:, 3] > 0).tolist()) == [False, False, True, True]
    check_alone(model, net_input, model.get_logits(output), output["layer_frames"])


def test_macs_are_less_by_queries_keys_and_their_products(file, tmp_path):
    path, _ = file
    large = path.stem == "large"
    write_reusing(tmp_path / "whole.ckpt", [True] * len(REUSE_PATTERN), large=large)
    whole = build_model(tmp_path / "whole.ckpt", normalize=False)
    model = build_model(path, normalize=False)
    frames = model.w2v_encoder.frame_lengths(16000)
    saved = len(REUSING) * (2 * frames * 16 * 16 + frames * frames * 16)
    counts = [MacCounter(each).count([16000]).sum().total for each in (whole, model)]
    assert counts[0] - counts[1] == saved
    for each in (whole, model):
        check = check_macs([each], 9000)
        assert check["closed_form"] == check["fvcore"]


# -- training ------------------------------------------------------------------------------------


def test_a_map_is_taught_by_the_layers_that_reuse_it(path):
    model = build_model(path, normalize=False, keep_layers="0,1", dropout=0.0)
    first, second = model.w2v_encoder.w2v_model.encoder.layers
    model(**batch_of(COUNTS))["encoder_out"].square().mean().backward()
    assert first.self_attn.q_proj.weight.grad.abs().max() > 0
    model.zero_grad()
    with torch.no_grad():
        first.self_attn.out_proj.weight.zero_()  # of no use to its own layer any more
    model(**batch_of(COUNTS))["encoder_out"].square().mean().backward()
    assert first.self_attn.q_proj.weight.grad.abs().max() > 0
    assert second.self_attn.v_proj.weight.grad.abs().max() > 0


def test_layers_whose_maps_are_reused_are_never_dropped(path):
    model = build_model(path, normalize=False, layerdrop=0.999).train()
    np.random.seed(0)
    for _ in range(3):
        results = model(**batch_of(COUNTS))["layer_results"]
        assert len(results) == REUSE_PATTERN.count(True)
    whole = build_model(path, normalize=False, layerdrop=0.5).train()
    drawn = [len(whole(**batch_of(COUNTS))["layer_results"]) for _ in range(10)]
    assert min(drawn) >= 2 and len(set(drawn)) > 1


def test_it_trains_in_half_precision_and_at_many_depths(path):
    model = build_model(path, normalize=False, depths=[2, 3, 5]).bfloat16().train()
    net_input = batch_of(COUNTS)
    net_input["source"] = net_input["source"].bfloat16()
    for update in range(3):
        model.w2v_encoder.set_num_updates(update)
        logits = model(**net_input)["encoder_out"]
        assert logits.dtype == torch.bfloat16 and torch.isfinite(logits).all()
        logits.float().square().mean().backward()


# -- files ---------------------------------------------------------------------------------------


def test_what_is_fine_tuned_is_inspected_and_a_start_again(path, finetuned, capsys):
    for file in (path, finetuned):
        report = inspect_file(str(file))
        assert report["error"] is None and report["family"].startswith("armhubert")
        assert report["reused_attention"] == {"computes": REUSE_PATTERN}
    assert main(["inspect", str(path)]) == 0
    assert "layers 1 3 4 reuse the last one before them" in capsys.readouterr().out
    again = build_model(finetuned, normalize=False, labels=LETTERS, keep_layers="0,1,2")
    assert reused_of(again.cfg.w2v_args) == {"computes": REUSE_PATTERN}
    state = torch.load(finetuned, weights_only=False)["model"]
    for name, weight in again.w2v_encoder.w2v_model.state_dict().items():
        assert torch.equal(weight, state[f"w2v_encoder.w2v_model.{name}"])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("[False, True, True, True, True]", "begins with False: the first layer has no map"),
        ("[True, False]", "reuse_pattern has 2 values; it must have one for each of the 5 layers"),
        ("[True, 0, 1, False, False]", "is no list with True for each layer that computes"),
        ("'True'", "is no list with True"),
        ("{1: False}", "is no list with True"),
        ("exit()", "reuse_pattern"),
        ("[True, True, True, False, False]", r"missing: encoder\.layers\.1\.self_attn\.k_proj"),
        ("[True, False, False, False, False]", r"unknown: encoder\.layers\.2\.self_attn\.k_proj"),
    ],
)
def test_a_pattern_that_is_none_of_its_layers_is_named(tmp_path, pattern, message):
    written = tmp_path / "arm.ckpt"
    write_reusing(written)
    change(written, reuse_pattern=pattern)
    with pytest.raises(CheckpointError, match=message) as found:
        build_model(written, normalize=False)
    assert "arm.ckpt" in str(found.value)


@pytest.mark.parametrize("pattern", [None, "[]", "None", [True] * 5])
def test_a_pattern_in_which_all_compute_is_none(tmp_path, pattern):
    written = tmp_path / "star.ckpt"
    write_reusing(written, [True] * 5)
    change(written, reuse_pattern=pattern)
    model = build_model(written, normalize=False)
    assert model.cfg.w2v_args.encoder_variant == {"family": "starhubert"}


COMPUTES = {"computes": REUSE_PATTERN}


@pytest.mark.parametrize(
    ("model", "variant", "message"),
    [
        ({}, {"reused_attention": {"computes": [True, False]}}, r"\.computes has 2 values"),
        ({}, {"reused_attention": {"computes": None}}, r"\.computes=None is no list"),
        ({}, {"reused_attention": {"computes": [False] * 5}}, "begins with False"),
        (
            {},
            {"reused_attention": COMPUTES, "low_rank": {"share": 1.0, "ranks": []}},
            r"encoder_variant\.reused_attention does not go together with low_rank",
        ),
        (
            {"layer_type": "conformer", "depthwise_conv_kernel_size": 7},
            {"reused_attention": COMPUTES},
            "this model has ConformerLayer: set layer_type=transformer",
        ),
    ],
)
def test_a_config_that_no_encoder_can_be_of_is_named(path, model, variant, message):
    pretraining = copy.deepcopy(build_model(path, normalize=False).cfg.w2v_args)
    pretraining.encoder_variant = variant
    for name, value in model.items():
        pretraining.model[name] = value
    with pytest.raises(ValueError, match=message):
        build_model("lost.pt", normalize=False, w2v_args=pretraining)


# -- what does not go together -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_layers": "0,1,3"}, r"keep_layers=0,1,3 leaves layer 2 out, .* layer 3 reuses"),
        ({"keep_layers": "1,2,3"}, "leaves layer 0 out, whose attention map layer 1 reuses"),
        ({"merge_ratio": 0.2}, r"merge_ratio=0\.2: layers .* reuse .*: set merge_ratio=0"),
        (
            {"exit_layers": "1", "drop_frames": "blank"},
            "drop_frames=blank: layers .* reuse .*: set drop_frames=none",
        ),
        ({"prune_target": 0.5}, r"prune_target=0\.5: layers of .* reuse .* set prune_target=1"),
        ({"checkpoint_activations": True}, "checkpoint_activations=true: .* set checkpoint"),
    ],
)
def test_what_does_not_go_together_is_refused_in_words(path, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(path, normalize=False, **options)


@pytest.mark.parametrize(
    "command",
    [
        ["prune", "--target", "0.8"],
        ["low-rank"],
        ["widths", "--widths", "0.8"],
    ],
    ids=lambda command: command[0],
)
def test_commands_that_cut_say_why_not(finetuned, speech, tmp_path, capsys, command):
    name, *options = command
    given = [str(finetuned), *options, "--audio", str(speech), "--cpu"]
    assert main([name, *given, "--output", str(tmp_path / "x.pt")]) == 1
    assert "its layers reuse the attention maps of others" in capsys.readouterr().err
    assert not (tmp_path / "x.pt").exists()


def test_it_is_no_hugging_face_model_and_no_teacher_of_its_first_layers(
    path, finetuned, tmp_path, capsys
):
    for source in (path, finetuned):
        assert main(["convert", str(source), str(tmp_path / "folder")]) == 1
        assert "as those of no Hugging Face model do" in capsys.readouterr().err
    cfg = OmegaConf.structured(DistilledStudentConfig(w2v_path=str(path), predict_layers="2"))
    cfg.normalize = False
    with pytest.raises(CheckpointError, match="reuse the attention maps of others"):
        DistilledStudent.build_model(cfg, None)


def test_fairseqs_own_loop_is_told(path):
    encoder = build_model(path, normalize=False).w2v_encoder.w2v_model.encoder
    with pytest.raises(ValueError, match="was given none"):
        encoder(torch.randn(1, 5, 16), None)


def test_optimize_tries_nothing_that_is_refused(path):
    model = build_model(path, normalize=False)
    assert not can_be_pruned(model)
    assert not can_have_low_ranks(model)
    assert _map_sources(model.w2v_encoder) == [0, 2]
    subject = Subject([0, 1, 2, 3, 4], [], False, False, {}, False, [], [], "greedy", 1)
    influence = dict.fromkeys(range(5), 0.0)
    fewer = without_a_layer(Candidate(), replace(subject, staying=[0, 2]), influence, most=3)
    for candidate in fewer:
        build_model(path, normalize=False, **candidate.overrides)
    assert [each.overrides["keep_layers"] for each in fewer] == ["0,2,3,4", "0,1,2,4"]


# -- other forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("options", [{}, OPTIONS["layers"], OPTIONS["exits"]], ids=str)
@torch.no_grad()
def test_inference_forms_are_those_of_the_model_without_its_work(file, form, options):
    if form == "int8" and product_here() is None:
        pytest.skip("this CPU has no instructions for int8")
    model = build_model(file[0], normalize=False, **options)
    fast, net_input = copy.deepcopy(model), batch_of(COUNTS)
    to_inference_form(fast, form)
    for given in (net_input, batch_of([7000])):
        expected, found = (logits_of(each, given) for each in (model, fast))
        limit = {"fp32": 1e-4, "bf16": 0.15, "int8": 0.15}[form]
        assert (found - expected).abs().max() / expected.abs().max() < limit
    assert MacCounter(fast).count([8000]).sum() == MacCounter(model).count([8000]).sum()
    layers = list(fast.w2v_encoder.w2v_model.encoder.layers)
    assert [layer.self_attn.in_proj.out_features for layer in layers] == [
        16 if index in REUSING else 48 for index in model.w2v_encoder.kept_layers
    ]


@torch.no_grad()
def test_the_layers_of_gpus_give_the_same(path):
    model = build_model(path, normalize=False)
    fast, net_input = copy.deepcopy(model), batch_of(COUNTS)
    to_inference_form(fast, "fp32")
    encoder = fast.w2v_encoder
    encoder.transformer.layers = MaskedLayers(encoder.w2v_model.encoder, encoder.kept_layers)
    expected = logits_of(model, net_input)
    torch.testing.assert_close(logits_of(fast, net_input), expected, atol=1e-4, rtol=1e-4)


EXPORTED = {"none": {}, "layers": OPTIONS["layers"], "pool": OPTIONS["pool"]}


@pytest.mark.parametrize("options", EXPORTED.values(), ids=EXPORTED)
def test_it_is_exported_to_onnx(file, tmp_path, options):
    pytest.importorskip("onnxruntime")
    from helpers.exported import BATCHES, export, given, largest_difference

    model = build_model(file[0], normalize=False, **options)
    batches = [given(model, counts) for counts in BATCHES]
    written, _ = export(model, tmp_path / "model.onnx")
    assert largest_difference(written, batches) < 1e-3


def test_it_is_exported_to_openvino(path, tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    from helpers.exported import BATCHES, Task, given, largest_difference

    from fairseq_speedup.export import OpenVinoModel
    from fairseq_speedup.export.command import metadata_of
    from fairseq_speedup.export.openvino_file import export_openvino
    from fairseq_speedup.export.openvino_int8 import PARTS, parts_of

    model = build_model(path, normalize=False)
    batches = [given(model, counts) for counts in BATCHES]
    written = tmp_path / "model.xml"
    export_openvino(model, str(written), metadata_of(model, Task(14), "some/model.pt", "openvino"))
    file = OpenVinoModel(str(written), num_threads=1)
    assert largest_difference(file, batches) < 1e-3
    parts = parts_of(file.network, PARTS, list(range(5)))
    assert {f"attention of layer {index}" for index in range(5)} <= set(parts)


def test_stock_models_have_no_part_of_it(tmp_path):
    model = build_model(write_pretrained(tmp_path / "stock.pt"))
    assert reused_of(model.cfg.w2v_args) is None
