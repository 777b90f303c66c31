"""The shipped configs: complete, consistent, and switched by one line."""

import pytest
from conftest import REPO, build_model, write_pretrained
from fairseq.dataclass.configs import FairseqConfig
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from fairseq_speedup.models.config import SpeedupCtcConfig, reduction_options, switched_on
from fairseq_speedup.profiling.macs import MacCounter
from fairseq_speedup.tasks import SpeedupFinetuningConfig

FOLDER = REPO / "config/finetuning"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
REDUCTIONS = sorted(
    path.stem for path in (FOLDER / "reduction").glob("*.yaml") if path.stem != "none"
)
# What the data amount or the size of the model decides; all else is the same in every file.
OF_THE_SETTING = {
    "checkpoint": {"save_interval", "save_interval_updates", "keep_interval_updates"},
    "dataset": {"max_tokens", "validate_after_updates", "validate_interval"},
    "task": {"normalize"},
    "distributed_training": {"distributed_world_size"},
    "optimization": {"max_update", "lr", "update_freq"},
    "model": {"mask_prob", "mask_channel_prob", "layerdrop", "freeze_finetune_updates"},
}


def load(name, *overrides):
    with initialize_config_dir(str(FOLDER), version_base="1.1"):
        return compose(name, overrides=list(overrides))


def test_every_size_and_data_amount_has_a_config():
    amounts = ("100h", "10h", "10m", "1h", "960h")
    assert sorted(f"{size}_{amount}" for size in ("base", "large") for amount in amounts) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_configs_know_only_options_that_exist(name):
    cfg = load(name)
    assert set(cfg.model) <= set(OmegaConf.structured(SpeedupCtcConfig))
    assert set(cfg.task) <= set(OmegaConf.structured(SpeedupFinetuningConfig))
    known = OmegaConf.structured(FairseqConfig)
    for group in ("common", "checkpoint", "dataset", "distributed_training", "optimization"):
        assert set(cfg[group]) <= set(known[group])


@pytest.mark.parametrize("name", NAMES)
def test_configs_differ_only_in_what_the_setting_decides(name):
    def shared(config_name):
        cfg = OmegaConf.to_container(load(config_name))
        return {
            group: {k: v for k, v in fields.items() if k not in OF_THE_SETTING.get(group, ())}
            for group, fields in cfg.items()
        }

    assert shared(name) == shared("base_100h")


@pytest.mark.parametrize("name", NAMES)
def test_every_reduction_is_off_by_default_and_named(name):
    given = reduction_options(load(name).model)
    ours = reduction_options(OmegaConf.structured(SpeedupCtcConfig))
    assert given == {k: v for k, v in ours.items() if k != "inference_form"}  # no use in training


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_reduction_is_one_line(tmp_path, reduction):
    options = switched_on(load("base_100h", f"reduction={reduction}").model)
    assert options
    if "downsample_factors" in options:
        options["downsample_factor"] = max(options["downsample_factors"])
    cnn = "[(64, 10, 5)] + [(64, 3, 2)] * 4 + [(64, 2, 2)] * 2"
    base = write_pretrained(tmp_path / "base.pt", encoder_layers=12, conv_feature_layers=cnn)
    full = MacCounter(build_model(base)).count([160000]).sum()
    reduced = MacCounter(build_model(base, **options)).count([160000]).sum()
    assert reduced.total < full.total


def test_a_misspelled_reduction_lists_the_valid_ones():
    with pytest.raises(MissingConfigException, match=r"(?s)reduction/conv5.*conv2.*signal3"):
        load("base_100h", "reduction=conv5")
