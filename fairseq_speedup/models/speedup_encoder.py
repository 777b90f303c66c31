"""fairseq's wav2vec 2.0 encoder with reductions at every stage of the data path."""

from collections.abc import Sequence
from functools import partial

import torch
from fairseq.models.wav2vec.wav2vec2_asr import Wav2VecEncoder
from fairseq.modules import GradMultiply
from torch import nn

from fairseq_speedup.config import SpeedupCtcConfig
from fairseq_speedup.frames import FrameReduction, mask_short_utterances
from fairseq_speedup.frontend import (
    CnnFrontEnd,
    CnnTeacher,
    FbankFrontEnd,
    MaskedCnn,
    let_gradient_through,
    run_cnn,
)
from fairseq_speedup.frontend.matching import weights_held
from fairseq_speedup.heads import build_head, run_head, upsample_logits
from fairseq_speedup.lengths import lengths_of, padding_mask_of
from fairseq_speedup.models.lengths import PathLengths
from fairseq_speedup.models.start import keep_head, load_encoder, read_start
from fairseq_speedup.pretrained import Pretrained, adapt, keep_layer_type
from fairseq_speedup.pruning.gates import build_pruning
from fairseq_speedup.pruning.narrowing import narrow
from fairseq_speedup.pruning.switched_widths import build_widths
from fairseq_speedup.pruning.widths import Width
from fairseq_speedup.speeds import Speed, Speeds
from fairseq_speedup.transformer.conformer import mask_convolutions
from fairseq_speedup.transformer.early_exit import EarlyExit
from fairseq_speedup.transformer.frame_batch import FrameBatch
from fairseq_speedup.transformer.layer_removal import KeptLayers, parse_keep_layers
from fairseq_speedup.transformer.layers import PaddedLayers
from fairseq_speedup.transformer.path import TransformerPath
from fairseq_speedup.transformer.reused_attention import check_kept
from fairseq_speedup.transformer.stages import STAGES
from fairseq_speedup.waveform import build_waveform_reduction


class SpeedupEncoder(PathLengths, Wav2VecEncoder):
    """waveform -> waveform reduction -> front-end -> frame reduction -> transformer -> frames
    unmerged -> CTC head -> logit upsampling

    The path is written out here, in :meth:`forward`, and of the transformer in
    :class:`TransformerPath`; the modules on it, and so the weights' names, are fairseq's. Lengths
    are exact: what is padding at the input is padding, and nothing else is, to the transformer and
    to CTC.
    """

    proj: nn.Module  # the head, fairseq's linear one or another
    narrowed: Width | None = None  # what is left of the parts that a checkpoint may have
    reduced_start: Pretrained | None = None  # until all of it is loaded

    def __init__(self, cfg: SpeedupCtcConfig, labels: list[str]):
        """
        Args:
            labels: symbols of the dictionary
        """
        num_labels = len(labels)
        start = read_start(cfg)
        waveform_reduction = build_waveform_reduction(cfg.downsample, Speeds(cfg).factors)
        narrowed = narrow(cfg)
        keep_layer_type(cfg)
        super().__init__(cfg, num_labels)
        self.narrowed = narrowed
        adapt(self.w2v_model, cfg.w2v_args)
        mask_short_utterances(self.w2v_model)
        weights = None if cfg.no_pretrained_weights else start
        if weights is not None:
            load_encoder(self, weights, cfg)
            self.reduced_start = weights if weights.reductions else None
        # Cropping to a multiple serves pretraining on TPUs and would cut frames from utterances.
        self.w2v_model.crop_seq_to_multiple = 1
        self._build_path(cfg, num_labels, waveform_reduction, start)
        if weights is not None and cfg.head == "linear":
            keep_head(self, weights, labels, cfg)

    @classmethod
    def around(cls, stock: Wav2VecEncoder) -> "SpeedupEncoder":
        """fairseq's encoder on this path, with every reduction off: the same numbers. It takes the
        encoder's modules, as they are."""
        encoder = cls.__new__(cls)
        encoder.__dict__.update(stock.__dict__)
        off = SpeedupCtcConfig(padding="stock")
        encoder._build_path(off, 0, build_waveform_reduction("none", [1]))
        return encoder.train(stock.training)

    # -- building --------------------------------------------------------------------------------

    def _build_path(self, cfg, num_labels: int, waveform_reduction, start=None) -> None:
        """The stages, around what fairseq has built.

        Args:
            start: of training, whose CNN can be a teacher
        """
        self.waveform_reduction = waveform_reduction
        if cfg.padding == "masked":
            mask_convolutions(self.w2v_model.encoder)
        self.speeds = Speeds(cfg)
        self._build_front_end(cfg, start)
        self._build_transformer(cfg)
        self._build_heads(cfg, num_labels)
        built = [stage.build(cfg, self) for stage in STAGES]
        self.stages = [stage for stage in built if stage is not None]
        encoder = self.w2v_model.encoder
        self.transformer = TransformerPath(
            encoder,
            self.frame_reduction,
            PaddedLayers(encoder, self.kept_layers, self.stages),
            num_layers=len(self.kept_layers),
            masked=cfg.padding == "masked",
        )
        self.widths = build_widths(self, cfg)
        self.switch(self.speeds.default)
        self.pruning = build_pruning(self, cfg)
        self.captured = None  # how a GPU's inference form runs the path, see CapturedPath
        if self.cnn is not None and self.cnn_teacher is not None:
            self.cnn_held = cfg.feature_grad_mult <= 0  # afterwards
            self.w2v_model.feature_extractor.requires_grad_(True)

    def _build_front_end(self, cfg, start: Pretrained | None) -> None:
        w2v_model = self.w2v_model
        self.fbank = self.cnn = self.cnn_teacher = None
        self.match_updates = cfg.frontend_match_updates
        self.cnn_held = False  # a CNN that is matched, and then stays as it is
        if cfg.frontend_match_updates > 0 and start is not None:
            heard = start.reductions.get("downsample", "none")
            self.cnn_teacher = CnnTeacher.of(cfg, w2v_model.feature_extractor, heard)
        if cfg.frontend == "cnn":
            self.cnn = CnnFrontEnd(w2v_model.feature_extractor)
            if cfg.padding == "masked":
                w2v_model.feature_extractor = MaskedCnn.of(w2v_model.feature_extractor)
            if any(True for _ in self.waveform_reduction.parameters()):
                let_gradient_through(w2v_model)  # to a waveform reduction that learns
            return
        self.fbank = FbankFrontEnd(cfg, w2v_model.embed)
        w2v_model.feature_extractor = nn.Identity()
        w2v_model.feature_grad_mult = 1.0

    def _build_transformer(self, cfg) -> None:
        encoder = self.w2v_model.encoder
        self.kept_layers = parse_keep_layers(cfg.keep_layers, len(encoder.layers))
        check_kept(encoder.layers, self.kept_layers, f"keep_layers={cfg.keep_layers}")
        self.speeds.set_depths(cfg, len(self.kept_layers), len(encoder.layers))
        if len(self.kept_layers) < len(encoder.layers) or len(self.speeds.depths) > 1:
            encoder.layers = KeptLayers(encoder.layers, self.kept_layers)
        self.frame_reduction = FrameReduction(
            cfg.frame_pool_method, self.speeds.frame_pools, encoder
        )

    def _build_heads(self, cfg, num_labels: int) -> None:
        """The last head, and how those of exits are made."""
        if cfg.head != "linear" or cfg.logit_upsample > 1:
            self.proj = build_head(cfg, self.proj.in_features, num_labels)
        self.logit_upsample = cfg.logit_upsample
        self.new_head = partial(build_head, cfg, self.w2v_model.encoder.embedding_dim, num_labels)
        if cfg.exit_heads_only:
            self.requires_grad_(False)
            # a layer that is left out has no exit, and nothing else would learn in that update
            self.w2v_model.encoder.layerdrop = 0.0
            if self.fbank is not None:
                self.fbank.statistics_updates = 0

    def _apply(self, function, recurse=True):
        super()._apply(function, recurse)
        if (teacher := getattr(self, "cnn_teacher", None)) is not None:
            teacher.apply(function)
        return self

    # -- its parts, and the speed that is chosen -------------------------------------------------

    @property
    def front_end(self):
        """Knows lengths and MACs."""
        return self.cnn if self.fbank is None else self.fbank

    @property
    def exit(self) -> EarlyExit | None:
        """The exits, of a model that has any."""
        return next((stage for stage in self.stages if isinstance(stage, EarlyExit)), None)

    @property
    def exit_layers(self) -> list[int]:
        """Indices of the layers with an exit, of the model before layers were removed."""
        return [] if self.exit is None else list(self.exit.exits)

    def switch(self, speed: Speed) -> None:
        """Chooses one of ``speeds``."""
        if not self.speeds.many:
            return
        if len(self.speeds.factors) > 1:
            self.waveform_reduction.switch(speed.factor)
        self.frame_reduction.switch(speed.frame_pool)
        if len(self.speeds.depths) > 1:
            self.w2v_model.encoder.layers.depth = speed.depth
        if self.widths is not None:
            self.widths.switch(speed.width)

    # -- forward ---------------------------------------------------------------------------------

    def forward(
        self,
        source,
        padding_mask=None,
        match_frontend: bool = False,
        corpus_key=None,
        speeds: Sequence[Speed] = (),
        **unused,
    ):
        """
        Args:
            source: waveform (B, S)
            padding_mask: (B, S), True at padding, or None where nothing is padded
            match_frontend: return what the front-end gives and what the CNN gave of the whole
                waveform, nothing else
            corpus_key: chooses an adapter, of layers that have adapters
            speeds: those to run, of a model of many; without them one, drawn for the update in
                training, else the one that the model is set to
        Returns:
            fairseq's dict: ``encoder_out`` logits (T, B, V), ``padding_mask`` (B, T) or None,
            ``layer_results``; with exits or merging also ``layer_frames`` (B, layers), the frames
            that each layer was given, 0 where it was not run; with exits also ``exit_logits``
            (T, B, V) by the layer's index, of training and calibration, where nobody leaves, and
            ``exit_measured`` (B,), of calibration. With ``speeds``, ``at_speeds``: such a dict of
            each, in their order
        Raises:
            ValueError: an utterance is too short for one frame
        """
        drawn = self.training and self.speeds.many
        speed = self.speeds.drawn(self.num_updates) if drawn else self.speeds.default
        self.switch(speed)
        if self.pruning is not None and match_frontend:
            self.pruning.open()
        elif self.pruning is not None:
            self.pruning.prepare(self.training)
        num_samples = lengths_of(padding_mask, source)
        if match_frontend:
            return self._matched(source, num_samples)
        if self.captured is not None:
            self._check_long_enough(num_samples)
            return self.captured(source, padding_mask)
        outputs = self._at_speeds(speeds or [speed], source, num_samples, corpus_key)
        if self.pruning is not None and self.training:
            # here, and not in the criterion: distributed training wants every weight in forward
            outputs[0] |= self.pruning.loss(self.num_updates)
        if not speeds:
            return outputs[0]
        self.switch(self.speeds.default)
        return {"at_speeds": outputs}

    def _at_speeds(self, speeds, source, num_samples, corpus_key) -> list[dict]:
        """What each speed gives. Those of one factor and width share what the front-end gives, its
        dropout and masks among it."""
        outputs, shared = [], {}
        for speed in speeds:
            self.switch(speed)
            heard = (speed.factor, speed.width)
            if heard not in shared:
                waveform, lengths = self._shortened(source, num_samples)
                with self._frozen():
                    shared[heard] = self.frames(waveform, lengths)
            frames, lengths, padding_mask = shared[heard]
            output = self._output(frames, lengths, padding_mask, corpus_key)
            num_logits = frames.size(1) * self.logit_upsample
            check_length(output["encoder_out"], num_logits, source.size(1))
            outputs.append(output)
        return outputs

    def _shortened(self, source, num_samples):
        """Waveforms (B, S') and their valid samples (B,), at the speed that is chosen."""
        self._check_long_enough(num_samples)
        return self.waveform_reduction(source, num_samples)

    def _frozen(self):
        """Without autograd in the updates of ``freeze_finetune_updates``."""
        frozen = self.num_updates < self.freeze_finetune_updates
        return torch.set_grad_enabled(torch.is_grad_enabled() and not frozen)

    def _output(self, frames, lengths, padding_mask, corpus_key) -> dict:
        """The transformer and the heads: see :meth:`forward`."""
        exit_early = self.exit is not None and not self.exit.observed and not self.training
        with self._frozen():
            hidden, batch, layer_results = self.transformer(
                frames,
                lengths,
                padding_mask,
                keep_everyone=not exit_early,
                corpus_key=corpus_key,
            )
        logits = None if hidden is None else self.logits(hidden, batch.logit_frames)
        if batch.left:
            logits = batch.all_logits(logits, frames.size(1) * self.logit_upsample)
        if padding_mask is not None:
            padding_mask = padding_mask.repeat_interleave(self.logit_upsample, dim=1)
        output = {
            "encoder_out": logits,
            "padding_mask": padding_mask,
            "layer_results": layer_results,
        }
        if self.stages:
            output["layer_frames"] = batch.layer_frames
        if self.exit is not None:
            # outside of what freeze_finetune_updates runs without autograd
            output["exit_logits"] = {
                index: self.exit_logits(index, hidden, batch)[0]
                for index, hidden in batch.exit_hidden.items()
            }
            output["exit_measured"] = batch.measured
        return output

    def frames(self, waveform: torch.Tensor, lengths: torch.Tensor, is_padded: bool | None = None):
        """The front-end, and what lies between it and the transformer: norm, projection, dropout
        and, while training, masking.

        Args:
            waveform: (B, S), of the waveform reduction
            lengths: (B,), valid samples
            is_padded: whether there is a mask; without it, where something is padded, which asks
                the device that computes
        Returns:
            frames (B, T, C), their valid counts (B,), and a mask (B, T), True at padding, or None
            where the waveforms have none
        """
        w2v_model = self.w2v_model
        trained = w2v_model.feature_grad_mult > 0
        are_padded = lengths < waveform.size(1)
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and trained),
            weights_held(w2v_model.feature_extractor, self.cnn_held),
        ):
            frames, lengths = self._front_end_frames(waveform, lengths)
        if self.fbank is not None:
            are_padded = lengths < frames.size(2)
        if is_padded is None:
            is_padded = bool(are_padded.any())
        if trained and w2v_model.feature_grad_mult != 1.0:
            frames = GradMultiply.apply(frames, w2v_model.feature_grad_mult)
        padding_mask = padding_mask_of(lengths, frames.size(2)) if is_padded else None
        normed = w2v_model.layer_norm(frames.transpose(1, 2))  # B x C x T -> B x T x C
        frames = normed
        if w2v_model.post_extract_proj is not None:
            frames = w2v_model.post_extract_proj(frames)
        frames = w2v_model.dropout_input(frames)
        if self.training:
            w2v_model.dropout_features(normed)  # of no use here, but fairseq draws for it
        if w2v_model.input_quantizer:
            quantised = w2v_model.input_quantizer(frames, produce_targets=False)
            frames = w2v_model.project_inp(quantised["x"])
        if self.apply_mask and self.training:
            frames, _ = w2v_model.apply_mask(frames, padding_mask)
        return frames, lengths, padding_mask

    def logits(self, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(T', B, V) of hidden states (B, T, C) with valid frames (B,)."""
        hidden = self.final_dropout(hidden.transpose(0, 1))  # B x T x C -> T x B x C
        if self.proj:
            hidden = run_head(self.proj, hidden, lengths)
        return upsample_logits(hidden, self.logit_upsample)

    def exit_logits(
        self, index: int, hidden: torch.Tensor, batch: FrameBatch, with_dropout: bool = True
    ):
        """Logits (T', A, V) of the exit after layer ``index``, from hidden states (T, A, C) of the
        utterances that are in the batch, and their valid frames (A,)."""
        with self._frozen():  # the exit's head alone learns meanwhile
            if self.w2v_model.encoder.layer_norm_first:
                hidden = self.w2v_model.encoder.layer_norm(hidden)
            # upsampling is batch first: T x A x C -> A x T x C and back
            hidden = self.frame_reduction.upsample(hidden.transpose(0, 1), batch.most_frames)
            hidden = hidden.transpose(0, 1)
        head, lengths = self.exit_heads[str(index)], batch.logit_frames
        if with_dropout:
            hidden = self.final_dropout(hidden)
        logits = run_head(head, hidden, lengths)
        return upsample_logits(logits, self.logit_upsample), lengths * self.logit_upsample

    def _front_end_frames(self, waveform, lengths):
        """Frames (B, C, T) and their valid counts (B,)."""
        if self.fbank is not None:
            return self.fbank(waveform, lengths)
        frames = run_cnn(self.w2v_model.feature_extractor, waveform, lengths)
        return frames, self.front_end.output_lengths(lengths)

    def _matched(self, source, num_samples) -> dict:
        """What the front-end gives, and what it is to give: see :meth:`CnnTeacher.compared`."""
        teacher = self.cnn_teacher
        assert teacher is not None  # the task asks for this before matching ends
        frames, lengths = self._front_end_frames(*self._shortened(source, num_samples))
        layer_norm, grid = self.w2v_model.layer_norm, self.front_end_grid()
        return teacher.compared(frames, lengths, source, num_samples, layer_norm, grid)

    def begin_matching(self) -> None:
        """Before the first update, of a model that may have been given other weights since."""
        if self.cnn is not None and self.cnn_teacher is not None:
            self.cnn_teacher.check_like(self.w2v_model.feature_extractor, self.match_updates)

    def end_matching(self) -> bool:
        """The teacher is no longer needed.

        Returns:
            whether what has learned now stays as it is, for a while at least
        """
        self.cnn_teacher = None
        return self.cnn_held or self.freeze_finetune_updates > self.match_updates

    def _check_long_enough(self, num_samples: torch.Tensor) -> None:
        shortest, needed = int(num_samples.min()), self.needed_samples()
        if shortest < needed:
            raise ValueError(
                f"an utterance of {shortest} samples is shorter than one output frame, which takes "
                f"{needed} samples with this front-end and waveform reduction"
            )


def check_length(logits: torch.Tensor, num_logits: int, num_samples: int) -> None:
    """Raises AssertionError where the length formulas do not say what the model does."""
    if logits.size(0) != num_logits:
        raise AssertionError(
            f"the model gave {logits.size(0)} logit frames of {num_samples} samples; the length "
            f"formula says {num_logits}"
        )
