"""The CNN behind a shortened waveform learns to give what the old one gave of all of it."""

from fractions import Fraction

import pytest
import torch
from helpers.models import Labels, batch_of, build_model, write_pretrained
from torch import nn

from fairseq_speedup.criterions.frontend_match import FrontEndMatchCriterion
from fairseq_speedup.lengths import FrameGrid

COUNTS = [9000, 4000, 7000, 5500, 8000]
CONV2 = {"downsample": "conv", "downsample_factor": 2.0}
SIGNAL = {"downsample": "signal", "downsample_factor": 2.67}
AVERAGE3 = {"downsample": "average", "downsample_factor": 3.0}
SHORTENED = [CONV2, SIGNAL, AVERAGE3]
CNN = "w2v_encoder.w2v_model.feature_extractor."
FILTER = "w2v_encoder.waveform_reduction.conv."


def matching(w2v_path, **options):
    """A model in its first updates."""
    return build_model(w2v_path, **({"frontend_match_updates": 100} | options)).train()


def learn(model, net_input, updates: int) -> list[float]:
    """Mean squared errors of updates with the criterion of matching."""
    criterion = FrontEndMatchCriterion(Labels())
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=3e-3)
    errors = []
    for update in range(updates):
        model.set_num_updates(update)
        optimizer.zero_grad()
        loss, num_frames, log = criterion(model, {"net_input": net_input})
        (loss / num_frames).backward()
        optimizer.step()
        errors.append(log["frontend_loss"] / log["sample_size"])
    return errors


def changes(model, before: dict) -> set[str]:
    return {n for n, weight in model.named_parameters() if not torch.equal(weight, before[n])}


def weights_of(model) -> dict:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


# -- frames of the same time -----------------------------------------------------------------------


def test_frames_share_the_samples_that_both_stand_for():
    cnn = FrameGrid(Fraction(399, 2), Fraction(320))  # frame 0 stands for samples 39.5 to 359.5
    conv2 = FrameGrid(Fraction(479), Fraction(640))  # for 159 to 799
    assert conv2.overlap(2, cnn, 5).tolist() == [
        [200.5, 320, 119.5, 0, 0],
        [0, 0, 200.5, 320, 119.5],
    ]
    thirds = FrameGrid(Fraction(1, 3), Fraction(2, 3))  # 0 to 2/3, 2/3 to 4/3
    assert torch.equal(thirds.overlap(2, thirds, 2), torch.eye(2) * 2 / 3)


@pytest.mark.parametrize("options", SHORTENED)
@pytest.mark.parametrize("frozen", ["feature_grad_mult", "freeze_finetune_updates"])
@pytest.mark.parametrize("extractor_mode", ["layer_norm", "default"])
def test_the_cnn_and_the_filter_learn_and_nothing_else(tmp_path, extractor_mode, options, frozen):
    path = write_pretrained(tmp_path / "tiny.pt", extractor_mode=extractor_mode)
    frozen = {"feature_grad_mult": 0.0, "freeze_finetune_updates": 0} | (
        {"feature_grad_mult": 1.0, "freeze_finetune_updates": 50} if "freeze" in frozen else {}
    )
    model = matching(path, **options, **frozen)
    before = weights_of(model)
    errors = learn(model, batch_of(COUNTS), 25)
    assert errors[-1] < 0.8 * errors[0]
    assert changes(model, before) == {name for name in before if name.startswith((CNN, FILTER))}
    assert not [name for name in model.state_dict() if "teacher" in name]


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("method", ["signal", "conv", "average"])
def test_what_a_frame_is_to_match_lies_where_the_frame_lies(pretrained, method, factor):
    """Frames of the old CNN that tell their time: a mean of them tells that of the new frame."""
    model = matching(pretrained, downsample=method, downsample_factor=float(factor))
    encoder = model.w2v_encoder
    encoder.w2v_model.layer_norm = nn.Identity()
    cnn, grid = encoder.cnn_teacher.cnn, encoder.frame_grid()
    encoder.cnn_teacher.feature_extractor = lambda waveform: (
        199.5 + 320 * torch.arange(cnn.output_lengths(waveform.size(1))).float().expand(5, 1, -1)
    )
    output = model(**batch_of(COUNTS), match_frontend=True)
    for i, count in enumerate(COUNTS):
        frames = encoder.frame_lengths(count)
        times = torch.tensor([float(grid.first + n * grid.step) for n in range(frames)])
        # at the end the old CNN may have no frame any more for all of the last one
        torch.testing.assert_close(output["target"][i, : frames - 1, 0], times[:-1])
        assert abs(output["target"][i, frames - 1, 0] - times[-1]) < 320
        assert (
            output["padding_mask"][i].tolist()
            == [n >= frames for n in range(26)][: len(output["padding_mask"][i])]
        )
