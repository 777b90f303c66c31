"""The shipped configs: complete, consistent, and switched by one line."""

import ast

import pytest
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.initialize import hydra_init
from fairseq.dataclass.utils import merge_with_parent
from helpers.commands import REPO
from helpers.models import build_model, write_pretrained
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from fairseq_speedup.config import SpeedupCtcConfig, reduction_options, switched_on
from fairseq_speedup.criterions.ctc_distillation import CtcDistillationConfig
from fairseq_speedup.macs import MacCounter
from fairseq_speedup.profiling.profile import read_model_options
from fairseq_speedup.tasks import SpeedupFinetuningConfig

FOLDER = REPO / "config/finetuning"
FASTER = "faster"  # the one that starts from a fine-tuned model
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != FASTER)
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
# of each setting, by fairseq's own configs (an option that none of them names is None): updates,
# learning rate, batches of an update, GPUs, samples of a batch, normalised audio; probabilities of
# masks in time and channels, and of a layer that is left out; updates that train the head alone;
# intervals of checkpoints in epochs and updates, how many are kept; validation begins, its interval
SETTINGS = """
    base_10m   13000  5e-05  4 2  3200000 False 0.65 0.25 0.1  10000 1000 50    1    10000 1000
    base_1h    13000  5e-05  4 2  3200000 False 0.65 0.25 0.1  10000 50   1000  1    10000 1000
    base_10h   20000  5e-05  4 2  3200000 False 0.65 0.5  0.05 10000 50   10000 1    10000 50
    base_100h  80000  3e-05  4 2  3200000 False 0.65 0.5  0.1  0     None None  None None  None
    base_960h  320000 0.0001 1 8  3200000 False 0.5  0.1  0.1  0     None None  None None  None
    large_10m  13000  0.0001 5 4  1280000 True  0.65 0.25 0.1  10000 1000 50    1    10000 1000
    large_1h   13000  0.0003 5 4  1280000 True  0.75 0.25 0.1  10000 50   1000  1    10000 1000
    large_10h  20000  0.0001 5 4  1280000 True  0.75 0.25 0.1  10000 50   10000 1    10000 50
    large_100h 80000  3e-05  5 4  1280000 True  0.5  0.5  0.1  10000 None None  None None  None
    large_960h 320000 3e-05  1 24 1280000 True  0.5  0.25 0.1  10000 None None  None None  None
"""
COLUMNS = [
    ("optimization", "max_update"),
    ("optimization", "lr"),
    ("optimization", "update_freq"),
    ("distributed_training", "distributed_world_size"),
    ("dataset", "max_tokens"),
    ("task", "normalize"),
    ("model", "mask_prob"),
    ("model", "mask_channel_prob"),
    ("model", "layerdrop"),
    ("model", "freeze_finetune_updates"),
    ("checkpoint", "save_interval"),
    ("checkpoint", "save_interval_updates"),
    ("checkpoint", "keep_interval_updates"),
    ("dataset", "validate_after_updates"),
    ("dataset", "validate_interval"),
]


def load(name, *overrides):
    with initialize_config_dir(str(FOLDER), version_base="1.1"):
        return compose(name, overrides=list(overrides))


def test_every_size_and_data_amount_has_a_config():
    amounts = ("100h", "10h", "10m", "1h", "960h")
    assert sorted(f"{size}_{amount}" for size in ("base", "large") for amount in amounts) == NAMES


@pytest.mark.parametrize("row", SETTINGS.strip().splitlines(), ids=lambda row: row.split()[0])
def test_each_setting_is_fairseqs(row):
    name, *cells = row.split()
    cfg = OmegaConf.to_container(load(name))
    found = [cfg[section].get(option) for section, option in COLUMNS]
    found = [each[0] if isinstance(each, list) else each for each in found]  # one per epoch
    assert found == [ast.literal_eval(cell) for cell in cells]


def test_an_option_is_in_one_file():
    every, *others = (OmegaConf.load(FOLDER / f"setting/{name}.yaml") for name in ("every", *NAMES))
    for cfg in others:
        for section, options in cfg.items():
            assert not set(options) & set(every.get(section, {}))


def test_a_faster_model_has_its_start_as_teacher():
    cfg = load(FASTER, "model.w2v_path=full.pt")
    given = merge_with_parent(CtcDistillationConfig(), cfg.criterion)
    assert cfg.criterion._name == "ctc_distillation" and given.teacher_path == "full.pt"
    assert switched_on(cfg.model) == {"frame_pool": 2}
    assert cfg.model.feature_grad_mult == 1 and cfg.model.freeze_finetune_updates == 0
    for reduction in REDUCTIONS:  # that of prune50 names a criterion, whose losses this one has too
        cfg = load(FASTER, "model.w2v_path=full.pt", f"reduction={reduction}")
        assert cfg.criterion._name == "ctc_distillation"


def test_fairseqs_own_defaults_are_below_the_settings():
    """Its command lays its defaults under the file that is named, and under that file alone."""
    hydra_init("large_10h")
    try:
        with_defaults, alone = load("large_10h", "reduction=conv2"), load("base_10h")
    finally:
        del ConfigStore.instance().repo["large_10h.yaml"]
    assert with_defaults.common.seed == FairseqConfig().common.seed  # which no file of ours names
    assert "seed" not in alone.common
    assert with_defaults.common.fp16 and with_defaults.optimization.max_update == 20000
    assert with_defaults.model.downsample == "conv"


@pytest.mark.parametrize("name", [*NAMES, FASTER])
def test_profiling_reads_the_model_of_a_setting(name):
    expected = OmegaConf.to_container(load(name).model)
    assert read_model_options(str(FOLDER / f"{name}.yaml")) == expected


@pytest.mark.parametrize("name", [*NAMES, FASTER])
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


@pytest.fixture(scope="module")
def twelve_layers(tmp_path_factory):
    """A pretrained model, and its MACs without a reduction."""
    cnn = "[(64, 10, 5)] + [(64, 3, 2)] * 4 + [(64, 2, 2)] * 2"
    path = tmp_path_factory.mktemp("twelve") / "base.pt"
    write_pretrained(path, encoder_layers=12, conv_feature_layers=cnn)
    return path, MacCounter(build_model(path)).count([160000]).sum()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_reduction_is_one_line(twelve_layers, reduction):
    base, full = twelve_layers
    options = switched_on(load("base_100h", f"reduction={reduction}").model)
    assert options
    if "downsample_factors" in options:
        options["downsample_factor"] = max(options["downsample_factors"])
    model = build_model(base, **options)
    if model.w2v_encoder.pruning is not None:  # which has it to learn
        assert model.w2v_encoder.pruning.target(10**6) < 1
        return
    reduced = MacCounter(model).count([160000]).sum()
    assert reduced.total < full.total


def test_a_misspelled_reduction_lists_the_valid_ones():
    with pytest.raises(MissingConfigException, match=r"(?s)reduction/conv5.*conv2.*signal3"):
        load("base_100h", "reduction=conv5")
