"""Every public family, in its public form, against Hugging Face's implementation."""

import pytest
import torch
from helpers.models import batch_of, build_model

transformers = pytest.importorskip("transformers")
from public_checkpoints import FORMS, reference, write_form  # noqa: E402

from fairseq_speedup.hugging_face import from_fairseq, to_fairseq  # noqa: E402
from fairseq_speedup.inspection.facts import inspect_file  # noqa: E402
from fairseq_speedup.macs import MacCounter  # noqa: E402
from fairseq_speedup.pretrained.families import FAMILIES  # noqa: E402
from fairseq_speedup.profiling.fvcore_count import check_macs  # noqa: E402

COUNTS = [9000, 4000, 7000]
PRETRAINING_MODULES = (
    *("quantizer", "project_q", "final_proj"),  # wav2vec 2.0
    *("label_embs_concat", "_ema", "output_layer", "heads"),  # HuBERT, data2vec, students
    "aux",  # torchaudio
)


@pytest.fixture(scope="module", params=list(FORMS))
def family(request, tmp_path_factory):
    """(path, Hugging Face's model, whether waveforms are normalised)"""
    path = tmp_path_factory.mktemp("family") / "public.pt"
    model = reference(request.param)
    write_form(path, request.param, model)
    return path, model, FORMS[request.param][2]


def hidden_states(model, source):
    """Ours, layer by layer, each (B, T, C)."""
    frames = model.w2v_encoder.frames(source, torch.tensor([source.size(1)] * len(source)))
    last, _, results = model.w2v_encoder.transformer(*frames)
    layers = [x.transpose(0, 1) for x, _, _ in results]  # T x B x C -> B x T x C
    return layers, last


@torch.no_grad()
def test_hidden_states_agree_layer_by_layer(family, parity):
    path, theirs, normalize = family
    ours = build_model(path, normalize=normalize)
    source = batch_of([9000])["source"]
    expected = theirs(source, output_hidden_states=True)
    layers, last = hidden_states(ours, source)
    pre_norm = ours.w2v_encoder.w2v_model.encoder.layer_norm_first
    # Hugging Face gives the first layer's input too, and a pre-norm model's last state normalised
    for index, layer in enumerate(layers[:-1] if pre_norm else layers):
        parity(layer, expected.hidden_states[index + 1])
    parity(last, expected.last_hidden_state)


@torch.no_grad()
def test_an_utterance_in_a_padded_batch_agrees_with_hugging_face_alone(family, parity):
    path, theirs, normalize = family
    ours = build_model(path, normalize=normalize)
    net_input = batch_of(COUNTS)
    frames = ours.w2v_encoder.frames(net_input["source"], torch.tensor(COUNTS))
    found, _, _ = ours.w2v_encoder.transformer(*frames)
    for i, count in enumerate(COUNTS):
        expected = theirs(net_input["source"][i : i + 1, :count]).last_hidden_state[0]
        parity(found[i, : len(expected)], expected)


def test_inspect_tells_what_it_is(family, record_property):
    path, theirs, normalize = family
    report = inspect_file(str(path))
    for name in ("family", "era", "safe"):
        record_property(name, report[name])
    assert report["error"] is None
    assert report["safe"]
    assert report["family"] in FAMILIES
    config = theirs.config
    assert report["layers"] == config.num_hidden_layers
    assert (report["width"], report["heads"]) == (config.hidden_size, config.num_attention_heads)
    assert report["cnn"] == [
        list(layer)
        for layer in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    ]
    assert (report["normalize"], report["frame_samples"]) == (normalize, 320)
    norms = {"group": "default", "layer": "layer_norm"}
    assert report["cnn_norm"] == norms[config.feat_extract_norm]
    # the head is no part of a pretrained model, masks are where it was trained without them
    w2v = build_model(path, normalize=normalize).w2v_encoder.w2v_model
    assert report["layer_norm_first"] == w2v.encoder.layer_norm_first
    assert report["parameters"] == sum(p.numel() for p in w2v.parameters())
    assert sum(report["parameters_by_stage"].values()) == report["parameters"] - len(w2v.mask_emb)
    macs = sum(report["macs_per_second_by_stage"].values()) * report["macs_seconds"]
    model = build_model(path, normalize=normalize)
    counted = MacCounter(model).count([160000]).sum()
    assert macs == pytest.approx(counted.total - counted.head)
    state = torch.load(path, weights_only=False)
    names = set(state.get("model") or state.get("Distiller") or state["state_dict"])
    names = {name.removeprefix("student_model.") for name in names}
    dropped = {
        module for module in PRETRAINING_MODULES for name in names if name.startswith(module)
    }
    conformer = config.model_type == "wav2vec2-conformer"
    assert report["layer_type"] == ("conformer" if conformer else "transformer")
    if conformer:
        dropped.add("encoder.pos_conv")  # which fairseq's makes, saves and never runs
    assert {each["module"] for each in report["dropped"]} == dropped
    assert all(each["tensors"] and each["parameters"] for each in report["dropped"])


def test_names_are_those_of_hugging_face_there_and_back(family):
    _, theirs, _ = family
    group_norm = theirs.config.feat_extract_norm == "group"
    conformer = theirs.config.model_type == "wav2vec2-conformer"
    for name in theirs.state_dict():
        ours = to_fairseq(name, group_norm)
        assert from_fairseq(ours, group_norm, conformer) == name


OPTIONS = {
    "none": {},
    "conv2": {"downsample": "conv", "downsample_factor": 2.0},
    "layers": {"keep_layers": "1,3"},
    "exits": {"exit_layers": "1", "exit_criterion": "layer", "exit_threshold": 1},
    "pool": {"frame_pool": 2},
    "merge": {"merge_ratio": 0.2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_family_is_reduced_trained_and_safe_in_a_batch(family, options):
    path, _, normalize = family
    model = build_model(path, normalize=normalize, **options).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    net_input = batch_of(COUNTS)
    for _ in range(2):
        optimizer.zero_grad()
        output = model(**net_input)
        exits = output.get("exit_logits", {}).values()
        sum(logits.square().mean() for logits in [output["encoder_out"], *exits]).backward()
        optimizer.step()
    again = build_model("lost.pt", normalize=normalize, w2v_args=model.cfg.w2v_args, **options)
    again.load_state_dict(model.state_dict())
    model.eval()
    with torch.no_grad():
        logits = again.get_logits(again(**net_input))
        assert torch.equal(logits, model.get_logits(model(**net_input)))
        for i, count in enumerate(COUNTS):
            alone = {"source": net_input["source"][i : i + 1, :count], "padding_mask": None}
            expected = again.get_logits(again(**alone))
            torch.testing.assert_close(
                logits[: expected.size(0), i], expected[:, 0], atol=2e-5, rtol=1e-4
            )
    check = check_macs([again], 8000)
    assert check["closed_form"] == check["fvcore"]
