"""``speedup_ctc``: fairseq's wav2vec 2.0 CTC model with reductions."""

import contextlib
import io
import logging
from dataclasses import dataclass, fields

import torch
from fairseq.models import register_model
from fairseq.models.wav2vec.wav2vec2 import TransformerSentenceEncoderLayer
from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig, Wav2VecCtc, Wav2VecEncoder
from torch import nn

from fairseq_speedup.checkpoints import CheckpointError, read_pretrained
from fairseq_speedup.heads import HeadConfig, build_head, check_head, upsample_logits
from fairseq_speedup.lengths import (
    conv_stack_length,
    lengths_of,
    needed_conv_stack_length,
    padding_mask_of,
)
from fairseq_speedup.transformer.early_exit import (
    EarlyExit,
    EarlyExitConfig,
    EveryoneLeft,
    check_exit,
    parse_exit_layers,
)
from fairseq_speedup.transformer.layer_removal import (
    KeptLayers,
    LayerRemovalConfig,
    drop_removed_layers,
    parse_keep_layers,
)
from fairseq_speedup.waveform import WaveformReductionConfig, build_waveform_reduction

logger = logging.getLogger(__name__)


@dataclass
class SpeedupCtcConfig(
    HeadConfig, EarlyExitConfig, LayerRemovalConfig, WaveformReductionConfig, Wav2Vec2CtcConfig
):
    """Everything of ``wav2vec_ctc``, and one config for each stage that can be reduced."""


# the options of this plugin, as opposed to those of fairseq's wav2vec_ctc
REDUCTION_OPTIONS = [
    field.name
    for field in fields(SpeedupCtcConfig)
    if field.name not in {stock.name for stock in fields(Wav2Vec2CtcConfig)}
]


def reduction_options(cfg) -> dict:
    """The options in ``cfg`` (of any CTC model) that are this plugin's own, with their values."""
    return {name: cfg[name] for name in REDUCTION_OPTIONS if name in cfg}


def switched_on(cfg) -> dict:
    """The reduction options in ``cfg`` that are not at their default, off."""
    off = SpeedupCtcConfig()
    return {k: v for k, v in reduction_options(cfg).items() if v != getattr(off, k)}


def conv_layers_of(w2v_model) -> list[tuple[int, int, int]]:
    """(dim, kernel_size, stride) of each convolution of a wav2vec 2.0 front-end."""
    convolutions = [block[0] for block in w2v_model.feature_extractor.conv_layers]
    return [(conv.out_channels, conv.kernel_size[0], conv.stride[0]) for conv in convolutions]


class SpeedupEncoder(Wav2VecEncoder):
    """waveform -> waveform reduction -> front-end -> transformer -> CTC head -> logit upsampling

    fairseq's encoder does the middle; this class shortens what goes in and lengthens what comes
    out. Lengths are exact: what is padding at the input is padding, and nothing else is, to the
    transformer and to CTC.
    """

    def __init__(self, cfg: SpeedupCtcConfig, num_labels: int):
        waveform_reduction = build_waveform_reduction(cfg)
        check_head(cfg)
        check_exit(cfg)
        pretrained = None
        if cfg.w2v_args is None:
            pretrained = read_pretrained(cfg)
            cfg.w2v_args = pretrained["cfg"]
        super().__init__(cfg, num_labels)
        if pretrained is not None and not cfg.no_pretrained_weights:
            self.load_pretrained(pretrained, cfg)
        self.conv_layers = conv_layers_of(self.w2v_model)
        # Cropping to a multiple serves pretraining on TPUs and would cut frames from utterances.
        self.w2v_model.crop_seq_to_multiple = 1
        self.waveform_reduction = waveform_reduction
        self.logit_upsample = cfg.logit_upsample
        layers = self.w2v_model.encoder.layers
        self.kept_layers = parse_keep_layers(cfg.keep_layers, len(layers))
        if len(self.kept_layers) < len(layers):
            self.w2v_model.encoder.layers = KeptLayers(layers, self.kept_layers)
        if cfg.head != "linear" or cfg.logit_upsample > 1:
            self.proj = build_head(cfg, self.proj.in_features, num_labels)
        self._build_exits(cfg, num_labels)
        self._let_gradient_through_front_end()

    def load_pretrained(self, pretrained: dict, cfg: SpeedupCtcConfig) -> None:
        """Copies the weights of a pretrained checkpoint into the encoder."""
        with contextlib.redirect_stdout(io.StringIO()):  # fairseq prints the whole module tree
            try:
                self.load_model_weights(pretrained, self.w2v_model, cfg)
            except RuntimeError as error:
                raise CheckpointError(
                    f"model.w2v_path={cfg.w2v_path}: its weights do not fit its config: {error}"
                ) from error
        logger.info("loaded the pretrained encoder %s", cfg.w2v_path)

    def _let_gradient_through_front_end(self) -> None:
        """With feature_grad_mult 0, the default of fine-tuning, fairseq runs the front-end without
        autograd. A learned waveform reduction lies before it and would never be trained: then the
        front-end is frozen by its parameters instead."""
        learned = any(True for _ in self.waveform_reduction.parameters())
        if learned and self.w2v_model.feature_grad_mult <= 0:
            self.w2v_model.feature_grad_mult = 1.0
            self.w2v_model.feature_extractor.requires_grad_(False)

    def _build_exits(self, cfg: SpeedupCtcConfig, num_labels: int) -> None:
        self.exit = None
        exits = parse_exit_layers(cfg.exit_layers, self.kept_layers)
        if not exits:
            return
        encoder = self.w2v_model.encoder
        others = {
            type(layer).__name__
            for layer in encoder.layers
            if not isinstance(layer, TransformerSentenceEncoderLayer)
        }
        if others:
            raise ValueError(
                f"exit_layers={cfg.exit_layers} works with transformer layers; this model has "
                f"{', '.join(sorted(others))}: set exit_layers=none"
            )
        if cfg.exit_heads_only:
            self.requires_grad_(False)
        self.exit_heads = nn.ModuleDict(
            {str(index): build_head(cfg, encoder.embedding_dim, num_labels) for index in exits}
        )
        self.exit = EarlyExit(encoder.layers, self.kept_layers, exits, self._exit_logits, cfg)

    def _exit_logits(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (T', B, V) of the exit after ``layer``, from its hidden states (T, B, C)."""
        if self.w2v_model.encoder.layer_norm_first:
            hidden = self.w2v_model.encoder.layer_norm(hidden)
        logits = self.exit_heads[str(layer)](self.final_dropout(hidden))
        return upsample_logits(logits, self.logit_upsample)

    def frame_lengths(self, num_samples):
        """Frames in the transformer of utterances of ``num_samples``."""
        reduced = self.waveform_reduction.output_lengths(num_samples)
        return conv_stack_length(reduced, self.conv_layers)

    def output_lengths(self, num_samples):
        """Logit frames of utterances of ``num_samples`` (int, numpy array or tensor)."""
        return self.frame_lengths(num_samples) * self.logit_upsample

    def needed_samples(self) -> int:
        """The shortest waveform, in samples, that gives one encoder frame."""
        return self.waveform_reduction.needed_samples(needed_conv_stack_length(1, self.conv_layers))

    def forward(self, source, padding_mask=None, **kwargs):
        """
        Args:
            source: waveform (B, S)
            padding_mask: (B, S), True at padding, or None where nothing is padded
        Returns:
            fairseq's dict: ``encoder_out`` logits (T, B, V), ``padding_mask`` (B, T) or None,
            ``layer_results``
        Raises:
            ValueError: an utterance is too short for one frame
        """
        num_samples = lengths_of(padding_mask, source)
        self._check_long_enough(num_samples)
        waveform, lengths = self.waveform_reduction(source, num_samples)
        if waveform is not source:
            padding_mask = padding_mask_of(lengths, waveform.size(1))
        if self.exit is None:
            output = super().forward(source=waveform, padding_mask=padding_mask, **kwargs)
            logits = upsample_logits(output["encoder_out"], self.logit_upsample)
        else:
            output, logits = self._forward_with_exits(waveform, padding_mask, num_samples, kwargs)
        expected = self.output_lengths(source.size(1))
        if logits.size(0) != expected:
            raise AssertionError(
                f"the model gave {logits.size(0)} logit frames of {source.size(1)} samples; "
                f"the length formula says {expected}"
            )
        if output["padding_mask"] is not None and self.logit_upsample > 1:
            output["padding_mask"] = output["padding_mask"].repeat_interleave(
                self.logit_upsample, dim=1
            )
        return {**output, "encoder_out": logits}

    def _forward_with_exits(self, waveform, padding_mask, num_samples, kwargs):
        """The encoder's output with ``num_layers_run`` (B,) and, where nobody may leave,
        ``exit_logits`` and ``exit_measured`` by exit; and the logits (T', B, V)."""
        lengths = self.frame_lengths(num_samples)
        stay = self.training or self.exit.observed
        self.exit.start(lengths, self.logit_upsample, stay)
        try:
            output = super().forward(source=waveform, padding_mask=padding_mask, **kwargs)
            logits = upsample_logits(output["encoder_out"], self.logit_upsample)
        except EveryoneLeft:
            mask = padding_mask_of(lengths, int(lengths.max()))
            output, logits = {"padding_mask": mask if mask.any() else None}, None
        finally:
            batch = self.exit.finish()
        if logits is None or batch.has_left:
            logits = batch.put_exit_logits(logits)
        # here, not in the layers' hooks: freeze_finetune_updates runs those without autograd
        output["exit_logits"] = {
            layer: self._exit_logits(layer, hidden) for layer, hidden in batch.exit_hidden.items()
        }
        output["exit_measured"] = batch.measured
        output["num_layers_run"] = batch.num_layers_run
        return output, logits

    def _check_long_enough(self, num_samples: torch.Tensor) -> None:
        shortest, needed = int(num_samples.min()), self.needed_samples()
        if shortest < needed:
            raise ValueError(
                f"an utterance of {shortest} samples is shorter than one output frame, which takes "
                f"{needed} samples with this front-end and waveform reduction"
            )


@register_model("speedup_ctc", dataclass=SpeedupCtcConfig)
class SpeedupCtc(Wav2VecCtc):
    """wav2vec 2.0 fine-tuned with CTC, made faster by the reductions its config names.

    With every reduction off it is fairseq's ``wav2vec_ctc``, number for number.
    """

    @classmethod
    def build_model(cls, cfg: SpeedupCtcConfig, task):
        return cls(cfg, SpeedupEncoder(cfg, len(task.target_dictionary)))

    def upgrade_state_dict_named(self, state_dict, name):
        """Fits a checkpoint to this model's layers and exits: layers and exit heads that the model
        lacks are left out, an exit head that the checkpoint lacks starts as its last head."""
        if isinstance(self.w2v_encoder.w2v_model.encoder.layers, KeptLayers):
            prefix = "w2v_encoder.w2v_model.encoder.layers."
            drop_removed_layers(state_dict, prefix, self.w2v_encoder.kept_layers)
        fit_exit_heads(state_dict, getattr(self.w2v_encoder, "exit_heads", {}))
        return super().upgrade_state_dict_named(state_dict, name)


def fit_exit_heads(state_dict: dict, exit_heads) -> None:
    """See :meth:`SpeedupCtc.upgrade_state_dict_named`; works in place."""
    prefix, last = "w2v_encoder.exit_heads.", "w2v_encoder.proj."
    for key in [key for key in state_dict if key.startswith(prefix)]:
        if key[len(prefix) :].split(".")[0] not in exit_heads:
            del state_dict[key]
    for index in exit_heads:
        if not any(key.startswith(f"{prefix}{index}.") for key in state_dict):
            logger.warning("the checkpoint has no head for exit %s: it starts as the last", index)
            for key in [key for key in state_dict if key.startswith(last)]:
                state_dict[f"{prefix}{index}.{key[len(last) :]}"] = state_dict[key].clone()
