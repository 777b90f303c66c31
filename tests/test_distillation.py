"""Distilled students and teachers of reduced models."""

import itertools
import re
import shutil

import pytest
import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from helpers.commands import (
    REPO,
    USER_DIR,
    fairseq_command,
    generate,
    last_checkpoint,
    run_command,
    train,
)
from helpers.models import (
    Labels,
    batch_of,
    build_model,
    build_student,
    task_of,
    write_finetuned,
    write_pretrained,
)
from omegaconf import OmegaConf

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.config import reductions
from fairseq_speedup.criterions.ctc_distillation import (
    CtcDistillationConfig,
    CtcDistillationCriterion,
)
from fairseq_speedup.criterions.distillation import (
    HeadFrames,
    head_input,
    hidden_distance,
    matching_frames,
    posterior_distance,
)
from fairseq_speedup.criterions.layer_distillation import (
    LayerDistillationConfig,
    LayerDistillationCriterion,
)
from fairseq_speedup.lengths import padding_mask_of
from fairseq_speedup.models.loading import load_finetuned
from fairseq_speedup.tasks import SpeedupFinetuningConfig, SpeedupFinetuningTask


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_pretrained(tmp_path_factory.mktemp("teacher") / "six.pt", encoder_layers=6)


@torch.no_grad()
def test_a_student_begins_as_the_first_layers_of_its_teacher(teacher):
    student = build_student(teacher).eval()
    whole = build_model(teacher).w2v_encoder.w2v_model
    net_input = batch_of([9000, 6000])
    found = student(**net_input)
    layers = whole.extract_features(**net_input)["layer_results"]
    torch.testing.assert_close(
        student.student.extract_features(**net_input)["x"], layers[1][0].transpose(0, 1)
    )
    for layer in (3, 6):
        expected = layers[layer - 1][0].transpose(0, 1)
        torch.testing.assert_close(found["target"][str(layer)], expected)
        assert found["predicted"][str(layer)].shape == expected.shape


def test_the_teacher_is_no_part_of_the_checkpoint_and_is_not_trained(teacher):
    student = build_student(teacher).train()
    assert {name.split(".")[0] for name in student.state_dict()} == {"student", "heads"}
    assert not student.teacher[0].training
    assert len(student.teacher[0].encoder.layers) == 6
    assert len(build_student(teacher, predict_layers="2,4").teacher[0].encoder.layers) == 4
    student.double()
    assert next(student.teacher[0].parameters()).dtype == torch.double


def test_the_loss_is_the_papers(teacher):
    student = build_student(teacher).eval()
    cfg = OmegaConf.structured(LayerDistillationConfig(cosine_weight=0.5))
    criterion = LayerDistillationCriterion(cfg, Labels())
    net_input = batch_of([9000, 6000])
    loss, num_frames, log = criterion(student, {"net_input": net_input})
    output = student(**net_input)
    valid = ~output["padding_mask"]
    assert num_frames == int(valid.sum())
    expected = 0
    for layer in ("3", "6"):
        ours, theirs = output["predicted"][layer][valid], output["target"][layer][valid]
        l1 = (ours - theirs).abs().mean(dim=1).sum()
        similarity = F.cosine_similarity(ours, theirs)
        expected += (l1 - 0.5 * torch.sigmoid(similarity).log().sum()) / 2
        assert log[f"l1_layer_{layer}"] == pytest.approx(l1.item(), rel=1e-4)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"student_layers": 6}, "student_layers=6 is out of range: it must be 1 to 5"),
        ({"student_layers": 0}, "student_layers=0 is out of range"),
        ({"predict_layers": "0,3"}, "predict_layers=0,3 is out of range.*layers 1 to 6"),
        ({"predict_layers": "7"}, "predict_layers=7 is out of range"),
        ({"predict_layers": "last"}, "predict_layers=last is neither"),
        ({"normalize": False}, "task.normalize=False disagrees"),
    ],
)
def test_students_that_cannot_be_made_are_refused_in_words(teacher, options, words):
    with pytest.raises(ValueError, match=words):
        build_student(teacher, **options)


def test_a_student_is_made_with_hydra_fine_tuned_and_decoded(tmp_path, corpus, teacher):
    done = run_command(
        fairseq_command("fairseq-hydra-train"),
        "--config-dir",
        REPO / "config/distillation",
        "--config-name",
        "base",
        "common.cpu=true",
        "common.fp16=false",
        "common.log_interval=1",
        f"common.user_dir={USER_DIR}",
        f"task.data={corpus}",
        "task.normalize=true",
        "dataset.num_workers=0",
        "dataset.batch_size=4",
        "distributed_training.distributed_world_size=1",
        "optimization.max_update=4",
        "optimization.update_freq=[1]",
        "lr_scheduler.total_num_update=4",
        "lr_scheduler.warmup_updates=1",
        f"model.w2v_path={teacher}",
        'model.predict_layers="3,6"',
        f"hydra.run.dir={tmp_path}/student",
        f"checkpoint.save_dir={tmp_path}/student",
    )
    assert re.search(r'"train_l1_layer_6"', done.stdout + done.stderr)
    student = tmp_path / "student/checkpoint_last.pt"
    state = torch.load(student)
    assert not [name for name in state["model"] if name.startswith("teacher")]
    tuned = build_model(student)
    assert len(tuned.w2v_encoder.w2v_model.encoder.layers) == 2
    ours = tuned.w2v_encoder.w2v_model.encoder.layers[1].fc1.weight
    assert torch.equal(ours, state["model"]["student.encoder.layers.1.fc1.weight"])
    train(tmp_path / "tuned", corpus, student, "model.head=bilstm", "model.head_dim=8")
    student.unlink()
    results = generate(corpus, tmp_path / "tuned/checkpoints/checkpoint_last.pt")
    assert "decoded 11 utterances" in results.stdout


S3PRL_CONFIG = {
    "extractor_mode": "default",
    "extractor_conv_feature_layers": "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2",
    "extractor_dropout": 0.0,
    "feature_grad_mult": 0.1,
    "conv_pos": 8,
    "conv_pos_groups": 2,
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 2,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "dropout": 0.1,
    "final_dim": 16,
    "out_layer_type": "expand-last",
    "n_tasks": 3,
    "task_emb_type": "expand-last",
    "pred_layer_id": [4, 8, 12],
}


def write_s3prl(path, extra=None, **config):
    """A DistilHuBERT in the form of s3prl's checkpoints, with the weights of a wav2vec 2.0."""
    whole = write_pretrained(path.with_suffix(".w2v"), normalize=False, extractor_mode="default")
    weights = {
        name: weight
        for name, weight in torch.load(whole)["model"].items()
        if name.startswith(("feature_extractor.", "post_extract_proj.", "encoder."))
    }
    weights["output_layer.0.weight"] = torch.zeros(48, 16)
    state = {
        "Optimizer": {"state": {}, "param_groups": [{"lr": 2e-4}]},
        "Step": 200000,
        "Epoch": 17,
        "Config": {"distiller": S3PRL_CONFIG | config, "teacher": {"model": "hubert_base"}},
        "Distiller": weights | (extra or {}),
    }
    torch.save(state, path)
    return path


@torch.no_grad()
def test_distilhubert_of_s3prl_is_read_and_gives_its_own_numbers(tmp_path):
    path = write_s3prl(tmp_path / "states.ckpt")
    model = build_model(path, normalize=False)
    w2v = model.w2v_encoder.w2v_model
    weights = torch.load(path)["Distiller"]
    source = batch_of([8000])["source"]
    # as s3prl does it: no norm between the CNN and the projection
    features = w2v.feature_extractor(source).transpose(1, 2)
    projected = F.linear(
        features, weights["post_extract_proj.weight"], weights["post_extract_proj.bias"]
    )
    expected, _ = w2v.encoder(projected)
    found = w2v.extract_features(source, None)["x"]
    torch.testing.assert_close(found, expected)
    for name in ("encoder.layers.1.fc2.weight", "feature_extractor.conv_layers.0.0.weight"):
        assert torch.equal(w2v.state_dict()[name], weights[name])
    again = build_model("lost.pt", normalize=False, w2v_args=model.cfg.w2v_args, seed=5)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.w2v_encoder.w2v_model.extract_features(source, None)["x"], found)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"extra": {"task_embedding.weight": torch.zeros(1)}}, "task_embedding.weight is no wei"),
        ({"encoder_layers": 0}, "a student without transformer layers"),
        ({"encoder_embed_dim": 32}, "its weights do not fit its config"),
        (
            {"extractor_conv_feature_layers": "__import__('os')"},
            r"refused: Config\.distiller\.extr.*literals",
        ),
    ],
)
def test_a_bad_distilhubert_is_refused_in_words(tmp_path, content, words):
    path = write_s3prl(tmp_path / "states.ckpt", **content)
    with pytest.raises(CheckpointError, match=words):
        build_model(path, normalize=False)


def test_frames_match_by_the_time_they_cover():
    # 7 frames of ours and 20 of the teacher's; 5 and 14 in the shorter utterance
    windows, valid = matching_frames(torch.tensor([7, 5]), torch.tensor([20, 14]), 7)
    covered = [
        [windows[t, b][valid[t, b]].tolist() for t in range(n)] for b, n in enumerate((7, 5))
    ]
    for frames, total in zip(covered, (20, 14), strict=True):
        assert list(itertools.chain(*frames)) == list(range(total))  # each once, in order
        assert max(map(len, frames)) - min(map(len, frames)) <= 1


def test_a_model_with_more_frames_than_its_teacher_shares_them():
    windows, valid = matching_frames(torch.tensor([6]), torch.tensor([3]), 6)
    assert valid.sum(dim=2).flatten().tolist() == [1] * 6
    assert windows[:, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]


def frames_of(probabilities, hidden=None):
    """Utterances of equal length, from (T, V) tables."""
    logits = torch.tensor(probabilities).clamp(min=1e-9).log()[:, None, :]
    hidden = torch.zeros(len(logits), 1, 2) if hidden is None else hidden
    return HeadFrames({"encoder_out": logits, "padding_mask": None}, hidden, blank=0)


def test_the_teachers_least_blank_frame_counts():
    teacher = frames_of([[0.9, 0.1], [0.2, 0.8], [1.0, 0.0], [0.9, 0.1]])
    same = frames_of([[0.2, 0.8], [0.9, 0.1]])
    assert posterior_distance(same, teacher).item() == pytest.approx(0, abs=1e-6)
    other = frames_of([[0.5, 0.5], [0.9, 0.1]])
    expected = 0.2 * torch.tensor(0.2 / 0.5).log() + 0.8 * torch.tensor(0.8 / 0.5).log()
    assert posterior_distance(other, teacher).item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_frame_learns_from_no_frame_beyond_its_stretch():
    # of 3 frames the first of 2 stands for the first, and the second for the others
    teacher = frames_of([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]])
    same = frames_of([[0.9, 0.1], [0.2, 0.8]])
    assert posterior_distance(same, teacher).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("distance", [posterior_distance, hidden_distance])
def test_padding_is_no_part_of_a_distance(distance):
    generator = torch.Generator().manual_seed(0)

    def random_frames(lengths):
        frames, size = torch.tensor(lengths), (max(lengths), len(lengths), 4)
        logits, hidden = (torch.randn(size, generator=generator) for _ in range(2))
        output = {"encoder_out": logits, "padding_mask": padding_mask_of(frames, max(lengths))}
        alone = [
            HeadFrames(
                {"encoder_out": logits[:n, i : i + 1], "padding_mask": None},
                hidden[:n, i : i + 1],
                blank=0,
            )
            for i, n in enumerate(lengths)
        ]
        return HeadFrames(output, hidden, blank=0), alone

    (ours, ours_alone), (teachers, teachers_alone) = random_frames([2, 1]), random_frames([3, 2])
    alone = [distance(*each).item() for each in zip(ours_alone, teachers_alone, strict=True)]
    assert min(alone) > 0
    assert distance(ours, teachers).item() == pytest.approx(sum(alone), rel=1e-5)


@pytest.mark.parametrize("mode", ["add", "set"])
def test_what_is_compared_is_without_the_weight_of_the_blank(pretrained, mode):
    model = build_model(pretrained, blank_weight=2.0, blank_mode=mode)
    with torch.no_grad(), head_input(model) as hidden:
        output = model(**batch_of([9000, 6000]))
    frames = HeadFrames(output, hidden[0], blank=0)
    before = frames.logits.clone()
    log_probs = model.get_normalized_probs(output, log_probs=True)  # as fairseq's criterion does
    assert not torch.allclose(log_probs, torch.log_softmax(before, dim=-1))
    assert torch.equal(frames.logits, before)


def test_hidden_states_are_compared_with_the_mean_of_their_stretch():
    teacher = frames_of([[1.0]] * 4, torch.tensor([[0.0, 2], [2, 0], [1, 1], [3, 3]])[:, None])
    same = frames_of([[1.0]] * 2, torch.tensor([[1.0, 1], [2, 2]])[:, None])
    assert hidden_distance(same, teacher).item() == pytest.approx(0, abs=1e-6)
    other = frames_of([[1.0]] * 2, torch.tensor([[1.0, 1], [2, 4]])[:, None])
    cosine = 12 / (8**0.5 * 20**0.5)
    assert hidden_distance(other, teacher).item() == pytest.approx(1 + 1 - cosine, abs=1e-5)


@pytest.mark.parametrize("target", ["posteriors", "hidden"])
def test_a_reduced_model_trains_beside_a_full_one_and_is_decoded_without_it(
    tmp_path, corpus, pretrained, full, target
):
    teacher = tmp_path / "teacher.pt"
    shutil.copy(last_checkpoint(full), teacher)
    options = [
        "model.downsample=conv",
        "model.downsample_factor=2",
        "model.logit_upsample=2",
        "criterion._name=ctc_distillation",
        f"+criterion.teacher_path={teacher}",
        f"+criterion.distillation_target={target}",
    ]
    done = train(tmp_path / "reduced", corpus, pretrained, *options)
    losses = re.findall(r'"train_loss_teacher": "([\d.]+)"', done.stdout + done.stderr)
    assert losses
    assert float(losses[-1]) > 0
    teacher.unlink()
    results = generate(corpus, tmp_path / "reduced/checkpoints/checkpoint_last.pt")
    assert "decoded 11 utterances" in results.stdout


def test_a_fine_tuned_model_is_made_faster_by_one_config(tmp_path, corpus, full):
    """Its start is its teacher, which decoding does without."""
    start = tmp_path / "full.pt"
    shutil.copy(last_checkpoint(full), start)
    done = train(tmp_path / "faster", corpus, start, config="faster")
    assert re.search(r'"train_loss_teacher": "[\d.]+"', done.stdout + done.stderr)
    start.unlink()
    faster = last_checkpoint(tmp_path / "faster")
    assert load_finetuned(str(faster), "", None)[0].cfg.frame_pool == 2
    assert "decoded 11 utterances" in generate(corpus, faster).stdout


def test_hidden_states_are_learned_from_a_teacher_of_other_labels(tmp_path, corpus, full):
    data = shutil.copytree(corpus, tmp_path / "data")
    lines = (data / "dict.ltr.txt").read_text().splitlines(keepends=True)
    (data / "dict.ltr.txt").write_text("".join(reversed(lines)))
    teacher = last_checkpoint(full)
    train(tmp_path / "hidden", data, teacher, config="faster")
    assert "decoded 11 utterances" in generate(data, last_checkpoint(tmp_path / "hidden")).stdout
    options = ["+criterion.distillation_target=posteriors"]
    done = train(tmp_path / "other", data, teacher, *options, config="faster", check=False)
    assert "another order; distillation_target=hidden asks for no labels" in done.stderr


@pytest.mark.parametrize("criterion", ["ctc_exits", "ctc_distillation"])
def test_a_faster_model_with_exits_by_either_criterion(tmp_path, corpus, full, criterion):
    options = ["reduction=none", "model.exit_layers=upper", f"criterion._name={criterion}"]
    train(tmp_path / "exits", corpus, last_checkpoint(full), *options, config="faster")
    exits = load_finetuned(str(last_checkpoint(tmp_path / "exits")), "", None)[0]
    assert exits.w2v_encoder.exit_layers


def test_filterbanks_and_then_pooling_by_one_config(tmp_path, corpus, full):
    """A reduced model goes on with what it has, and what is added."""
    fbank, pooled = tmp_path / "fbank", tmp_path / "pooled"
    of_fbank = ["reduction=fbank", "model.frontend_match_updates=1", "optimization.max_update=2"]
    train(fbank, corpus, last_checkpoint(full), *of_fbank, config="faster")
    train(pooled, corpus, last_checkpoint(fbank), config="faster")
    shutil.rmtree(fbank)
    model, _, _ = load_finetuned(str(last_checkpoint(pooled)), "", None)
    assert reductions(model.cfg) == {"frontend": "fbank", "frame_pool": 2}
    assert "decoded 11 utterances" in generate(corpus, last_checkpoint(pooled)).stdout


def test_a_training_whose_updates_all_go_to_the_front_end_is_refused(tmp_path, corpus, full):
    options = ["reduction=fbank", "model.frontend_match_updates=3", "optimization.max_update=3"]
    done = train(
        tmp_path / "fbank", corpus, last_checkpoint(full), *options, config="faster", check=False
    )
    assert done.returncode
    words = r"frontend_match_updates=3 takes all of optimization.max_update=3.*disable_validation"
    assert re.search(words, done.stderr)
    assert not list((tmp_path / "fbank").rglob("*.pt"))


@torch.no_grad()
def test_a_teacher_with_exits_goes_to_its_last_layer(tmp_path, corpus, pretrained):
    dictionary = Dictionary.load(str(corpus / "dict.ltr.txt"))
    exits = {"exit_layers": "0", "exit_criterion": "layer"}
    path = str(write_finetuned(tmp_path / "full.pt", pretrained, dictionary, **exits))
    cfg = SpeedupFinetuningConfig(data="", labels="ltr", normalize=True)
    task = SpeedupFinetuningTask.with_dictionary(OmegaConf.structured(cfg), dictionary)
    criterion_cfg = CtcDistillationConfig(teacher_path=path, sentence_avg=True, post_process=None)
    (teacher,) = CtcDistillationCriterion(criterion_cfg, task).teacher
    early, last = (
        load_finetuned(path, "", overrides)[0].eval()
        for overrides in ({}, {"exit_criterion": "none"})
    )
    net_input = batch_of([9000, 6000])
    found, left, expected = (model(**net_input)["encoder_out"] for model in (teacher, early, last))
    assert not torch.allclose(left, expected, atol=1e-2)  # it would leave after the first layer
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"teacher_path": ""}, "criterion.teacher_path is empty"),
        ({"teacher_path": "lost.pt"}, "criterion.teacher_path=lost.pt: no such file"),
        ({"distillation_target": "mood"}, "distillation_target='mood'; valid values"),
        ({"distillation_weight": 0.0}, "distillation_weight=0.0 is out of range"),
    ],
)
def test_a_bad_teacher_is_refused_in_words(corpus, options, words):
    cfg = CtcDistillationConfig(sentence_avg=True, post_process=None, **options)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        CtcDistillationCriterion(cfg, task_of(corpus))


def test_a_teacher_that_is_not_fine_tuned_ends_training_in_words(tmp_path, corpus, pretrained):
    options = ["criterion._name=ctc_distillation", f"+criterion.teacher_path={pretrained}"]
    done = train(tmp_path, corpus, pretrained, *options, check=False)
    assert done.returncode
    assert "tiny.pt holds a wav2vec2 model; it must be fine-tuned" in done.stdout + done.stderr


def test_a_teacher_of_another_width_is_refused_before_training(tmp_path, corpus, pretrained):
    dictionary = Dictionary.load(str(corpus / "dict.ltr.txt"))
    path = str(write_finetuned(tmp_path / "full.pt", pretrained, dictionary))
    task = task_of(corpus)
    task.frame_dim = 7
    cfg = {"teacher_path": path, "sentence_avg": True, "post_process": None}
    with pytest.raises(ValueError, match="as wide as the model's 7; those"):
        CtcDistillationCriterion(CtcDistillationConfig(**cfg), task)
    CtcDistillationCriterion(CtcDistillationConfig(**cfg, distillation_target="posteriors"), task)
