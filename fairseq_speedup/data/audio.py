"""fairseq's audio dataset, with bad audio named instead of passed on."""

import logging
import os

import numpy as np
import torch
from fairseq.data import FileAudioDataset

from fairseq_speedup.data.sound_files import read_row, reason

logger = logging.getLogger(__name__)


class BadUtteranceError(ValueError):
    """Audio that cannot be used; the message names the file."""


class CheckedAudioDataset(FileAudioDataset):
    """Checks each waveform as it is read.

    While training, a bad utterance is left out with a counted warning that names it, and not read
    again; when most are bad, and in validation and decoding at the first, it is an error.
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
        # shared, as every epoch has loading processes of its own
        flags = torch.zeros(2, len(dataset), dtype=torch.bool).share_memory_()
        checked.was_read, checked.was_bad = flags
        return checked

    def leave_out(self, index: int) -> None:
        """Never puts the utterance into a batch."""
        self.left_out[index] = True

    def ordered_indices(self) -> np.ndarray:
        indices = super().ordered_indices()
        return indices[~self.left_out[indices]]

    def check_fits(self, max_samples: int | None, option: str) -> None:
        """Raises BadUtteranceError for an utterance that is longer than a batch may be.

        Args:
            max_samples: of a batch, None for any
            option: that says so
        """
        sizes = np.array([0 if out else self.size(i) for i, out in enumerate(self.left_out)])
        if max_samples is not None and len(sizes) and sizes.max() > max_samples:
            longer = int((sizes > max_samples).sum())
            raise BadUtteranceError(
                f"{self._name(int(sizes.argmax()))} has {sizes.max()} samples, more than a batch "
                f"may have: {option}={max_samples}. {longer} of {len(self)} are longer: set "
                f"{option} to at least {sizes.max()}, or take them out of {self.split}.tsv and of "
                "its labels"
            )

    def file_of(self, index: int) -> str:
        name = self.fnames[index]
        name = name if isinstance(name, (str, bytes)) else name.as_py()
        return self.text_compressor.decompress(name)

    def __getitem__(self, index: int) -> dict:
        if self.was_bad[index]:
            return _left_out(index)
        self.was_read[index] = True
        try:
            item = self._item(index)
        except Exception as error:
            return self._bad(index, reason(error))
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

    def _item(self, index: int) -> dict:
        if getattr(self, "is_compute_mask", False):  # of data2vec's pretraining
            return super().__getitem__(index)
        waveform, sample_rate = read_row(os.path.join(self.root_dir, self.file_of(index)))
        return {"id": index, "source": self.postprocess(torch.from_numpy(waveform), sample_rate)}

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
        self.was_bad[index] = True
        num_read, num_bad = int(self.was_read.sum()), int(self.was_bad.sum())
        logger.warning("%s; left out of training (%d so far)", message, num_bad)
        verdict_due = num_read >= min(self.MIN_READS_FOR_VERDICT, len(self))
        if verdict_due and num_bad > num_read / 2:
            raise BadUtteranceError(
                f"{message}; {num_bad} of the {num_read} utterances read are bad"
            )
        return _left_out(index)


def _left_out(index: int) -> dict:
    """As fairseq's collater leaves out."""
    return {"id": index, "source": None}
