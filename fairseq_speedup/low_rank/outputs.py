"""What a linear layer gives on some audio: mean, covariance, and the rank that holds most of it."""

import torch


class TooLittleAudioError(ValueError):
    """Fewer rows than they have values."""


class OutputStatistics:
    """Of rows that come in blocks.

    Args:
        size: values of a row
        device: that products are computed on

    Attributes:
        num_rows: that came
    """

    def __init__(self, size: int, device):
        self.num_rows = 0
        self._shift = None  # near the mean, so that little is lost where that is large
        self._sum = torch.zeros(size, dtype=torch.float64, device=device)
        self._products = torch.zeros(size, size, dtype=torch.float64, device=device)

    def add(self, outputs) -> None:
        """Of outputs (..., size)."""
        rows = outputs.detach().flatten(0, -2).double()
        if not len(rows):
            return
        if self._shift is None:
            self._shift = rows.mean(dim=0)
        rows = rows - self._shift
        self.num_rows += len(rows)
        self._sum += rows.sum(dim=0)
        self._products += rows.T @ rows

    def check_enough(self, seconds: float, where: str, what: str) -> None:
        """
        Args:
            seconds: of the audio that rows are of
            where: they were seen, in words
            what: they are of what is there, in words
        Raises:
            TooLittleAudioError
        """
        size = len(self._sum)
        if self.num_rows < size:
            raise TooLittleAudioError(
                f"too little audio: its {seconds:.1f} s have {self.num_rows} frames in {where}, "
                f"which has {size} {what}; give more (--audio, --minutes), best some minutes"
            )

    def mean(self) -> torch.Tensor:
        """(size,), float64, on the CPU"""
        return (self._shift + self._sum / self.num_rows).cpu()

    def covariance(self) -> torch.Tensor:
        """(size, size), float64, on the CPU"""
        mean = self._sum / self.num_rows
        return (self._products / self.num_rows - torch.outer(mean, mean)).cpu()

    def directions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Variances (size,), falling, and the directions (size, size) that have them, in columns:
        float64, on the CPU."""
        variances, directions = torch.linalg.eigh(self.covariance())
        return variances.flip(0).clamp(min=0), directions.flip(1)


def rank_of(variances, energy: float, multiple: int) -> int:
    """The smallest multiple of ``multiple`` whose directions have a share of more than ``energy``
    of the variance; the whole size where no smaller one does."""
    size = len(variances)
    total = variances.sum()
    left = 1 - variances.cumsum(0) / total if total > 0 else variances
    enough = (left < 1 - energy).nonzero()[:, 0]
    rank = int(enough[0]) + 1 if len(enough) else (size if total > 0 else 1)
    return min(size, -(-rank // multiple) * multiple)
