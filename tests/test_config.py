"""The shipped configs: complete, consistent, and switched by one line."""

import re

import pytest
from conftest import REPO, build_model, write_pretrained
from fairseq.dataclass.configs import FairseqConfig
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from fairseq_speedup.__main__ import main
from fairseq_speedup.models.config import SpeedupCtcConfig, reduction_options, switched_on
from fairseq_speedup.profiling.macs import MacCounter
from fairseq_speedup.tasks import SpeedupFinetuningConfig

README = (REPO / "README.md").read_text(encoding="utf-8")
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
    model = build_model(base, **options)
    if model.w2v_encoder.pruning is not None:  # which has it to learn
        assert model.w2v_encoder.pruning.target(10**6) < 1
        return
    reduced = MacCounter(model).count([160000]).sum()
    assert reduced.total < full.total


def test_a_misspelled_reduction_lists_the_valid_ones():
    with pytest.raises(MissingConfigException, match=r"(?s)reduction/conv5.*conv2.*signal3"):
        load("base_100h", "reduction=conv5")


def test_files_that_the_readme_names_exist():
    named = re.findall(r"(?<![\w/])(?:config|examples|tests|fairseq_speedup)/[\w./-]*\w", README)
    assert {"config/finetuning", "examples/quickstart/run.sh", "tests/run.sh"} <= set(named)
    missing = {name for name in named if not (REPO / name).exists()}
    assert missing == {"examples/data2vec"}  # fairseq's


def test_configs_of_the_readmes_commands_exist():
    named = re.findall(r"--config-dir (\S+) --config-name (\S+)", README)
    assert ("config/finetuning", "base_100h") in named
    for folder, name in named:
        assert (REPO / folder / f"{name}.yaml").is_file(), f"{folder}/{name}"


def test_our_commands_in_the_readme_have_the_options_that_it_gives_them(capsys):
    joined = README.replace("\\\n", " ")
    commands = re.findall(r"^python -m fairseq_speedup (?:--user-dir \S+ )?(.+)$", joined, re.M)
    assert len({command.split()[0] for command in commands}) >= 9
    for command in commands:
        name, *words = command.split(" #")[0].split()
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        printed = capsys.readouterr().out
        for word in words:
            if word.startswith("--"):
                assert re.search(rf"{word}\b", printed), f"{name} {word}"
