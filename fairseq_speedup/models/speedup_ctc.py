"""``speedup_ctc``: fairseq's wav2vec 2.0 CTC model with reductions."""

import contextlib
import io
import logging
from dataclasses import dataclass, fields

import torch
from fairseq.models import register_model
from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig, Wav2VecCtc, Wav2VecEncoder

from fairseq_speedup.checkpoints import CheckpointError, read_pretrained
from fairseq_speedup.heads import HeadConfig, build_head, check_head, upsample_logits
from fairseq_speedup.lengths import (
    conv_stack_length,
    lengths_of,
    needed_conv_stack_length,
    padding_mask_of,
)
from fairseq_speedup.transformer import (
    KeptLayers,
    LayerRemovalConfig,
    drop_removed_layers,
    parse_keep_layers,
)
from fairseq_speedup.waveform import WaveformReductionConfig, build_waveform_reduction

logger = logging.getLogger(__name__)


@dataclass
class SpeedupCtcConfig(WaveformReductionConfig, LayerRemovalConfig, HeadConfig, Wav2Vec2CtcConfig):
    """Everything of ``wav2vec_ctc``, and one config for each stage that can be reduced."""


def reduction_options(cfg) -> dict:
    """The options in ``cfg`` (of any CTC model) that are this plugin's own, with their values."""
    stock = {field.name for field in fields(Wav2Vec2CtcConfig)}
    ours = [field.name for field in fields(SpeedupCtcConfig) if field.name not in stock]
    return {name: cfg[name] for name in ours if name in cfg}


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

    def output_lengths(self, num_samples):
        """Logit frames of utterances of ``num_samples`` (int, numpy array or tensor)."""
        reduced = self.waveform_reduction.output_lengths(num_samples)
        return conv_stack_length(reduced, self.conv_layers) * self.logit_upsample

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
        output = super().forward(source=waveform, padding_mask=padding_mask, **kwargs)
        logits = upsample_logits(output["encoder_out"], self.logit_upsample)
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
        """Leaves out the layers that this model does not keep: a checkpoint may hold more."""
        if isinstance(self.w2v_encoder.w2v_model.encoder.layers, KeptLayers):
            prefix = "w2v_encoder.w2v_model.encoder.layers."
            drop_removed_layers(state_dict, prefix, self.w2v_encoder.kept_layers)
        return super().upgrade_state_dict_named(state_dict, name)
