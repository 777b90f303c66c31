"""Models that their authors publish pruned: what of them is not in test_families.py."""

import pytest
import torch
from helpers.models import batch_of, build_model

pytest.importorskip("transformers")
from public_checkpoints import FORMS, HEADS_LEFT, UNITS_LEFT, reference, write_form

from fairseq_speedup.__main__ import main
from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.frontend.matching import normalised
from fairseq_speedup.inspection.facts import inspect_file
from fairseq_speedup.inspection.layers import sizes_by_layer
from fairseq_speedup.inspection.words import text as as_text
from fairseq_speedup.pretrained import read_file

PRUNED = [form for form in FORMS if form.startswith("dp")]


@pytest.fixture(params=PRUNED)
def saved(request, tmp_path):
    """Path and what is in it."""
    path = tmp_path / "public.pth"
    write_form(path, request.param, reference(request.param))
    return path, torch.load(path)


def normalised_waveforms(path) -> bool:
    return bool(read_file(str(path)).cfg.task.normalize)


@torch.no_grad()
def test_channels_after_the_last_convolution_are_scaled(saved):
    path, state = saved
    normalize = normalised_waveforms(path)
    source, lengths = batch_of([9000])["source"], torch.tensor([9000])
    plain = build_model(path, normalize=normalize)
    scale = torch.rand(8) + 0.5
    state["state_dict"]["feature_extractor.dummy_weight"] = scale
    torch.save(state, path)
    model = build_model(path, normalize=normalize)
    frames, _, _ = model.w2v_encoder.frames(source, lengths)
    w2v = plain.w2v_encoder.w2v_model
    channels = w2v.feature_extractor(source).transpose(1, 2) * scale
    expected = w2v.post_extract_proj(w2v.layer_norm(channels))
    torch.testing.assert_close(frames, expected, atol=1e-6, rtol=1e-5)
    assert (frames - plain.w2v_encoder.frames(source, lengths)[0]).abs().max() > 0.01
    again = build_model("lost.pt", normalize=normalize, w2v_args=model.cfg.w2v_args)
    again.load_state_dict(model.state_dict())  # as a checkpoint of ours carries it
    torch.testing.assert_close(again.w2v_encoder.frames(source, lengths)[0], frames)


@torch.no_grad()
def test_a_cnn_is_matched_as_the_projection_hears_it(saved):
    path, state = saved
    state["state_dict"]["feature_extractor.dummy_weight"] = torch.rand(8) + 0.5
    torch.save(state, path)
    w2v = build_model(path, normalize=normalised_waveforms(path)).w2v_encoder.w2v_model
    channels = torch.randn(2, 8, 5)
    expected = w2v.layer_norm(channels.transpose(1, 2))
    torch.testing.assert_close(normalised(channels, w2v.layer_norm), expected)


def test_inspect_tells_its_sizes(saved):
    path, _ = saved
    report = inspect_file(str(path))
    assert report["error"] is None and report["safe"]
    sizes = sizes_by_layer(report)
    assert sizes["attention heads"] == [len(heads) for heads in HEADS_LEFT]
    assert sizes["feed-forward units"] == UNITS_LEFT
    assert "before it was published; heads of each layer 2 1 0 1; units 32 20 0 5" in as_text(
        report
    )


def test_it_becomes_no_folder_and_is_not_pruned_again(saved, tmp_path, capsys):
    path, _ = saved
    assert main(["convert", str(path), str(tmp_path / "folder")]) == 1
    assert "layers have heads and units in several numbers" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is cut already"):
        build_model(path, normalize=normalised_waveforms(path), prune_target=0.5)


FAULTS = [
    ({"encoder_embed_dim": None}, "its config has no encoder_embed_dim"),
    ({"encoder_embed_dim": "16"}, "encoder_embed_dim is 16; it must be a whole number"),
    ({"encoder_embed_dim": 10**9}, "encoder_embed_dim is 1000000000; it must be a whole number"),
    ({"encoder_pos_conv_kernel": 0}, "encoder_pos_conv_kernel is 0; it must be a whole number"),
    ({"encoder_pos_conv_groups": 3}, "it must be a divisor of encoder_embed_dim=16"),
    ({"encoder_dropout": 4}, "encoder_dropout is 4; it must be a number from 0 to 1"),
    ({"encoder_layer_drop": "x"}, "encoder_layer_drop is x; it must be a number from 0 to 1"),
    ({"normalize_waveform": "x"}, "normalize_waveform is x; it must be true or false"),
    ({"encoder_use_attention": [1] * 4}, "encoder_use_attention .* a list of bool"),
    ({"encoder_use_attention": [False] * 4}, "encoder_use_attention and the sizes say"),
    ({"encoder_use_feed_forward": [False] * 4}, "encoder_use_feed_forward and the sizes say"),
    ({"extractor_mode": ["group_norm"]}, "it must be group_norm or layer_norm"),
    ({"extractor_mode": "batch_norm"}, "it must be group_norm or layer_norm"),
    ({"extractor_conv_layer_config": "os"}, "it must be a list of .dim, kernel, stride."),
    (
        {"extractor_conv_layer_config": [["os"]]},
        "it must be a list of .dim, kernel, stride., each a number",
    ),
    ({"encoder_ff_interm_features": [1, 2]}, "it must be a list, one for each of 4 layers"),
    ({"encoder_ff_interm_features": [1, 2, 3, -4]}, "a list of numbers from 0 to"),
    (
        {"encoder_num_layers": 0, "encoder_use_attention": []},
        "encoder_num_layers is 0; it must be a whole number from 1",
    ),
]
HEADS = {
    "dphubert": [
        ({"encoder_num_heads": [2, 2, 2, 3]}, "at most 2 for each layer"),
        ({"encoder_head_dim": 5}, "it must be a divisor of encoder_embed_dim=16"),
    ],
    "dpwavlm": [
        ({"encoder_remaining_heads": [[0]]}, "it must be a list for each of 4 layers"),
        ({"encoder_remaining_heads": [[0], [2], [], []]}, "heads from 0 to 1"),
        ({"encoder_num_buckets": None}, "its config has no encoder_num_buckets"),
        ({"encoder_max_distance": "x"}, "encoder_max_distance is x; it must be a whole number"),
        ({"encoder_max_distance": 8}, "it must be more than a quarter of encoder_num_buckets=32"),
        ({"encoder_total_num_heads": 10**9}, "encoder_total_num_heads is 1000000000; it must be"),
        ({"encoder_remaining_heads": [None] * 4}, "it must be a list for each of 4 layers"),
        ({"encoder_remaining_heads": None}, "its config has no encoder_remaining_heads"),
    ],
}


@pytest.mark.parametrize(
    ("form", "fields", "message"),
    [
        (form, *fault)
        for form in ("dphubert, authors", "dpwavlm, authors")
        for fault in [*FAULTS, *HEADS[form.split(",")[0]]]
    ],
)
def test_a_config_that_is_not_whole_is_named(tmp_path, form, fields, message):
    path = tmp_path / "public.pth"
    write_form(path, form, reference(form))
    state = torch.load(path)
    state["config"] |= fields
    state["config"] = {name: value for name, value in state["config"].items() if value is not None}
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=message):
        build_model(path)


def test_weights_that_do_not_fit_are_named(saved):
    path, state = saved
    state["state_dict"].pop("encoder.transformer.layers.0.attention.q_proj.weight")
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"missing: encoder\.layers\.0\.self_attn\.q_proj"):
        build_model(path, normalize=normalised_waveforms(path))
    state["state_dict"] = {1: torch.ones(2)}
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="state_dict holds no weights by their names"):
        build_model(path)
    state["state_dict"] = "no weights"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="state_dict holds no weights by their names"):
        build_model(path)
