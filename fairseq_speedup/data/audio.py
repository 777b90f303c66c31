"""fairseq's audio dataset, with bad audio named instead of passed on."""

import logging

import numpy as np
import torch
from fairseq.data import FileAudioDataset

logger = logging.getLogger(__name__)


class BadUtteranceError(ValueError):
    """Audio that cannot be used; the message names the file."""


class CheckedAudioDataset(FileAudioDataset):
    """Checks each waveform as it is read.

    While training, a bad utterance is left out with a counted warning that names it; when most are
    bad, and in validation and decoding at the first, it is an error.
    """

    MIN_READS_FOR_VERDICT = 10

    @classmethod
    def of(cls, dataset: FileAudioDataset, split: str, skip_bad: bool) -> "CheckedAudioDataset":
        """The same dataset with checks.

        Args:
            dataset: the one that fairseq's task built
            split: its name, for messages
            skip_bad: leave bad utterances out instead of raising
        """
        checked = cls.__new__(cls)
        checked.__dict__.update(dataset.__dict__)
        checked.split = split
        checked.skip_bad = skip_bad
        checked.left_out = np.zeros(len(dataset), dtype=bool)
        checked.num_read = 0
        checked.num_bad = 0
        return checked

    def leave_out(self, index: int) -> None:
        """Never puts the utterance into a batch."""
        self.left_out[index] = True

    def ordered_indices(self):
        indices = super().ordered_indices()
        return indices[~self.left_out[indices]]

    def file_of(self, index: int) -> str:
        name = self.fnames[index]
        name = name if isinstance(name, (str, bytes)) else name.as_py()
        return self.text_compressor.decompress(name)

    def __getitem__(self, index):
        self.num_read += 1
        try:
            item = super().__getitem__(index)
        except Exception as error:
            return self._bad(index, str(error))
        if len(item["source"]) != self.sizes[index]:
            return self._bad(
                index,
                f"it has {len(item['source'])} samples, the manifest says {self.sizes[index]}",
            )
        if not item["source"].any():
            if self.skip_bad:
                return self._bad(index, "it is silent")
            logger.warning("%s: it is silent", self._name(index))
        return item

    def postprocess(self, feats: torch.Tensor, curr_sample_rate: int) -> torch.Tensor:
        """
        Args:
            feats: (S,) or (S, channels)
            curr_sample_rate: in Hz
        """
        if feats.dim() == 2 and feats.size(1) > 1:
            raise BadUtteranceError(f"it has {feats.size(1)} channels; 1 is needed")
        if curr_sample_rate != self.sample_rate:
            raise BadUtteranceError(
                f"its sample rate is {curr_sample_rate} Hz; task.sample_rate={self.sample_rate} "
                "is needed"
            )
        if not torch.isfinite(feats).all():
            raise BadUtteranceError("it holds NaN or infinite samples")
        return super().postprocess(feats, curr_sample_rate)

    def _name(self, index: int) -> str:
        return f"{self.split}: utterance {index} ({self.root_dir}/{self.file_of(index)})"

    def _bad(self, index: int, reason: str) -> dict:
        message = f"{self._name(index)}: {reason}"
        if not self.skip_bad:
            raise BadUtteranceError(message) from None
        self.num_bad += 1
        logger.warning("%s; left out of training (%d so far)", message, self.num_bad)
        verdict_due = self.num_read >= min(self.MIN_READS_FOR_VERDICT, len(self))
        if verdict_due and self.num_bad > self.num_read / 2:
            raise BadUtteranceError(
                f"{message}; {self.num_bad} of the {self.num_read} utterances read are bad"
            )
        return {"id": index, "source": None}
