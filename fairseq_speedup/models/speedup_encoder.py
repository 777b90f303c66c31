"""fairseq's wav2vec 2.0 encoder with reductions at every stage of the data path."""

import logging
import math

import numpy as np
import torch
from fairseq.models.wav2vec.wav2vec2_asr import Wav2VecEncoder
from omegaconf import OmegaConf
from torch import nn

from fairseq_speedup.checkpoints import CheckpointError
from fairseq_speedup.frames import FrameReduction, mask_short_utterances
from fairseq_speedup.frontend import CnnFrontEnd, CnnTeacher, FbankFrontEnd, MaskedGroupNorm
from fairseq_speedup.frontend.config import CNN_FRAME_MS
from fairseq_speedup.frontend.matching import normalised
from fairseq_speedup.heads import build_head, run_head, upsample_logits
from fairseq_speedup.lengths import FrameGrid, lengths_of, padding_mask_of
from fairseq_speedup.models.config import SpeedupCtcConfig, check_options
from fairseq_speedup.models.speeds import Speed, Speeds
from fairseq_speedup.pretrained import (
    Pretrained,
    adapt,
    keep_layer_type,
    load_weights,
    read_pretrained,
)
from fairseq_speedup.pruning.gates import build_pruning
from fairseq_speedup.transformer.conformer import mask_convolutions
from fairseq_speedup.transformer.early_exit import EarlyExit, parse_exit_layers
from fairseq_speedup.transformer.layer_removal import KeptLayers, parse_keep_layers
from fairseq_speedup.transformer.loop import EveryoneLeft, TransformerLoop
from fairseq_speedup.transformer.positions import mask_between_positions
from fairseq_speedup.transformer.token_merging import TokenMerging, parse_merge_layers
from fairseq_speedup.waveform import build_waveform_reduction

logger = logging.getLogger(__name__)

CNN_STRIDE = 320  # samples, 20 ms
CNN_PREFIX = "feature_extractor."


class SpeedupEncoder(Wav2VecEncoder):
    """waveform -> waveform reduction -> front-end -> frame reduction -> transformer -> frames
    restored -> CTC head -> logit upsampling

    fairseq's encoder does the middle; what is between its parts is done through hooks. Lengths are
    exact: what is padding at the input is padding, and nothing else is, to the transformer and to
    CTC.
    """

    def __init__(self, cfg: SpeedupCtcConfig, labels: list[str]):
        """
        Args:
            labels: symbols of the dictionary
        """
        num_labels = len(labels)
        check_options(cfg)
        speeds = Speeds(cfg)
        waveform_reduction = build_waveform_reduction(cfg.downsample, speeds.factors)
        pretrained = None
        if cfg.w2v_args is None:
            pretrained = read_pretrained(cfg)
            cfg.w2v_args = pretrained.cfg
        keep_layer_type(cfg)
        super().__init__(cfg, num_labels)
        adapt(self.w2v_model, cfg.w2v_args)
        mask_short_utterances(self.w2v_model)
        if cfg.padding == "masked":
            mask_between_positions(self.w2v_model.encoder)
            mask_convolutions(self.w2v_model.encoder)
        self.cnn_teacher = None
        self.match_updates = cfg.frontend_match_updates
        if pretrained is not None and not cfg.no_pretrained_weights:
            self._load_pretrained(pretrained, cfg)
        # Cropping to a multiple serves pretraining on TPUs and would cut frames from utterances.
        self.w2v_model.crop_seq_to_multiple = 1
        self.speeds = speeds
        self.waveform_reduction = waveform_reduction
        self._build_front_end(cfg, teach=pretrained is not None)
        self._build_transformer(cfg)
        if cfg.head != "linear" or cfg.logit_upsample > 1:
            self.proj = build_head(cfg, self.proj.in_features, num_labels)
        if cfg.head == "linear" and pretrained is not None and not cfg.no_pretrained_weights:
            self._keep_head(pretrained, labels, cfg)
        if getattr(self.proj, "needs_lengths", False):
            self.proj.register_forward_pre_hook(lambda _, args: (args[0], self._frame_lengths))
        self.logit_upsample = cfg.logit_upsample
        self._build_loop(cfg, num_labels)
        self.switch(speeds.default)
        self.pruning = build_pruning(self, cfg)

    # -- building --------------------------------------------------------------------------------

    def _load_pretrained(self, pretrained: Pretrained, cfg: SpeedupCtcConfig) -> None:
        """Copies the weights of a pretrained checkpoint into the encoder."""
        if not any(name.startswith(CNN_PREFIX) for name in pretrained.weights):
            self._check_cnn_is_not_needed(cfg)
            self.w2v_model.feature_extractor = nn.Identity()
        if cfg.ddp_backend == "fully_sharded":  # fairseq's own way, layer by layer
            self.load_model_weights({"model": pretrained.weights}, self.w2v_model, cfg)
        else:
            load_weights(self.w2v_model, pretrained.weights, f"model.w2v_path={cfg.w2v_path}")

    def _check_cnn_is_not_needed(self, cfg) -> None:
        saved = f"model.w2v_path={cfg.w2v_path} was saved without its CNN"
        if cfg.frontend == "cnn":
            raise CheckpointError(f"{saved}, which frontend=cnn needs: set frontend=fbank")
        if cfg.frontend_match_updates > 0:
            raise CheckpointError(
                f"{saved}, which frontend_match_updates={cfg.frontend_match_updates} would have "
                "the front-end reproduce: set frontend_match_updates=0"
            )

    def _keep_head(self, pretrained: Pretrained, labels: list[str], cfg: SpeedupCtcConfig) -> None:
        """The head of a fine-tuned checkpoint, where it is for the same labels; the frames that
        logit_upsample makes of one start alike, which CTC reads as that one."""
        if not pretrained.head:
            if cfg.exit_heads_only:
                logger.warning(
                    "exit_heads_only=true over a last head that is not trained: give a fine-tuned "
                    "checkpoint as checkpoint.finetune_from_model or model.w2v_path"
                )
            return
        head = {
            name: torch.cat([weight] * cfg.logit_upsample)
            for name, weight in pretrained.head.items()
        }
        same_shape = head["weight"].shape == self.proj.weight.shape
        if same_shape and pretrained.labels in (None, labels):
            self.proj.load_state_dict(head)
            logger.info("the head of the fine-tuned checkpoint is kept")
        else:
            logger.warning("the fine-tuned checkpoint has other labels: its head is not kept")

    def _build_front_end(self, cfg, teach: bool) -> None:
        """fairseq runs its CNN; our front-end is run before, and fairseq is given its frames."""
        w2v_model = self.w2v_model
        self.fbank = self.cnn = None
        self.masked_norms: tuple[MaskedGroupNorm, ...] = ()
        if cfg.frontend == "cnn":
            self.cnn = CnnFrontEnd(w2v_model.feature_extractor)
            if cfg.padding == "masked":
                self.masked_norms = MaskedGroupNorm.into(w2v_model.feature_extractor)
            self._let_gradient_through_cnn()
            return
        cnn, output_dim = w2v_model.feature_extractor, w2v_model.embed
        if cfg.frontend_match_updates > 0 and teach:
            if math.prod(stride for _, _, stride in CnnFrontEnd(cnn).conv_layers) != CNN_STRIDE:
                raise ValueError(
                    f"frontend_match_updates={cfg.frontend_match_updates}: the pretrained CNN does "
                    f"not give a frame every {CNN_FRAME_MS} ms; set frontend_match_updates=0"
                )
            if cfg.no_pretrained_weights:
                raise ValueError(
                    f"frontend_match_updates={cfg.frontend_match_updates} needs the pretrained "
                    "CNN's weights: leave no_pretrained_weights out"
                )
            self.cnn_teacher = CnnTeacher(cnn, cfg.frontend_frame_ms // CNN_FRAME_MS)
        self.fbank = FbankFrontEnd(cfg, output_dim)
        w2v_model.feature_extractor = nn.Identity()
        w2v_model.feature_grad_mult = 1.0
        # frames in, frames out: fairseq then keeps the lengths that it is given
        w2v_model.cfg = OmegaConf.merge(w2v_model.cfg, {"conv_feature_layers": "[]"})

    def _let_gradient_through_cnn(self) -> None:
        """With feature_grad_mult 0, the default of fine-tuning, fairseq runs the CNN without
        autograd. A learned waveform reduction lies before it and would never be trained: then the
        CNN is frozen by its parameters instead."""
        learned = any(True for _ in self.waveform_reduction.parameters())
        if learned and self.w2v_model.feature_grad_mult <= 0:
            self.w2v_model.feature_grad_mult = 1.0
            self.w2v_model.feature_extractor.requires_grad_(False)

    def _build_transformer(self, cfg) -> None:
        encoder = self.w2v_model.encoder
        self.kept_layers = parse_keep_layers(cfg.keep_layers, len(encoder.layers))
        self.speeds.set_depths(cfg, len(self.kept_layers), len(encoder.layers))
        if len(self.kept_layers) < len(encoder.layers) or len(self.speeds.depths) > 1:
            encoder.layers = KeptLayers(encoder.layers, self.kept_layers)
        self.frame_reduction = FrameReduction(
            cfg.frame_pool_method, self.speeds.frame_pools, encoder
        )

    def _build_loop(self, cfg, num_labels: int) -> None:
        encoder = self.w2v_model.encoder
        self.loop = self.exit = self.merging = None
        exits = parse_exit_layers(cfg.exit_layers, self.kept_layers, cut=bool(cfg.depths))
        if cfg.exit_heads_only:
            self.requires_grad_(False)
            if self.fbank is not None:
                self.fbank.statistics_updates = 0
        if exits:
            self.exit_heads = nn.ModuleDict(
                {str(index): build_head(cfg, encoder.embedding_dim, num_labels) for index in exits}
            )
            self.exit = EarlyExit(self.kept_layers, exits, self._exit_logits, cfg)
        if cfg.merge_ratio > 0:
            layers = parse_merge_layers(cfg.merge_layers, self.kept_layers, bool(cfg.depths))
            self.merging = TokenMerging(layers, cfg)
        stages = [stage for stage in (self.exit, self.merging) if stage is not None]
        if stages:
            self.loop = TransformerLoop(encoder, self.kept_layers, stages)
        if stages or max(self.speeds.frame_pools) > 1:
            encoder.register_forward_hook(self._after_transformer)

    def set_num_updates(self, num_updates: int) -> None:
        """Called by fairseq's trainer."""
        super().set_num_updates(num_updates)
        if num_updates >= self.match_updates:
            self.cnn_teacher = None  # no longer needed

    def _apply(self, function, recurse=True):
        super()._apply(function, recurse)
        if getattr(self, "cnn_teacher", None) is not None:
            self.cnn_teacher.apply(function)
        return self

    # -- lengths ---------------------------------------------------------------------------------

    @property
    def front_end(self):
        """Knows lengths and MACs."""
        return self.cnn if self.fbank is None else self.fbank

    def switch(self, speed: Speed) -> None:
        """Chooses one of ``speeds``."""
        if not self.speeds.many:
            return
        if len(self.speeds.factors) > 1:
            self.waveform_reduction.switch(speed.factor)
        self.frame_reduction.switch(speed.frame_pool)
        if len(self.speeds.depths) > 1:
            self.w2v_model.encoder.layers.depth = speed.depth

    def frame_lengths(self, num_samples):
        """Frames of the front-end for utterances of ``num_samples``."""
        return self.front_end.output_lengths(self.waveform_reduction.output_lengths(num_samples))

    def output_lengths(self, num_samples):
        """Logit frames of utterances of ``num_samples`` (int, numpy array or tensor)."""
        return self.frame_lengths(num_samples) * self.logit_upsample

    def frame_grid(self) -> FrameGrid:
        """Where the logit frames lie in the waveform, at the speed that is chosen."""
        samples = self.waveform_reduction.frame_grid(FrameGrid())
        return self.front_end.frame_grid(samples).split(self.logit_upsample)

    def ctc_lengths(self, num_samples):
        """Logit frames that CTC can give labels of their own, at the fastest speed that is trained:
        frames that have merged are copies of each other. Merging by similarity depends on what the
        frames hold, and is left out."""
        frames = self.front_end.output_lengths(self.waveform_reduction.fewest(num_samples))
        if self.merging is not None and self.merging.known_lengths:
            pooled = self.frame_reduction.fewest(frames)
            for index in self.kept_layers:
                pooled = self.merging.lengths_after(index, pooled)
            frames = np.minimum(frames, pooled * max(self.speeds.frame_pools))
        return frames * self.logit_upsample

    def needed_samples(self, any_speed: bool = False) -> int:
        """The shortest waveform, in samples, that gives one frame.

        Args:
            any_speed: at every speed that is trained; else at the one that is chosen
        """
        needed = self.front_end.needed_samples(1)
        if any_speed:
            return self.waveform_reduction.most_needed(needed)
        return self.waveform_reduction.needed_samples(needed)

    # -- forward ---------------------------------------------------------------------------------

    def forward(self, source, padding_mask=None, match_frontend: bool = False, **kwargs):
        """
        Args:
            source: waveform (B, S)
            padding_mask: (B, S), True at padding, or None where nothing is padded
            match_frontend: return what the front-end gives and what the CNN gave, nothing else
        Returns:
            fairseq's dict: ``encoder_out`` logits (T, B, V), ``padding_mask`` (B, T) or None,
            ``layer_results``; with exits or merging also ``layer_frames`` (B, layers), the frames
            that each layer was given, 0 where it was not run; with exits also ``exit_logits``
            (T, B, V) and ``exit_measured`` (B,) by the layer's index, of training and calibration,
            where nobody leaves
        Raises:
            ValueError: an utterance is too short for one frame
        """
        training = self.training and self.speeds.many
        self.switch(self.speeds.drawn(self.num_updates) if training else self.speeds.default)
        num_samples = lengths_of(padding_mask, source)
        self._check_long_enough(num_samples)
        waveform, lengths = self.waveform_reduction(source, num_samples)
        if match_frontend:
            return self._match_frontend(waveform.detach(), lengths)  # the front-end alone learns
        if waveform is not source:
            padding_mask = padding_mask_of(lengths, waveform.size(1))
        self._frame_lengths = self.front_end.output_lengths(lengths)
        self._num_frames = self.front_end.output_lengths(waveform.size(1))
        if self.fbank is not None:
            waveform, _ = self.fbank(waveform, lengths)  # its frames, to fairseq the source
            padding_mask = padding_mask_of(self._frame_lengths, self._num_frames)
        for norm in self.masked_norms:
            norm.num_samples = lengths
        if self.loop is None:
            output = super().forward(source=waveform, padding_mask=padding_mask, **kwargs)
            logits = upsample_logits(output["encoder_out"], self.logit_upsample)
        else:
            output, logits = self._forward_watched(waveform, padding_mask, kwargs)
        if logits.size(0) != self._num_frames * self.logit_upsample:
            raise AssertionError(
                f"the model gave {logits.size(0)} logit frames of {source.size(1)} samples; "
                f"the length formula says {self._num_frames * self.logit_upsample}"
            )
        if output["padding_mask"] is not None and self.logit_upsample > 1:
            output["padding_mask"] = output["padding_mask"].repeat_interleave(
                self.logit_upsample, dim=1
            )
        return {**output, "encoder_out": logits}

    def _forward_watched(self, waveform, padding_mask, kwargs):
        """The encoder's output with ``layer_frames`` and, where nobody may leave, ``exit_logits``
        and ``exit_measured`` by exit; and the logits (T', B, V)."""
        stay = self.training or (self.exit is not None and self.exit.observed)
        lengths = self.frame_reduction.output_lengths(self._frame_lengths)
        num_frames = self.frame_reduction.output_lengths(self._num_frames)
        self.loop.start(lengths, num_frames, stay)
        try:
            output = super().forward(source=waveform, padding_mask=padding_mask, **kwargs)
            logits = upsample_logits(output["encoder_out"], self.logit_upsample)
        except EveryoneLeft:
            mask = padding_mask_of(self._frame_lengths, self._num_frames)
            output, logits = {"padding_mask": mask if mask.any() else None}, None
        finally:
            passage = self.loop.finish()
        if passage.left:
            num_logits = self._num_frames * self.logit_upsample
            logits = passage.put_exit_logits(logits, num_logits)
        output["layer_frames"] = passage.layer_frames
        if self.exit is not None:
            # here, not in the layers' hooks: freeze_finetune_updates runs those without autograd
            output["exit_logits"] = {
                layer: self._exit_logits(layer, hidden, passage.active)[0]
                for layer, hidden in passage.exit_hidden.items()
            }
            output["exit_measured"] = passage.measured
        return output, logits

    def _after_transformer(self, encoder, args, output):
        """Gives back the frames that merged or were pooled, and the places of those that left."""
        hidden, layer_results = output
        if self.loop is not None:
            # the loop is time first: B x T x C -> T x B x C and back
            hidden = self.loop.passage.restore(hidden.transpose(0, 1)).transpose(0, 1)
        return self.frame_reduction.upsample(hidden, self._num_frames), layer_results

    def _exit_logits(self, layer: int, hidden: torch.Tensor, utterances: torch.Tensor):
        """Logits (T', A, V) of the exit after ``layer``, from hidden states (T, A, C) of
        ``utterances`` (A,), and their valid frames (A,)."""
        if self.w2v_model.encoder.layer_norm_first:
            hidden = self.w2v_model.encoder.layer_norm(hidden)
        lengths = self._frame_lengths[utterances]
        num_frames = self._num_frames
        if self.frame_reduction.output_lengths(num_frames) > hidden.size(0):
            num_frames = int(lengths.max())
        # upsampling is batch first: T x A x C -> A x T x C and back
        hidden = self.frame_reduction.upsample(hidden.transpose(0, 1), num_frames).transpose(0, 1)
        head = self.exit_heads[str(layer)]
        logits = run_head(head, self.final_dropout(hidden), lengths)
        return upsample_logits(logits, self.logit_upsample), lengths * self.logit_upsample

    def _match_frontend(self, waveform, lengths):
        """``matched`` and ``target`` (B, T, C), and ``padding_mask`` (B, T)."""
        frames, frame_lengths = self.fbank(waveform, lengths)
        layer_norm = self.w2v_model.layer_norm
        return {
            "matched": normalised(frames, layer_norm),
            "target": self.cnn_teacher(waveform, lengths, layer_norm),
            "padding_mask": padding_mask_of(frame_lengths, frames.size(2)),
        }

    def _check_long_enough(self, num_samples: torch.Tensor) -> None:
        shortest, needed = int(num_samples.min()), self.needed_samples()
        if shortest < needed:
            raise ValueError(
                f"an utterance of {shortest} samples is shorter than one output frame, which takes "
                f"{needed} samples with this front-end and waveform reduction"
            )
