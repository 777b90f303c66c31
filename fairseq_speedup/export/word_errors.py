"""What an exported file loses in words."""

import torch

from fairseq_speedup.console import progress
from fairseq_speedup.decoding.generator import symbols_to_strip
from fairseq_speedup.decoding.greedy import GreedyDecoder
from fairseq_speedup.decoding.results.scoring import Scoring
from fairseq_speedup.export.exported import ExportedModel


class WordErrors:
    """Errors of greedy transcripts, each utterance alone.

    Args:
        dictionary: the labels
        blank: index of the blank among them
        post_process: how labels become text, as fairseq-generate takes it
        waveforms: (S,) each
        references: their texts; None where there are none: then those of the fp32 file

    Attributes:
        num_words: of the references
        rate: of the fp32 file, in percent
    """

    def __init__(
        self,
        dictionary,
        blank: int,
        post_process: str,
        waveforms: list[torch.Tensor],
        references: list[str] | None,
    ):
        self.dictionary, self.post_process = dictionary, post_process
        self.waveforms, self.references = waveforms, references
        self.decoder = GreedyDecoder(blank)
        self.strip = symbols_to_strip(dictionary, blank)
        self.scoring = Scoring(post_process=post_process)
        self.by_labels = references is not None
        self.num_words, self.rate = 0, 0.0

    @property
    def measure(self) -> str:
        """What its figures are."""
        return f"{self.scoring.measure} %" if self.by_labels else "distance % from the fp32 words"

    def begin(self, fp32: ExportedModel) -> None:
        """Counts the words, and what is wrong of them before anything is in int8."""
        texts = self.texts(fp32)
        if self.references is None:
            self.references = texts
        pairs = list(zip(self.references, texts, strict=True))
        self.num_words = sum(self.scoring.counts(pairs)[1])
        self.rate = self.scoring.error_rate(pairs)

    def check_any(self) -> None:
        """Raises ValueError where there are no words to count errors in."""
        if not self.num_words:
            raise ValueError(
                "there are no words to count errors in: the references are empty"
                if self.by_labels
                else "the model gives no words for this audio: there is nothing to compare with"
            )

    def loss(self, file: ExportedModel) -> float:
        """Points more than the fp32 file has."""
        pairs = list(zip(self.references or [], self.texts(file), strict=True))
        return self.scoring.error_rate(pairs) - self.rate

    def texts(self, file: ExportedModel) -> list[str]:
        found = []
        for waveform in progress.bar(self.waveforms, "counting words", unit=" utterances"):
            log_probs, frames = map(torch.from_numpy, file.log_probs(waveform[None]))
            ((best,),) = self.decoder.decode(log_probs.transpose(0, 1), frames)
            text = self.dictionary.string(
                best["tokens"], self.post_process, extra_symbols_to_ignore=self.strip
            )
            found.append(text)
        return found
