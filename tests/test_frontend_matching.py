"""The CNN behind a shortened waveform learns to give what the old one gave of all of it."""

from fractions import Fraction

import pytest
import torch
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from helpers.models import Labels, batch_of, build_model, finetuned_state, write_pretrained
from omegaconf import OmegaConf
from torch import nn

from fairseq_speedup.criterions.frontend_match import FrontEndMatchCriterion
from fairseq_speedup.frontend.matching import forget_momentum
from fairseq_speedup.lengths import FrameGrid
from fairseq_speedup.pruning.cut import cut

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


@torch.no_grad()
@pytest.mark.parametrize("extractor_mode", ["layer_norm", "default"])
@pytest.mark.parametrize("options", SHORTENED)
def test_an_utterance_is_matched_alone_as_in_a_padded_batch(tmp_path, extractor_mode, options):
    path = write_pretrained(tmp_path / "tiny.pt", extractor_mode=extractor_mode)
    model = matching(path, **options)
    net_input = batch_of(COUNTS)
    output = model(**net_input, match_frontend=True)
    for i, count in enumerate(COUNTS):
        alone = {"source": net_input["source"][i : i + 1, :count], "padding_mask": None}
        expected = model(**alone, match_frontend=True)
        frames = model.w2v_encoder.frame_lengths(count)
        assert (~output["padding_mask"][i]).sum() == (~expected["padding_mask"]).sum() == frames
        for name in ("matched", "target"):
            found = output[name][i, :frames]
            torch.testing.assert_close(found, expected[name][0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_cnn_that_hears_the_whole_waveform_is_matched_from_the_start(pretrained):
    options = CONV2 | {"downsample_factor": 1.0, "downsample_factors": [1.0, 2.0]}
    model = matching(pretrained, **options).eval()  # so at downsample_factor=1
    net_input = batch_of(COUNTS)
    output = model(**net_input, match_frontend=True)
    valid = ~output["padding_mask"]
    assert valid.sum() == sum(model.w2v_encoder.frame_lengths(count) for count in COUNTS)
    torch.testing.assert_close(output["matched"][valid], output["target"][valid])
    model.train()
    drawn = {}
    for update in range(8):  # each matches the factor that it draws
        model.set_num_updates(update)
        output = model(**net_input, match_frontend=True)
        error = (output["matched"] - output["target"])[~output["padding_mask"]].square().mean()
        drawn[model.w2v_encoder.waveform_reduction.factor] = error.item(), output["target"].size(1)
    assert drawn[1.0] == (pytest.approx(0, abs=1e-9), model.w2v_encoder.cnn.output_lengths(9000))
    assert drawn[2.0][0] > 0.1


@torch.no_grad()
@pytest.mark.parametrize("counts", [[9000], COUNTS])
def test_a_constant_waveform_is_matched_from_the_start(pretrained, counts):
    """Of which a shorter one is the same again, as long as the filter lies within it."""
    model = matching(pretrained, **CONV2)
    net_input = batch_of(counts)
    net_input["source"] = torch.full_like(net_input["source"], 0.3)
    output = model(**net_input, match_frontend=True)
    valid = ~output["padding_mask"]
    frame = output["target"][0, 0]
    assert frame.abs().max() > 0.1
    for name in ("matched", "target"):
        found = output[name][valid]
        torch.testing.assert_close(found, frame.expand_as(found), atol=1e-4, rtol=1e-4)
    loss, num_frames, _ = FrontEndMatchCriterion(Labels())(model, {"net_input": net_input})
    assert num_frames == sum(model.w2v_encoder.frame_lengths(count) for count in counts)
    assert loss / num_frames < 1e-8


# -- what follows ----------------------------------------------------------------------------------


def gradients(model) -> set[str]:
    """Names of the weights that a batch of fine-tuning gives a gradient."""
    model.zero_grad()
    model(**batch_of(COUNTS))["encoder_out"].square().sum().backward()
    return {name for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("options", SHORTENED)
@pytest.mark.parametrize("feature_grad_mult", [0.0, 0.1])
def test_fine_tuning_goes_on_with_the_cnn_frozen_or_not(pretrained, options, feature_grad_mult):
    options = options | {"feature_grad_mult": feature_grad_mult, "apply_mask": False}
    model = matching(pretrained, **options)
    trainable = [weight.requires_grad for weight in model.parameters()]
    assert all(trainable)  # an optimiser has them all, in every run that goes on with this
    learn(model, batch_of(COUNTS), 2)
    assert model.w2v_encoder.end_matching() == (feature_grad_mult == 0)
    assert gradients(model) == gradients(build_model(pretrained, **options).train())
    assert [weight.requires_grad for weight in model.parameters()] == trainable


@pytest.mark.parametrize("options", SHORTENED)
def test_the_checkpoint_is_that_of_a_model_which_is_not_matched(pretrained, options):
    names = build_model(pretrained, **options).state_dict().keys()
    model = matching(pretrained, **options)
    assert model.state_dict().keys() == names
    again = OmegaConf.create(OmegaConf.to_container(model.cfg))
    decoding = type(model).build_model(again, Labels())  # its config holds the pretraining's
    assert decoding.w2v_encoder.cnn_teacher is None


def test_a_resumed_optimiser_has_the_same_weights(pretrained):
    """fairseq tells a model its updates before it makes the optimiser."""
    model = matching(pretrained, **CONV2, feature_grad_mult=0.0)
    model.set_num_updates(500)
    assert all(weight.requires_grad for weight in model.parameters())


def test_momentum_moves_no_weight_that_has_learned():
    weight = nn.Parameter(torch.ones(3))
    optimizer = FairseqAdam(FairseqAdamConfig(lr=[0.1], adam_betas="(0.9, 0.98)"), [weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    matched = weight.detach().clone()
    assert (matched < 0.95).all()
    forget_momentum(optimizer)
    weight.grad = torch.zeros(3)  # as of several GPUs and in fp16, where no loss trains it
    optimizer.step()
    assert torch.equal(weight, matched)


def test_gates_of_pruning_are_open_while_the_cnn_is_matched(pretrained):
    found = []
    for options in ({}, {"prune_target": 0.9}):
        model = matching(pretrained, **CONV2, **options)
        found.append(model(**batch_of(COUNTS), match_frontend=True))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("feature_grad_mult", [0.0, 1.0])
def test_a_model_that_is_pruned_afterwards_is_matched(pretrained, feature_grad_mult):
    options = {"prune_target": 0.9, "feature_grad_mult": feature_grad_mult, "apply_mask": False}
    model = matching(pretrained, **CONV2, **options)
    before = weights_of(model)
    errors = learn(model, batch_of(COUNTS), 25)
    assert errors[-1] < 0.8 * errors[0]
    assert changes(model, before) == {name for name in before if name.startswith((CNN, FILTER))}
    model.w2v_encoder.end_matching()
    trained = {name for name in gradients(model) if name.startswith(CNN)}
    assert bool(trained) == (feature_grad_mult > 0)
    assert any(name.startswith("w2v_encoder.pruning.channels.") for name in gradients(model))


@torch.no_grad()
def test_the_teacher_follows_the_model_to_its_device_and_precision(pretrained):
    model = matching(pretrained, **CONV2).to(torch.bfloat16)
    net_input = batch_of(COUNTS)
    net_input["source"] = net_input["source"].to(torch.bfloat16)
    output = model(**net_input, match_frontend=True)
    assert output["matched"].dtype == torch.bfloat16
    expected = matching(pretrained, **CONV2)(**batch_of(COUNTS), match_frontend=True)["target"]
    torch.testing.assert_close(output["target"], expected, atol=0.1, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cnn_is_matched_on_a_gpu(pretrained):
    net_input = {name: each.cuda() for name, each in batch_of(COUNTS).items()}
    for options in SHORTENED:
        errors = learn(matching(pretrained, **options).cuda(), net_input, 25)
        assert errors[-1] < 0.8 * errors[0]


def test_a_cnn_that_has_learned_a_shorter_waveform_is_no_teacher(pretrained, tmp_path):
    model = build_model(pretrained, **CONV2, prune_target=0.9)
    model.w2v_encoder.pruning.settle()
    cut(model)
    state = finetuned_state(model, "speedup_ctc")
    torch.save(state, tmp_path / "cut.pt")
    words = "frontend_match_updates=100: the CNN of .*cut.pt was trained with downsample=conv"
    with pytest.raises(ValueError, match=words):
        matching(tmp_path / "cut.pt", **CONV2)


def test_a_checkpoint_with_another_cnn_than_the_teachers_is_named(pretrained, tmp_path, caplog):
    model = matching(pretrained, **SIGNAL)
    model.w2v_encoder.begin_matching()
    assert not caplog.text
    other = build_model(write_pretrained(tmp_path / "other.pt", seed=5), **SIGNAL)
    model.load_state_dict(other.state_dict())  # as of checkpoint.finetune_from_model
    model.w2v_encoder.begin_matching()
    assert "CNN of checkpoint.finetune_from_model is not that of model.w2v_path" in caplog.text
