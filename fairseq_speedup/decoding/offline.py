"""A model and a split to decode outside of fairseq-generate, for choosing options by WER."""

from collections.abc import Iterator

import torch
from fairseq import utils

from fairseq_speedup.console import progress
from fairseq_speedup.decoding.language.boundaries import LabelWords
from fairseq_speedup.models.loading import load_finetuned


class Offline:
    """
    Args:
        path: of a checkpoint
        data: folder with the manifests and labels
        subset: split to decode
        overrides: of the checkpoint's options
        batch_size: utterances
        cpu: stay on the CPU
    """

    def __init__(
        self, path: str, data: str, subset: str, overrides: dict, batch_size: int, cpu: bool
    ):
        overrides = {"data": data, **overrides}
        with progress.step(f"reading {path}"):
            model, cfg, self.task = load_finetuned(path, "--path ", overrides)
        self.use_cuda = torch.cuda.is_available() and not cpu
        self.model = (model.cuda() if self.use_cuda else model).eval()
        self.task.load_dataset(subset, task_cfg=cfg.task)
        self.dataset = self.task.dataset(subset)
        self.subset = subset
        self.batch_size = batch_size
        self.dictionary = self.task.target_dictionary
        self.blank = self.dictionary.index(self.task.blank_symbol)

    def batches(self) -> Iterator[dict]:
        """Batches of the split, on the model's device, with their progress."""
        batches = self.task.get_batch_iterator(self.dataset, max_sentences=self.batch_size)
        batches = batches.next_epoch_itr(shuffle=False)
        for sample in progress.bar(batches, f"running the model on {self.subset}", unit=" batches"):
            yield utils.move_to_cuda(sample) if self.use_cuda else sample

    def label_words(self) -> LabelWords:
        """What the split's labels tell of words."""
        found = self.task.label_words.get(self.subset)
        if found is None:  # data that are not checked: what the dictionary tells
            symbols = [self.dictionary.symbols[self.dictionary.nspecial :]]
            found = LabelWords.of(f"the dictionary of {self.subset}", symbols)
        return found

    def references(self, sample: dict) -> list[torch.Tensor]:
        """The labels of a batch's utterances."""
        return [utils.strip_pad(each, self.dictionary.pad()).cpu() for each in sample["target"]]
