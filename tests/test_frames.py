"""Frame pooling: windows worked out by hand, and nothing lost at the edges."""

import pytest
import torch
from helpers.models import batch_of, build_model, write_pretrained
from torch import nn

from fairseq_speedup.frames.pooling import FRAME_POOLS, Upsampling
from fairseq_speedup.macs import MacCounter

COUNTS = [9000, 4000, 7000, 5500, 8000]


@pytest.mark.parametrize("method", sorted(FRAME_POOLS))
def test_pooling_begins_as_the_mean_of_valid_frames(method):
    frames = torch.tensor([[1.0, 2, 3, 4, 5, 0], [1, 0, 0, 0, 0, 0]])[:, :, None].expand(2, 6, 4)
    pooled = FRAME_POOLS[method](4, 3)(frames, torch.tensor([5, 1]))
    expected = torch.tensor([[2.0, 4.5], [1, 0]])[:, :, None].expand(2, 2, 4)
    torch.testing.assert_close(pooled, expected)


def test_a_window_that_is_not_full_is_given_the_bias_of_learned_pooling_once():
    pool = FRAME_POOLS["conv"](4, 3)
    nn.init.constant_(pool.conv.bias, 7.0)
    frames = torch.tensor([[1.0, 2, 3, 4, 0, 0]])[:, :, None].expand(1, 6, 4)
    assert pool(frames, torch.tensor([4]))[0, :, 0].tolist() == pytest.approx([2 + 7, 4 + 7])


def test_upsampling_begins_as_repetition():
    upsampled = Upsampling(4, 3)(torch.tensor([[[1.0] * 4, [2.0] * 4]]))
    assert upsampled[0, :, 0].tolist() == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("conv_pos", [7, 8])
def test_the_positional_convolution_sees_unpooled_frames_with_a_stride(tmp_path, factor, conv_pos):
    path = write_pretrained(tmp_path / "tiny.pt", conv_pos=conv_pos)
    plain, pooled = build_model(path), build_model(path, frame_pool=factor)
    positions = {}
    for model in (plain, pooled):
        model.w2v_encoder.w2v_model.encoder.pos_conv.register_forward_hook(
            lambda _, args, output, model=model: positions.update({model: output})
        )
        model(**batch_of([8000]))
    expected = positions[plain][:, :, ::factor]
    torch.testing.assert_close(positions[pooled], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"frame_pool_method": "conv"}, {"logit_upsample": 2}])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_an_utterance_gives_the_same_alone_as_in_a_batch(pretrained, options, factor):
    model = build_model(pretrained, frame_pool=factor, **options)
    for parameter in model.w2v_encoder.frame_reduction.parameters():
        nn.init.normal_(parameter, std=0.3)  # as after training
    net_input = batch_of(COUNTS)
    logits = model.get_logits(model(**net_input))
    assert logits.size(0) == model.w2v_encoder.output_lengths(max(COUNTS))
    for i, count in enumerate(COUNTS):
        alone = {"source": net_input["source"][i : i + 1, :count], "padding_mask": None}
        expected = model.get_logits(model(**alone))
        frames = expected.size(0)
        assert frames == model.w2v_encoder.output_lengths(count)
        torch.testing.assert_close(logits[:frames, i], expected[:, 0], atol=1e-5, rtol=1e-4)


def test_the_transformer_is_given_as_many_frames_as_the_formula_says(pretrained):
    model = build_model(pretrained, frame_pool=3)
    seen = []
    for layer in model.w2v_encoder.w2v_model.encoder.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].size(0)))
    model(**batch_of([8000]))
    frames = model.w2v_encoder.frame_lengths(8000)
    expected = -(-frames // 3)
    assert seen == [expected + expected % 2] * 2  # fairseq rounds up to even


def test_the_transformer_costs_less_and_the_front_end_the_same(pretrained):
    whole, pooled = build_model(pretrained), build_model(pretrained, frame_pool=2)
    before, after = (MacCounter(m).count([160000]).sum() for m in (whole, pooled))
    assert after.transformer < 0.52 * before.transformer
    assert after.front_end == before.front_end
    assert after.head == before.head
    windows = -(-whole.w2v_encoder.frame_lengths(160000) // 2)
    assert after.frame_reduction == windows * 16 * 32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frame_pool": 0}, "frame_pool=0 is out of range; it must be a whole number, 1 to 64"),
        (
            {"frame_pool": 2, "frame_pool_method": "max"},
            "unknown frame_pool_method='max'; valid values: conv, mean",
        ),
        ({"frame_pool_method": "conv"}, "frame_pool_method=conv with frame_pool=1 changes nothing"),
    ],
)
def test_pooling_that_means_nothing_is_refused_in_words(pretrained, options, words):
    with pytest.raises(ValueError, match=words):
        build_model(pretrained, **options)
