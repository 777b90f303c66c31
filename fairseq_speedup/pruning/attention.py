"""Self-attention with some of a layer's heads."""

from torch import nn

from fairseq_speedup.transformer.attention import attend
from fairseq_speedup.transformer.relative_attention import RelativeAttention


class SomeHeads(nn.Module):
    """Takes the place of fairseq's MultiheadAttention, which needs as many channels in its heads as
    in its frames, with its projections. Without heads it gives its bias.

    Args:
        attention: fairseq's
        num_heads: that it has, or is to be given weights for
    """

    def __init__(self, attention, num_heads: int | None = None):
        super().__init__()
        self.num_heads = attention.num_heads if num_heads is None else num_heads
        self.head_dim = attention.head_dim
        self.dropout_module = attention.dropout_module
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            setattr(self, name, getattr(attention, name))

    def forward(self, query, key=None, value=None, key_padding_mask=None, **unused):
        """
        Args:
            query: (T, B, C); key and value are the same
            key_padding_mask: (B, T), True at padding, or None
        Returns:
            (T, B, C), and None for the weights
        """
        if self.num_heads == 0:
            return self.out_proj.bias.expand_as(query), None
        frames = query.transpose(0, 1)  # T x B x C -> B x T x C
        q, k, v = (
            projection(frames).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout_prob = self.dropout_module.p if self.training else 0.0
        attended = attend(q, k, v, None, key_padding_mask, dropout_prob)
        return self.out_proj(attended).transpose(0, 1), None


class SomeRelativeHeads(RelativeAttention):
    """RelativeAttention with the heads ``kept`` of those that its frames and the shared bias have.

    Args:
        attention: the one whose projections, gate and positions it takes
        kept: indices of its heads
    """

    def __init__(self, attention: RelativeAttention, kept: list[int]):
        nn.Module.__init__(self)
        copied = {name: dict(vars(attention)[name]) for name in ("_modules", "_parameters")}
        self.__dict__.update(attention.__dict__, **copied)
        self.all_heads = attention.num_heads
        self.kept = list(kept)
        self.num_heads = len(self.kept)

    def forward(self, query, key=None, value=None, key_padding_mask=None, **unused):
        """As RelativeAttention's."""
        if self.num_heads == 0:
            return self.out_proj.bias.expand_as(query), None
        return super().forward(query, key_padding_mask=key_padding_mask)

    def bias_of(self, frames):
        bias = self.positions.bias(frames.size(1))[self.kept]
        if not self.gated:
            return bias[None]
        heads = frames.unflatten(2, (self.all_heads, self.head_dim)).transpose(1, 2)
        return self._gate(heads[:, self.kept]) * bias
