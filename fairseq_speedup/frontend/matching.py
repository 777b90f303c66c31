"""The pretrained CNN as a teacher of what takes its place: another front-end, or itself behind a
shortened waveform (after Front-End Adapter, arXiv 2302.09331)."""

import contextlib
import copy
import logging
import math

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_speedup.frontend.cnn import CnnFrontEnd, MaskedCnn, run_cnn
from fairseq_speedup.frontend.config import CNN_FRAME_MS
from fairseq_speedup.frontend.scaled_norm import ScaledLayerNorm
from fairseq_speedup.lengths import FrameGrid, padding_mask_of

logger = logging.getLogger(__name__)

CNN_STRIDE = 320  # samples, 20 ms


class CnnTeacher:
    """What the transformer was given before the model was reduced: the pretrained CNN, hearing the
    whole waveform.

    Not a module: it is needed while training alone and is no part of the checkpoint.

    Args:
        feature_extractor: fairseq's convolutional front-end, pretrained, which nothing else trains
    """

    def __init__(self, feature_extractor):
        self.feature_extractor = MaskedCnn.of(feature_extractor).eval().requires_grad_(False)
        self.cnn = CnnFrontEnd(self.feature_extractor)

    @classmethod
    def of(cls, cfg, feature_extractor, heard: str) -> "CnnTeacher":
        """The pretrained CNN as it is now.

        Args:
            heard: ``downsample`` of the model that it is from
        Raises:
            ValueError: it is no teacher of what ``cfg`` asks for
        """
        option = f"frontend_match_updates={cfg.frontend_match_updates}"
        stride = math.prod(stride for _, _, stride in CnnFrontEnd(feature_extractor).conv_layers)
        if cfg.frontend != "cnn" and stride != CNN_STRIDE:
            raise ValueError(
                f"{option}: the pretrained CNN does not give a frame every {CNN_FRAME_MS} ms; set "
                "frontend_match_updates=0"
            )
        if cfg.no_pretrained_weights:
            raise ValueError(
                f"{option} needs the pretrained CNN's weights: leave no_pretrained_weights out"
            )
        if heard != "none":
            raise ValueError(
                f"{option}: the CNN of model.w2v_path={cfg.w2v_path} was trained with downsample="
                f"{heard} and does not know the whole waveform any more; set "
                "frontend_match_updates=0"
            )
        return cls(copy.deepcopy(feature_extractor))

    def apply(self, function) -> None:
        """Follows the model to its device and precision."""
        self.feature_extractor._apply(function)

    def is_like(self, feature_extractor) -> bool:
        """Whether a CNN has the teacher's weights."""
        theirs = feature_extractor.state_dict()
        ours = self.feature_extractor.state_dict()
        return all(torch.equal(weight, theirs[name]) for name, weight in ours.items())

    def check_like(self, feature_extractor, updates: int) -> None:
        """Warns where the CNN that is to learn for ``updates`` is not like the teacher."""
        if not self.is_like(feature_extractor):
            logger.warning(
                "the CNN of checkpoint.finetune_from_model is not that of model.w2v_path, which it "
                "learns to reproduce (frontend_match_updates=%s): give the checkpoint that the "
                "transformer is taken from as model.w2v_path",
                updates,
            )

    def compared(self, frames, lengths, waveform, num_samples, layer_norm, grid: FrameGrid) -> dict:
        """
        Args:
            frames: (B, C, T) of the front-end that learns, and their valid counts (B,)
            waveform, num_samples, layer_norm, grid: as for a call
        Returns:
            ``matched`` and ``target`` (B, T, C), and ``padding_mask`` (B, T)
        """
        num_frames = frames.size(2)
        target, covered = self(waveform, num_samples, layer_norm, grid, num_frames)
        return {
            "matched": normalised(frames, layer_norm),
            "target": target,
            "padding_mask": padding_mask_of(lengths, num_frames) | ~covered,
        }

    @torch.no_grad()
    def __call__(self, waveform, num_samples, layer_norm, grid: FrameGrid, num_frames: int):
        """
        Args:
            waveform: (B, S), not shortened
            num_samples: (B,), valid ones
            layer_norm: the model's, over the front-end's channels
            grid: where the frames lie that are to be matched
            num_frames: T of them
        Returns:
            frames (B, T, C), normalised, float32, each the mean of the CNN's frames over the
            samples that it stands for, and which of them (B, T) have any of the CNN's
        """
        frames = normalised(run_cnn(self.feature_extractor, waveform, num_samples), layer_norm)
        padding = padding_mask_of(self.cnn.output_lengths(num_samples), frames.size(1))
        frames = frames.float().masked_fill(padding[:, :, None], 0)
        ours = self.cnn.frame_grid(FrameGrid())
        shared = grid.overlap(num_frames, ours, frames.size(1), waveform.device)  # (T, T')
        with torch.autocast(waveform.device.type, enabled=False):
            covered = (~padding).float() @ shared.T  # (B, T), samples
            target = shared @ frames / covered.clamp(min=1e-6)[:, :, None]
        return target, covered > 0


def normalised(frames, layer_norm):
    """Front-end's frames (B, C, T) -> (B, T, C) as the transformer's projection is given them; the
    weights of ``layer_norm`` get no gradient."""
    frames = frames.transpose(1, 2)
    if isinstance(layer_norm, nn.Identity):
        return frames
    if isinstance(layer_norm, ScaledLayerNorm):
        frames = frames * layer_norm.scale.detach()
    weight, bias = layer_norm.weight.detach(), layer_norm.bias.detach()
    return F.layer_norm(frames, layer_norm.normalized_shape, weight, bias, layer_norm.eps)


@contextlib.contextmanager
def weights_held(module: nn.Module, held: bool):
    """Within it what ``module`` computes gives its weights no gradient. They go on requiring one:
    fairseq's fp16 optimiser counts on it that the weights that do stay the same."""
    weights = [weight for weight in module.parameters() if weight.requires_grad] if held else []
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def forget_momentum(optimizer) -> None:
    """Of a fairseq optimiser: what it has gathered while matching would else go on moving weights
    that no other loss trains.

    Args:
        optimizer: fairseq's; in fp16 it has all weights in one
    """
    for state in optimizer.optimizer.state.values():
        for name in ("exp_avg", "momentum_buffer"):
            if isinstance(state.get(name), torch.Tensor):
                state[name].zero_()
