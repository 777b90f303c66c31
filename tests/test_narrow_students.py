"""Deep and narrow students, and the Gram matrices that they learn from."""

import re

import pytest
import torch
from helpers.commands import (
    REPO,
    USER_DIR,
    fairseq_command,
    generate,
    run_command,
    train,
)
from helpers.models import (
    FAMILIES,
    Labels,
    batch_of,
    build_model,
    build_student,
    write_pretrained,
    write_wavlm,
)
from omegaconf import OmegaConf

from fairseq_speedup.architectures import architecture_config, pretraining_config
from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.criterions.gram_distillation import (
    GramDistillationConfig,
    GramDistillationCriterion,
    gram,
)
from fairseq_speedup.criterions.layer_distillation import (
    LayerDistillationConfig,
    LayerDistillationCriterion,
)
from fairseq_speedup.models import DistilledStudent
from fairseq_speedup.pretrained.students import StudentSizes, student_config

NARROW = {"student_layers": 6, "student_dim": 12, "student_ffn_dim": 20, "student_heads": 3}
STAR = NARROW | {"predict_layers": "none"}
SIX = {"encoder_layers": 6, "encoder_embed_dim": 32, "encoder_attention_heads": 2}
CONFORMER = {"layer_type": "conformer", "attn_type": "espnet", "depthwise_conv_kernel_size": 7}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_pretrained(tmp_path_factory.mktemp("teacher") / "six.pt", encoder_layers=6)


def gram_criterion(**options) -> GramDistillationCriterion:
    return GramDistillationCriterion(
        OmegaConf.structured(GramDistillationConfig(**options)), Labels()
    )


def layer_criterion() -> LayerDistillationCriterion:
    return LayerDistillationCriterion(OmegaConf.structured(LayerDistillationConfig()), Labels())


def save(student: DistilledStudent, path):
    """As fairseq's trainer writes it."""
    cfg = OmegaConf.to_container(student.cfg, resolve=False) | {"_name": "distilled_student"}
    task = {"_name": "audio_pretraining", "normalize": True, "data": ""}
    torch.save({"cfg": {"model": cfg, "task": task}, "model": student.state_dict()}, path)
    return path


# -- the student -----------------------------------------------------------------------------------


def test_a_narrow_student_begins_with_its_teachers_cnn_alone(teacher):
    student = build_student(teacher, **NARROW).student
    theirs = torch.load(teacher)["model"]
    assert len(student.encoder.layers) == 6
    layer = student.encoder.layers[5]
    assert layer.fc1.weight.shape == (20, 12)
    assert layer.self_attn.num_heads == 3
    assert student.post_extract_proj.weight.shape == (12, 8)
    for name, weight in student.state_dict().items():
        alike = name in theirs and torch.equal(weight, theirs[name])
        begun = name.startswith(("feature_extractor.", "layer_norm."))
        constant = bool((weight == weight.flatten()[0]).all())  # biases, scales
        assert alike == begun or constant, name
    assert not student.mask_emb.any()


@pytest.mark.parametrize(
    "options", [{"student_dim": 16}, {"student_ffn_dim": 32, "student_heads": 2}]
)
def test_sizes_that_are_the_teachers_leave_its_first_layers(teacher, options):
    student = build_student(teacher, **options).student
    ours = student.encoder.layers[1].fc1.weight
    assert torch.equal(ours, torch.load(teacher)["model"]["encoder.layers.1.fc1.weight"])


def test_a_narrow_student_predicts_at_its_teachers_width(teacher):
    student = build_student(teacher, **NARROW)
    found = student(**batch_of([9000, 6000]))
    for layer in ("3", "6"):
        assert found["predicted"][layer].shape == found["target"][layer].shape
    loss, _, _ = layer_criterion()(student, {"net_input": batch_of([9000, 6000])})
    loss.backward()
    assert student.student.encoder.layers[0].fc1.weight.grad.any()


TEACHERS = FAMILIES | {
    "rotary": CONFORMER | {"pos_enc_type": "rope"},
    "relative": CONFORMER | {"pos_enc_type": "rel_pos"},
}


@pytest.mark.parametrize("family", TEACHERS)
def test_narrow_students_of_all_families_are_read_back(tmp_path, family):
    write = write_wavlm if family == "wavlm" else write_pretrained
    start = write(tmp_path / "teacher.pt", **SIX, **TEACHERS[family])
    options = {**STAR, "student_layers": 3, "student_dim": 24}
    student = build_student(start, **options).eval()
    net_input = batch_of([9000, 6000])
    loss, _, _ = gram_criterion()(student, {"net_input": net_input})
    assert torch.isfinite(loss)
    again = build_model(save(student, tmp_path / "student.pt")).w2v_encoder.w2v_model
    with torch.no_grad():
        expected = student.student.extract_features(**net_input)["x"]
        found = again.extract_features(**net_input)["x"]
    torch.testing.assert_close(found[0], expected[0])  # the one without padding


def test_positions_keep_as_many_groups_as_the_width_allows(teacher):
    base = architecture_config("base")
    for dim, groups in ((432, 16), (100, 10), (97, 1)):
        sizes = StudentSizes(12, dim, heads=1)
        assert student_config(base, sizes, "the teacher").model.conv_pos_groups == groups


def test_a_narrow_student_has_nothing_of_how_its_teacher_was_cut():
    cfg = pretraining_config(True)
    variant = {
        "family": "dphubert",
        "feature_scale": True,
        "pruned": {"units": [4] * 12},
        "widths": [],
    }
    cfg = OmegaConf.merge(cfg, {"encoder_variant": variant})
    kept = student_config(cfg, StudentSizes(2), "the teacher").encoder_variant
    assert kept == variant
    narrow = student_config(cfg, StudentSizes(2, 96), "the teacher").encoder_variant
    assert narrow == {"family": "dphubert", "feature_scale": True}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"student_layers": 7}, "student_layers=7 is out of range: it must be 1 to 6, as many as"),
        ({"student_layers": 0}, "student_layers=0 is out of range"),
        ({"student_dim": 17}, "student_dim=17 is out of range: it must be 1 to 16, or 0 for what"),
        ({"student_dim": -1}, "student_dim=-1 is out of range"),
        ({"student_ffn_dim": 64}, "student_ffn_dim=64 is out of range: it must be 1 to 32"),
        ({"student_heads": 5}, "student_heads=5 does not divide student_dim=12; .*: 1, 2, 3, 4, 6"),
        ({"student_heads": 0, "student_dim": 9}, "student_heads=0, the teacher's 2, does not divi"),
        ({"student_heads": -1}, "student_heads=-1 is out of range"),
        (
            {"student_layers": 4, "predict_layers": "none"},
            "student_layers=4 cannot be matched.*: 1",
        ),
        ({"predict_layers": "none", "layerdrop": 0.1}, "layerdrop=0.1 leaves out layers"),
        ({"predict_layers": "None"}, "predict_layers=None is neither none, one layer nor a list"),
    ],
)
def test_narrow_students_that_cannot_be_made_are_refused_in_words(teacher, options, words):
    with pytest.raises(ValueError, match=words):
        build_student(teacher, **(NARROW | options))


def test_heads_of_odd_width_are_refused_where_positions_are_pairs(tmp_path):
    start = write_pretrained(tmp_path / "conformer.pt", **SIX, **TEACHERS["rotary"])
    with pytest.raises(ValueError, match=r"student_dim=12 with 4 heads.*even width, and not 3"):
        build_student(start, **(NARROW | {"student_heads": 4}))


@pytest.mark.parametrize(
    ("name", "value"), [("student_dim", "wide"), ("student_heads", 5), ("student_layers", 1 << 40)]
)
def test_a_checkpoint_with_sizes_of_no_meaning_is_refused_with_its_name(
    tmp_path, teacher, name, value
):
    path = save(build_student(teacher, **NARROW), tmp_path / "student.pt")
    state = torch.load(path)
    state["cfg"]["model"][name] = value
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=rf"student\.pt: {name}={value}"):
        build_model(path)


# -- what it learns from ---------------------------------------------------------------------------


@torch.no_grad()
def test_layers_are_matched_evenly_and_begin_with_what_the_first_is_given(teacher):
    student = build_student(teacher, **(STAR | {"student_layers": 3})).eval()
    net_input = batch_of([9000, 6000])
    found = student(**net_input)
    assert "predicted" not in found
    assert not student.heads
    whole = build_model(teacher).w2v_encoder.w2v_model
    theirs = whole.extract_features(**net_input)["layer_results"]
    assert len(found["student_layers"]) == len(found["teacher_layers"]) == 4
    for matched, index in zip(found["teacher_layers"][1:], (1, 3, 5), strict=True):
        torch.testing.assert_close(matched, theirs[index][0].transpose(0, 1))
    given = found["teacher_layers"][0]
    output, _ = whole.encoder.layers[0](
        given.transpose(0, 1), self_attn_padding_mask=found["padding_mask"]
    )
    valid = ~found["padding_mask"]
    torch.testing.assert_close(output.transpose(0, 1)[valid], theirs[0][0].transpose(0, 1)[valid])
    assert {len(each[0]) for each in found["student_layers"]} == {len(given[0])}
    assert {each.size(2) for each in found["student_layers"]} == {12}


@torch.no_grad()
@pytest.mark.parametrize("num_layers", [3, 6])
def test_the_loss_is_that_of_a_plain_loop(teacher, num_layers):
    student = build_student(teacher, **(STAR | {"student_layers": num_layers})).eval()
    net_input = batch_of([9000, 6000])
    criterion = gram_criterion(layer_weight=0.5, intra_weight=2.0)
    loss, num_frames, log = criterion(student, {"net_input": net_input})
    output = student(**net_input)
    counts = (~output["padding_mask"]).sum(dim=1).tolist()
    assert num_frames == log["sample_size"] == sum(counts)
    assert log["nsentences"] == 2
    expected = {"layer": 0.0, "intra": 0.0}
    for layer in range(1, num_layers + 1):
        for row, count in enumerate(counts):
            ours, theirs = (
                [output[f"{whose}_layers"][index][row, :count] for index in (layer - 1, layer)]
                for whose in ("student", "teacher")
            )
            for name, first in (("layer", 1), ("intra", 0)):
                for t in range(count):
                    for u in range(count):
                        our = (ours[first][t] * ours[1][u]).mean()
                        their = (theirs[first][t] * theirs[1][u]).mean()
                        expected[name] += (our - their).item() ** 2 / count / num_layers
    assert log["gram_layer"] == pytest.approx(expected["layer"], rel=1e-4)
    assert log["gram_intra"] == pytest.approx(expected["intra"], rel=1e-4)
    assert loss.item() == pytest.approx(0.5 * expected["layer"] + 2 * expected["intra"], rel=1e-4)


@torch.no_grad()
def test_neighbours_and_their_padding_do_not_count(teacher):
    student = build_student(teacher, **STAR).eval()
    criterion, counts = gram_criterion(), [9000, 4300, 6000]
    together = batch_of(counts)
    whole, num_frames, _ = criterion(student, {"net_input": together})
    alone = [
        criterion(student, {"net_input": {"source": together["source"][row : row + 1, :count]}})
        for row, count in enumerate(counts)
    ]
    assert whole.item() == pytest.approx(sum(loss.item() for loss, _, _ in alone), rel=1e-4)
    assert num_frames == sum(frames for _, frames, _ in alone)


@torch.no_grad()
def test_a_teacher_has_learned_from_itself(teacher):
    found = build_student(teacher, **STAR).teacher[0]
    student = DistilledStudent(found, found, [])
    loss, _, _ = gram_criterion()(student, {"net_input": batch_of([9000, 6000])})
    assert loss.item() == 0


def test_every_layer_learns_and_the_teacher_does_not(teacher):
    student = build_student(teacher, **STAR).train()
    loss, _, log = gram_criterion(layer_weight=0.0)(student, {"net_input": batch_of([9000])})
    assert "gram_layer" not in log
    loss.backward()
    for layer in student.student.encoder.layers:
        assert layer.fc1.weight.grad.any()
    assert student.student.feature_extractor.conv_layers[0][0].weight.grad.any()
    assert all(weight.grad is None for weight in student.teacher[0].parameters())


def test_products_are_of_single_precision_under_autocast():
    frames = torch.full((1, 2, 4), 300.0)
    with torch.autocast("cpu", torch.float16):
        assert gram(frames, frames).tolist() == [[[90000.0, 90000.0]] * 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer_weight": -1.0}, "criterion.layer_weight=-1.0 is out of range"),
        ({"intra_weight": float("inf")}, "criterion.intra_weight=inf is out of range"),
        ({"layer_weight": 0.0, "intra_weight": 0.0}, "leave nothing to learn"),
    ],
)
def test_weights_that_mean_nothing_are_refused_in_words(options, words):
    with pytest.raises(ValueError, match=words):
        gram_criterion(**options)


def test_a_criterion_names_the_students_that_it_is_for(teacher):
    sample = {"net_input": batch_of([6000])}
    with pytest.raises(ValueError, match=r"give model\.predict_layers=none"):
        gram_criterion()(build_student(teacher, **NARROW), sample)
    with pytest.raises(ValueError, match=r"or criterion\._name=gram_distillation"):
        layer_criterion()(build_student(teacher, **STAR), sample)


def test_a_narrow_student_is_made_with_hydra_fine_tuned_and_decoded(tmp_path, corpus, teacher):
    done = run_command(
        fairseq_command("fairseq-hydra-train"),
        "--config-dir",
        REPO / "config/distillation",
        "--config-name",
        "star",
        "common.cpu=true",
        "common.fp16=false",
        "common.log_interval=1",
        f"common.user_dir={USER_DIR}",
        f"task.data={corpus}",
        "task.normalize=true",
        "dataset.num_workers=0",
        "dataset.batch_size=4",
        "optimization.max_update=4",
        "optimization.update_freq=[1]",
        "lr_scheduler.total_num_update=4",
        "lr_scheduler.warmup_updates=1",
        f"model.w2v_path={teacher}",
        *(f"model.{name}={value}" for name, value in STAR.items()),
        f"hydra.run.dir={tmp_path}/student",
        f"checkpoint.save_dir={tmp_path}/student",
    )
    assert re.search(r'"train_gram_intra"', done.stdout + done.stderr)
    student = tmp_path / "student/checkpoint_last.pt"
    weights = torch.load(student)["model"]
    assert not [name for name in weights if name.startswith(("teacher", "heads"))]
    layers = build_model(student).w2v_encoder.w2v_model.encoder.layers
    assert len(layers) == 6
    assert torch.equal(layers[5].fc1.weight, weights["student.encoder.layers.5.fc1.weight"])
    train(tmp_path / "tuned", corpus, student)
    student.unlink()
    results = generate(corpus, tmp_path / "tuned/checkpoints/checkpoint_last.pt")
    assert "decoded 11 utterances" in results.stdout
