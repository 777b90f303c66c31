"""A loaded model in a form that can be exported: one module, tensors in and out, nothing in Python
that depends on what they hold."""

import torch
from torch import nn

from fairseq_speedup.export.front_end import ExportableCnn, ExportableFbank
from fairseq_speedup.export.transformer import ExportableTransformer
from fairseq_speedup.frontend import MaskedCnn
from fairseq_speedup.heads import upsample_logits
from fairseq_speedup.models.speedup_encoder import SpeedupEncoder
from fairseq_speedup.pruning.cut import cut


class ExportableModel(nn.Module):
    """waveform -> waveform reduction -> front-end -> frame reduction -> transformer -> frames
    unmerged -> CTC head -> logit upsampling -> log-probabilities

    Args:
        model: a SpeedupCtc on the CPU, whose weights it takes: not to be used any more
    Raises:
        ValueError: a model that cannot be exported
    """

    def __init__(self, model):
        super().__init__()
        check_exportable(model)
        cut(model)
        encoder = model.float().eval().requires_grad_(False).w2v_encoder
        encoder.switch(encoder.speeds.default)
        w2v_model = encoder.w2v_model
        reduction = encoder.waveform_reduction
        self.waveform_reduction = getattr(reduction, "chosen", reduction)
        if encoder.fbank is not None:
            self.front_end = ExportableFbank(encoder.fbank)
        else:
            masked = isinstance(w2v_model.feature_extractor, MaskedCnn)
            self.front_end = ExportableCnn(w2v_model.feature_extractor, masked)
        self.layer_norm = w2v_model.layer_norm
        self.post_extract_proj = w2v_model.post_extract_proj or nn.Identity()
        indices, head = layers_and_head(encoder)
        self.transformer = ExportableTransformer(encoder, indices)
        self.head = ExportableBiLstm(head) if getattr(head, "needs_lengths", False) else head
        self.logit_upsample = encoder.logit_upsample

    def forward(self, waveform, lengths):
        """
        Args:
            waveform: (B, S), float32
            lengths: (B,), int64, valid samples
        Returns:
            log-probabilities (B, T, V) in nats and their valid frames (B,)
        """
        waveform, lengths = self.waveform_reduction(waveform, lengths)
        frames, lengths = self.front_end(waveform, lengths)
        frames = self.post_extract_proj(self.layer_norm(frames))
        hidden = self.transformer(frames, lengths)
        if isinstance(self.head, ExportableBiLstm):
            logits = self.head(hidden, lengths)
        else:
            logits = self.head(hidden)
        # upsampling is time first: B x T x V -> T x B x V and back
        logits = upsample_logits(logits.transpose(0, 1), self.logit_upsample).transpose(0, 1)
        return torch.log_softmax(logits, dim=-1), lengths * self.logit_upsample


def check_exportable(model) -> None:
    """Raises ValueError for a model whose utterances take different ways through it."""
    for stage in model.w2v_encoder.stages:
        stage.exportable()
    if model.cfg.blank_weight != 0:
        raise ValueError(
            f"blank_weight={model.cfg.blank_weight} belongs to decoding and cannot be exported: "
            "set it to 0"
        )


def layers_and_head(encoder: SpeedupEncoder) -> tuple[list[int], nn.Module]:
    """Indices of the layers that run, up to the exit that ``exit_criterion=layer`` names, and the
    head after them."""
    num_layers = sum(1 for _ in encoder.w2v_model.encoder.layers)  # at the depth that is chosen
    indices = encoder.kept_layers[:num_layers]
    last = None if encoder.exit is None else encoder.exit.last_layer()
    if last in indices:
        return indices[: indices.index(last) + 1], encoder.exit_heads[str(last)]
    return indices, encoder.proj


class ExportableBiLstm(nn.Module):
    """A BiLstmHead whose layers run one direction at a time, the backward ones over utterances that
    are reversed up to their end.

    Args:
        head: a BiLstmHead
    """

    def __init__(self, head):
        super().__init__()
        self.num_layers = head.lstm.num_layers
        self.lstms = nn.ModuleDict(
            {
                f"{layer}{suffix}": _one_direction(head.lstm, layer, suffix)
                for layer in range(self.num_layers)
                for suffix in ("", "_reverse")
            }
        )
        self.linear = head.linear

    def forward(self, frames, lengths):
        """
        Args:
            frames: (B, T, C)
            lengths: (B,), valid frames
        """
        time = torch.arange(frames.size(1))[None, :]
        reverse = torch.where(time < lengths[:, None], lengths[:, None] - 1 - time, time)
        for layer in range(self.num_layers):
            ahead = self._run(f"{layer}", frames)
            back = self._run(f"{layer}_reverse", _reordered(frames, reverse))
            frames = torch.cat([ahead, _reordered(back, reverse)], dim=2)
        return self.linear(frames)

    def _run(self, name: str, frames):
        # LSTMs are time first: B x T x C -> T x B x C and back
        return self.lstms[name](frames.transpose(0, 1))[0].transpose(0, 1)


def _one_direction(lstm: nn.LSTM, layer: int, suffix: str) -> nn.LSTM:
    weight = getattr(lstm, f"weight_ih_l{layer}{suffix}")
    made = nn.LSTM(weight.size(1), lstm.hidden_size)
    made.load_state_dict(
        {
            f"{kind}_l0": getattr(lstm, f"{kind}_l{layer}{suffix}")
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
    )
    return made


def _reordered(frames, index):
    """Frames (B, T, C) in the order of ``index`` (B, T)."""
    return frames.gather(1, index[:, :, None].expand(-1, -1, frames.size(2)))
