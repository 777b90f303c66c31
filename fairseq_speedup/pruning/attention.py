"""Self-attention with some of a layer's heads."""

from torch import nn

from fairseq_speedup.transformer.attention import SelfAttention
from fairseq_speedup.transformer.relative_attention import RelativeAttention


class SomeHeads(SelfAttention):
    """SelfAttention with a number of its own: fairseq's needs as many channels in its heads as in
    its frames. Without heads it gives its bias."""

    def forward(self, query, key=None, value=None, key_padding_mask=None, **unused):
        """As SelfAttention's."""
        if self.num_heads == 0:
            return self.out_proj.bias.expand_as(query), None
        return super().forward(query, key_padding_mask=key_padding_mask)


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
