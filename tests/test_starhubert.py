"""STaRHuBERT's files: what of them is not in test_families.py."""

import pytest
import torch
from helpers.models import build_model
from omegaconf import OmegaConf

pytest.importorskip("transformers")
from public_checkpoints import reference, write_form

from fairseq_speedup.checkpoints.opening import CheckpointError

FORM = "starhubert, Lightning"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "star.ckpt"
    write_form(path, FORM, reference(FORM))
    return path


def change(path, **options) -> None:
    given = OmegaConf.load(path.with_suffix(".yaml"))
    OmegaConf.save(OmegaConf.merge(given, {"distiller": options}), path.with_suffix(".yaml"))


def test_weights_alone_ask_for_their_yaml(path):
    path.with_suffix(".yaml").rename(path.with_suffix(".yml"))
    build_model(path, normalize=False)  # the other ending
    path.with_suffix(".yml").unlink()
    with pytest.raises(CheckpointError, match=r"beside it, as star\.yaml"):
        build_model(path, normalize=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reuse_pattern": "exit()"}, "reuse_pattern"),
        ({"enable_tr_layer": True}, "joined between layers"),
        ({"conv_feature_layers": "exit()"}, "conv_feature_layers=.*evaluates this field as Python"),
        ({"conv_pos": 0}, "conv_pos is 0; it must be a number from 1"),
        ({"encoder_attention_heads": 5}, "it must be a divisor of encoder_embed_dim=24"),
        ({"layer_norm_first": None}, "has no layer_norm_first under distiller"),
        ({"encoder_layers": 3}, r"unknown: encoder\.layers\.3"),
        ({"encoder_layers": "many"}, "encoder_layers is many; it must be a number from 1"),
    ],
)
def test_a_student_that_is_none_of_these_is_named(path, options, message):
    change(path, **options)
    with pytest.raises(CheckpointError, match=message):
        build_model(path, normalize=False)


@pytest.mark.parametrize("text", ["a: [", "[1, 2]", "train: {gpus: 1}", "distiller: 3", ""])
def test_a_yaml_file_of_something_else_is_named(path, text):
    path.with_suffix(".yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"star\.yaml"):
        build_model(path, normalize=False)


def test_a_yaml_file_that_calls_resolvers_is_refused(path):
    change(path, activation_fn="${oc.env:HOME}")
    with pytest.raises(CheckpointError, match=r"star\.yaml is refused: .*calls a resolver"):
        build_model(path, normalize=False)


def test_the_teachers_weights_are_left_where_they_are(path):
    state = torch.load(path)
    state["state_dict"]["teacher_model.model.encoder.layer_norm.weight"] = torch.ones(2)
    torch.save(state, path)
    build_model(path, normalize=False)
