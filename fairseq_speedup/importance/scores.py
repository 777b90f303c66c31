"""How important each part is, by what was seen while the model ran on audio, without labels."""

from typing import Protocol

import torch

from fairseq_speedup.decoding.generator import batch_of
from fairseq_speedup.importance.readers import Reader


class Score(Protocol):
    """Of all gates, from one utterance after another."""

    def __init__(self, readers: list[Reader]): ...

    def learn(self, model, waveform) -> None:
        """From one utterance (S,), which the model is given."""

    def of(self, reader: Reader) -> torch.Tensor:
        """(size,), float64, on the CPU"""


class TaylorScore:
    """What closing a gate would do to the posteriors: half of the second derivative of KL(whole
    model || model with the gate at g) by g, the first being 0. That is the Fisher information of
    the gate: the mean square of the derivative of log p(y), y drawn of the posteriors, which is the
    sum of activation * gradient over what the gate scales (Michel et al., arXiv 1905.10650;
    Molchanov et al., arXiv 1906.10771; for posteriors as here Kwon et al., arXiv 2204.09656).

    Args:
        readers: of all gates
    """

    def __init__(self, readers: list[Reader]):
        self.readers = readers
        self.sums = {
            reader: torch.zeros(reader.gate.size, dtype=torch.float64) for reader in readers
        }
        self.random = torch.Generator().manual_seed(0)

    def learn(self, model, waveform) -> None:
        logits = model(**batch_of([waveform]))["encoder_out"][:, 0]
        log_probs = torch.log_softmax(logits.float(), dim=-1)  # (T, V)
        probs = log_probs.detach().exp().cpu()
        drawn = torch.multinomial(probs, 1, generator=self.random).to(log_probs.device)
        log_probs.gather(1, drawn).sum().backward()
        for reader in self.readers:
            if reader.slope is not None:
                self.sums[reader] += reader.slope.double().cpu().square() / 2
                reader.slope = None

    def of(self, reader: Reader) -> torch.Tensor:
        return self.sums[reader]


class ActivationScore:
    """The variance of what a part adds to the outputs of the layer that reads it, as a share of
    theirs and, in the transformer, that of the residual stream which they are added to. What is
    constant goes into the bias. A convolution's taps are taken for themselves.

    Args:
        readers: of all gates
    """

    def __init__(self, readers: list[Reader]):
        self.readers = readers

    @torch.no_grad()
    def learn(self, model, waveform) -> None:
        model(**batch_of([waveform]))

    @torch.no_grad()
    def of(self, reader: Reader) -> torch.Tensor:
        weight = reader.layer.weight.double().cpu()
        taps = weight.unsqueeze(-1) if weight.dim() == 2 else weight  # (outputs, inputs, taps)
        # variance of the outputs, by pairs of inputs
        pairs = torch.einsum("oik,ojk->ij", taps, taps) * reader.inputs.covariance()
        size, repeats = reader.gate.size, reader.repeats
        groups = pairs.reshape(size, repeats, size, repeats).sum(dim=(1, 3))
        whole = groups.sum()
        if reader.residual is not None:
            whole = whole + reader.residual.covariance().trace()
        return groups.diagonal() / whole.clamp(min=1e-30)


SCORES: dict[str, type[Score]] = {"taylor": TaylorScore, "activation": ActivationScore}
