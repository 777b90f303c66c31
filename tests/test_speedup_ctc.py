"""The model: stock fairseq's numbers with reductions off, exact lengths with them on."""

import numpy as np
import pytest
import torch
from fairseq.models.wav2vec.wav2vec2_asr import Wav2VecCtc
from helpers.models import batch_of, build_model, write_pretrained
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairseq_speedup.lengths import conv_stack_length

CONV_LAYERS = [(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2

reductions = st.one_of(
    st.tuples(st.just("signal"), st.sampled_from([1.5, 2.0, 2.67, 3.0, 4.0])),
    st.tuples(st.sampled_from(["conv", "average"]), st.sampled_from([2.0, 3.0, 4.0])),
    st.just(("none", 1.0)),
)


@pytest.mark.parametrize("extractor_mode", ["layer_norm", "default"])
def test_with_every_reduction_off_logits_equal_stock_wav2vec_ctc(tmp_path, extractor_mode):
    path = write_pretrained(tmp_path / "tiny.pt", extractor_mode=extractor_mode)
    ours = build_model(path, padding="stock")
    stock = build_model(path, stock=True)
    assert type(stock) is Wav2VecCtc
    assert ours.state_dict().keys() == stock.state_dict().keys()
    for ours_value, stock_value in zip(
        ours.state_dict().values(), stock.state_dict().values(), strict=True
    ):
        assert torch.equal(ours_value, stock_value)
    net_input = batch_of([9000, 7000, 4321])
    with torch.no_grad():
        found, expected = ours(**net_input), stock(**net_input)
    assert torch.equal(found["encoder_out"], expected["encoder_out"])
    assert torch.equal(found["padding_mask"], expected["padding_mask"])


DRAWS = {"dropout": 0.1, "final_dropout": 0.1, "activation_dropout": 0.1, "dropout_input": 0.1}


@pytest.mark.parametrize("more", [{}, {"checkpoint_activations": True}], ids=str)
@pytest.mark.parametrize("extractor_mode", ["layer_norm", "default"])
def test_training_equals_stock_wav2vec_ctc_and_draws_alike(tmp_path, extractor_mode, more):
    """Dropout of every kind and layerdrop, the gradient scaled on its way into the CNN."""
    pre_norm = extractor_mode == "layer_norm"
    path = write_pretrained(
        tmp_path / "tiny.pt",
        extractor_mode=extractor_mode,
        layer_norm_first=pre_norm,
        encoder_layers=4,
        dropout_features=0.1,
    )
    options = {**DRAWS, "layerdrop": 0.6, "feature_grad_mult": 0.5, "apply_mask": False, **more}
    outputs, gradients = [], []
    for model in (
        build_model(path, padding="stock", **options),
        build_model(path, True, **options),
    ):
        model.train().set_num_updates(1)
        torch.manual_seed(3)
        np.random.seed(6)
        output = model(**batch_of([9000, 7000, 4321]))["encoder_out"]
        output.square().mean().backward()
        outputs.append(output)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert torch.equal(*outputs)
    ours, theirs = gradients
    assert ours.keys() == theirs.keys()
    missing = {name for name, gradient in theirs.items() if gradient is None}
    assert any(".layers." in name for name in missing)  # a layer was dropped
    for name, gradient in theirs.items():
        assert (ours[name] is None) if gradient is None else torch.equal(ours[name], gradient), name


def test_weights_frozen_for_some_updates_get_no_gradient_but_the_head(pretrained):
    model = build_model(pretrained, freeze_finetune_updates=5).train()
    for num_updates, frozen in ((4, True), (5, False)):
        model.set_num_updates(num_updates)
        model.zero_grad(set_to_none=True)
        model(**batch_of([9000]))["encoder_out"].square().mean().backward()
        assert model.w2v_encoder.proj.weight.grad is not None
        projection = model.w2v_encoder.w2v_model.post_extract_proj.weight
        assert (projection.grad is None) == frozen


def closed_form(method, factor, num_samples):
    """Encoder frames, derived anew: the reductions of the study as they are described."""
    if method == "signal":
        ratio = round(factor * 100)
        num_samples = -(-num_samples * 100 // ratio)
    elif method == "conv":
        num_samples = (num_samples - 161) // int(factor) + 1
    elif method == "average":
        kernel = 12 if factor == 4 else 10
        num_samples = (num_samples + 4 - kernel) // int(factor) + 1
    for _, kernel, stride in CONV_LAYERS:
        num_samples = (num_samples - kernel) // stride + 1
    return num_samples


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    reductions,
    st.sampled_from([1, 2, 3]),
    st.lists(st.integers(2000, 9000), min_size=1, max_size=4),
)
def test_lengths_equal_the_closed_form_and_the_output_alone_and_padded(
    pretrained, reduction, logit_upsample, counts
):
    method, factor = reduction
    model = build_model(
        pretrained, downsample=method, downsample_factor=factor, logit_upsample=logit_upsample
    ).eval()
    net_input = batch_of(counts)
    with torch.no_grad():
        batch = model(**net_input)
        logits = model.get_logits(batch)
        for i, count in enumerate(counts):
            frames = closed_form(method, factor, count) * logit_upsample
            assert model.w2v_encoder.output_lengths(count) == frames
            mask = batch["padding_mask"]
            valid = logits.size(0) if mask is None else int((~mask[i]).sum())
            assert valid == frames
            alone = model(source=net_input["source"][i : i + 1, :count], padding_mask=None)
            assert alone["encoder_out"].size(0) == frames
            # with a layer-norm front-end, logits do not depend on the batch
            torch.testing.assert_close(
                logits[:frames, i], alone["encoder_out"][:, 0], atol=2e-5, rtol=1e-4
            )


def test_padding_that_holds_noise_does_not_reach_the_logits(pretrained):
    model = build_model(pretrained, downsample="signal", downsample_factor=2.0).eval()
    net_input = batch_of([8000, 5000])
    noisy = net_input["source"].clone()
    noisy[1, 5000:] = torch.randn(3000)
    frames = model.w2v_encoder.output_lengths(5000)
    with torch.no_grad():
        clean = model(**net_input)["encoder_out"][:frames, 1]
        found = model(source=noisy, padding_mask=net_input["padding_mask"])["encoder_out"]
    torch.testing.assert_close(found[:frames, 1], clean)


def test_a_learned_reduction_is_trained_and_the_front_end_stays_frozen(pretrained):
    model = build_model(pretrained, downsample="conv", downsample_factor=2.0).train()
    model(**batch_of([8000, 5000]))["encoder_out"].sum().backward()
    assert model.w2v_encoder.waveform_reduction.conv.weight.grad.abs().sum() > 0
    front_end = model.w2v_encoder.w2v_model.feature_extractor
    assert all(p.grad is None for p in front_end.parameters())
    layers = model.w2v_encoder.w2v_model.encoder.layers
    assert all(p.grad is not None for p in layers.parameters())


def test_the_front_end_is_trained_where_feature_grad_mult_asks_for_it(pretrained):
    model = build_model(pretrained, downsample="conv", downsample_factor=2.0, feature_grad_mult=1.0)
    model.train()(**batch_of([8000]))["encoder_out"].sum().backward()
    front_end = model.w2v_encoder.w2v_model.feature_extractor
    assert all(p.grad is not None for p in front_end.parameters())


@pytest.mark.parametrize("method", ["none", "signal", "conv", "average"])
def test_an_utterance_shorter_than_one_frame_is_refused(pretrained, method):
    factor = 1.0 if method == "none" else 2.0
    model = build_model(pretrained, downsample=method, downsample_factor=factor).eval()
    needed = model.w2v_encoder.needed_samples()
    with torch.no_grad():
        assert model(**batch_of([needed]))["encoder_out"].size(0) == 1
        with pytest.raises(ValueError, match=f"{needed - 1} samples is shorter.*{needed} samples"):
            model(**batch_of([8000, needed - 1]))


def test_conv_stack_of_the_public_models_is_20_ms():
    layers = [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2
    assert conv_stack_length(16000, layers) == 49
    assert conv_stack_length(400, layers) == 1
