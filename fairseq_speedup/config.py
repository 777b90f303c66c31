"""The options of ``speedup_ctc``: one small config for each stage of the data path."""

from dataclasses import MISSING, dataclass, field, fields

from fairseq.dataclass import FairseqDataclass
from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig
from omegaconf import ListConfig

from fairseq_speedup.frames import FramePoolConfig, check_frame_pool
from fairseq_speedup.frontend import FrontEndConfig, check_front_end
from fairseq_speedup.heads import HeadConfig, check_head
from fairseq_speedup.inference_forms import LINEARS
from fairseq_speedup.pruning import PruningConfig, WidthsConfig, check_pruning, check_widths
from fairseq_speedup.speeds import SpeedsConfig
from fairseq_speedup.transformer.layer_removal import LayerRemovalConfig
from fairseq_speedup.transformer.stages import STAGES
from fairseq_speedup.waveform import WaveformReductionConfig

PADDINGS = ("masked", "stock")


@dataclass
class PaddingConfig(FairseqDataclass):
    padding: str = field(
        default="masked",
        metadata={
            "help": "where fairseq lets padding reach an utterance, in the group norm of base "
            "models' CNN, between data2vec's positional convolutions and in a Conformer's "
            "convolutions: masked, so that an utterance gives the same in any batch, or stock, "
            "fairseq's own numbers"
        },
    )


def check_padding(cfg: PaddingConfig) -> None:
    """Raises ValueError for an unknown value."""
    if cfg.padding not in PADDINGS:
        raise ValueError(f"unknown padding={cfg.padding!r}; valid values: {', '.join(PADDINGS)}")


@dataclass
class InferenceFormConfig(FairseqDataclass):
    inference_form: str = field(
        default="none",
        metadata={
            "help": "form that the model decodes in where --inference says nothing: none, as it "
            "was trained, fp32, bf16, int8 or fp16; optimize sets it"
        },
    )


def check_inference_form(cfg: InferenceFormConfig) -> None:
    """Raises ValueError for an unknown value."""
    if cfg.inference_form != "none" and cfg.inference_form not in LINEARS:
        raise ValueError(
            f"unknown inference_form={cfg.inference_form!r}; valid values: "
            f"{', '.join(['none', *LINEARS])}"
        )


@dataclass
class SpeedupCtcConfig(
    InferenceFormConfig,
    SpeedsConfig,
    WidthsConfig,
    PruningConfig,
    PaddingConfig,
    HeadConfig,
    *(stage.options for stage in STAGES),  # type: ignore[misc]
    LayerRemovalConfig,
    FramePoolConfig,
    FrontEndConfig,
    WaveformReductionConfig,
    Wav2Vec2CtcConfig,
):
    """Everything of ``wav2vec_ctc``, and one config for each stage that can be reduced."""


def check_options(cfg: SpeedupCtcConfig) -> None:
    """Raises ValueError for options that are wrong whatever the pretrained model."""
    for check in (
        check_padding,
        check_inference_form,
        check_front_end,
        check_frame_pool,
        check_head,
        *(stage.check for stage in STAGES),
        check_pruning,
        check_widths,
    ):
        check(cfg)
    pools = [cfg.frame_pool, *cfg.frame_pools]
    if cfg.frame_pool_method != FramePoolConfig.frame_pool_method and max(pools) == 1:
        raise ValueError(
            f"frame_pool_method={cfg.frame_pool_method} with frame_pool={cfg.frame_pool} changes "
            "nothing: set frame_pool above 1"
        )
    if cfg.frontend_match_updates > 0 and cfg.frontend == "cnn" and cfg.downsample == "none":
        raise ValueError(
            f"frontend_match_updates={cfg.frontend_match_updates} needs frontend=fbank, or "
            "downsample=signal, conv or average: without one the pretrained CNN hears what it knows"
        )
    if cfg.exit_heads_only and cfg.frontend_match_updates > 0:
        raise ValueError(
            f"frontend_match_updates={cfg.frontend_match_updates} trains the front-end, which "
            "exit_heads_only=true freezes: set one of them to its default"
        )


# the options of this plugin, as opposed to those of fairseq's wav2vec_ctc, with their defaults
_STOCK = {field.name for field in fields(Wav2Vec2CtcConfig)}
DEFAULTS = {
    field.name: field.default if field.default is not MISSING else field.default_factory()  # type: ignore[operator]
    for field in fields(SpeedupCtcConfig)
    if field.name not in _STOCK
}
REDUCTION_OPTIONS = list(DEFAULTS)


# of one training, and not of the model that it makes
OF_TRAINING = {"frontend_match_updates", "exit_heads_only"}
# choices of many speeds, and the option that is one of them
CHOICES = {
    "downsample_factors": "downsample_factor",
    "frame_pools": "frame_pool",
    "depths": "keep_layers",
    "widths": "width",
}


def keep_reductions(cfg: SpeedupCtcConfig, start: dict) -> tuple[dict, dict]:
    """Puts the options of a reduced model into the config of a training that starts from it, in
    place, but for those that ``cfg`` sets; where it sets one speed, there are no choices any more,
    and where it sets choices, a speed that is not among them goes.

    Args:
        start: of :func:`reductions`
    Returns:
        what was put, and what was not
    """
    own = switched_on(cfg)
    other_choice = {
        one
        for many, one in CHOICES.items()
        if many in own and many != "depths" and start.get(one) not in own[many]
    }
    kept: dict = {}
    replaced: dict = {}
    for name, value in start.items():
        if name not in OF_TRAINING:
            given = own.keys() & {name, CHOICES.get(name)} or name in other_choice
            differs = getattr(cfg, name) != value
            (replaced if given and differs else kept)[name] = value
    for name, value in kept.items():
        setattr(cfg, name, value)
    return kept, replaced


def reduction_options(cfg) -> dict:
    """The options in ``cfg`` (of any CTC model) that are this plugin's own, with their values."""
    options = {name: cfg[name] for name in REDUCTION_OPTIONS if name in cfg}
    return {k: list(v) if isinstance(v, ListConfig) else v for k, v in options.items()}


def switched_on(cfg) -> dict:
    """The reduction options in ``cfg`` that are not at their default, off."""
    return {k: v for k, v in reduction_options(cfg).items() if v != DEFAULTS[k]}


def reductions(cfg) -> dict:
    """Those of :func:`switched_on` that make a model another than fairseq's: not ``padding`` and
    ``inference_form``, which no weight depends on."""
    return {k: v for k, v in switched_on(cfg).items() if k not in ("padding", "inference_form")}


def named_reductions(cfg) -> str:
    """Those of :func:`reductions` in words, empty for a model that is fairseq's."""
    return ", ".join(f"{name}={value}" for name, value in reductions(cfg).items())
