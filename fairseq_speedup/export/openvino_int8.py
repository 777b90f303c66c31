"""int8 for OpenVINO: products whose scales are found on audio, and those that stay as they are."""

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fairseq_speedup.console import progress
from fairseq_speedup.export.comparison import ExportError
from fairseq_speedup.export.exported import MissingExtraError, weight_bits
from fairseq_speedup.export.int8_audio import Int8Audio
from fairseq_speedup.export.openvino_session import EXTRA, OpenVinoModel
from fairseq_speedup.export.quiet import quiet

PRODUCTS = ("MatMul", "Convolution", "GroupConvolution")
# parts of a graph, by the names of their products. What is in none of them stays as it is: the
# head, small products, and the first convolution, which sees the waveform
LAYER = r"/transformer/layers/layers\.(\d+)"
PARTS = {
    rf"{LAYER}/self_attn/(?:in_proj/|out_proj/|MatMul)": "attention of layer {}",
    rf"{LAYER}/fc[12]/": "feed-forward of layer {}",
    r"/transformer/pos_conv/": "positions",
    r"/post_extract_proj/": "projection",
}
CNN = {r"/front_end/linears\.([1-9]\d*)/": "convolution {}"}
RANKED_SECONDS = 20  # of audio, that parts are ranked on


def nncf_installed():
    """The package that quantises, which is not to tell its makers of each use.

    Raises:
        MissingExtraError
    """
    os.environ.setdefault("NNCF_CI", "1")  # its telemetry needs no consent elsewhere
    try:
        import nncf
    except ImportError:
        raise MissingExtraError("int8 OpenVINO models", ["nncf"], EXTRA) from None
    nncf.set_log_level(logging.ERROR)
    return nncf


@dataclass
class Quantised:
    """
    network: of OpenVINO
    kept_fp32: parts that could be in int8, and are not
    loss: points of WER
    """

    network: object
    kept_fp32: list[str]
    loss: float


class Int8:
    """
    Args:
        audio: that scales are found on
        budget: points of WER that may be lost; parts stay as they are until it holds. None for
            whatever is lost
        with_cnn: the convolutional front-end too
    """

    def __init__(self, audio: Int8Audio, budget: float | None = None, with_cnn: bool = False):
        self.audio, self.budget = audio, budget
        self.patterns = {**PARTS, **(CNN if with_cnn else {})}

    def quantised(self, fp32: OpenVinoModel, layers: list[int]) -> Quantised:
        """
        Args:
            fp32: the whole model
            layers: indices of its layers, for names
        Raises:
            ExportError: no part may be in int8
        """
        parts = parts_of(fp32.network, self.patterns, layers)
        if not parts:
            raise ExportError("this model has no product that could be in int8")
        self.audio.words.begin(fp32)
        if self.budget is not None:
            self.audio.words.check_any()
        tried: dict[int, Quantised] = {}

        def keeping(count: int, ranked: list[str]) -> Quantised:
            if count not in tried:
                kept = ranked[:count]
                names = [each for part in parts if part not in kept for each in parts[part]]
                network = self._calibrated(fp32.network, names)
                file = OpenVinoModel.of(network, fp32.path, fp32.metadata, torch.get_num_threads())
                tried[count] = Quantised(network, kept, self.audio.words.loss(file))
            return tried[count]

        found = keeping(0, [])
        if self.budget is None or found.loss <= self.budget:
            return found
        budget = self.budget
        ranked = self._ranked(fp32, found.network, parts)
        fewest = fewest_kept(len(parts) - 1, lambda k: keeping(k, ranked).loss <= budget)
        if fewest is None:
            raise ExportError(
                f"with any part in int8, more than --wer-budget {budget:g} points are lost "
                f"({found.loss:+.2f} with all, {tried[len(parts) - 1].loss:+.2f} with "
                f"the {ranked[-1]} alone): nothing is written; leave --int8 out"
            )
        return tried[fewest]

    def _calibrated(self, network, names: list[str]):
        """The network with the products of these names in int8."""
        nncf = nncf_installed()
        kept = [
            each.get_friendly_name()
            for each in network.get_ordered_ops()
            if each.get_type_name() not in ("Constant", "Parameter", "Result")
        ]
        chosen = set(names)
        ignored = nncf.IgnoredScope(names=[each for each in kept if each not in chosen])
        items = [
            {"waveform": each.numpy()[None], "lengths": np.array([len(each)])}
            for each in self.audio.pieces
        ]
        advanced = nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.DISABLE if weight_bits() == 8 else nncf.OverflowFix.ENABLE
        )
        with progress.step("finding the scales of int8"), quiet():
            return nncf.quantize(
                network,
                nncf.Dataset(items),
                subset_size=len(items),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=ignored,
                advanced_parameters=advanced,
            )

    def _ranked(self, fp32: OpenVinoModel, network, parts: dict[str, list[str]]) -> list[str]:
        """Parts, those first whose inputs are best not rounded: with them alone as they are, the
        posteriors are nearest to the fp32 file's."""
        pieces, left = [], RANKED_SECONDS * fp32.metadata.sample_rate_hz
        for each in self.audio.pieces:
            if left > 0:
                pieces.append(each[None, : max(left, fp32.metadata.needed_samples)])
                left -= len(each)
        expected = [fp32.log_probs(each)[0] for each in pieces]
        distances = {}
        for part, names in progress.bar(parts.items(), "ranking parts", unit=" parts"):
            changed = with_whole_inputs(network, names)
            file = OpenVinoModel.of(changed, fp32.path, fp32.metadata, torch.get_num_threads())
            distances[part] = sum(
                divergence(one, file.log_probs(each)[0])
                for one, each in zip(expected, pieces, strict=True)
            )
        return sorted(parts, key=distances.__getitem__)


def parts_of(network, patterns: dict[str, str], layers: list[int]) -> dict[str, list[str]]:
    """Names of products by part."""
    found: dict[str, list[str]] = {}
    for operation in network.get_ordered_ops():
        if operation.get_type_name() not in PRODUCTS:
            continue
        name = operation.get_friendly_name()
        for pattern, part in patterns.items():
            match = re.match(pattern, name)
            if match:
                number = int(match[1]) if match.groups() else 0
                number = layers[number] if pattern.startswith(LAYER) else number
                found.setdefault(part.format(number), []).append(name)
    return found


def with_whole_inputs(network, names: list[str]):
    """A copy of an int8 network in which products of these names are given what they were given
    before it was rounded."""
    copied, chosen = network.clone(), set(names)
    for operation in copied.get_ordered_ops():
        if operation.get_friendly_name() in chosen:
            for each in operation.inputs():
                source = each.get_source_output().get_node()
                if source.get_type_name() == "FakeQuantize":
                    each.replace_source_output(source.input_value(0))
    return copied


def divergence(expected: np.ndarray, log_probs: np.ndarray) -> float:
    """Kullback-Leibler, in nats, summed over frames: of ``expected`` from ``log_probs``."""
    expected, log_probs = expected.astype(np.float64), log_probs.astype(np.float64)
    probs = np.exp(expected)
    with np.errstate(invalid="ignore"):  # of labels that are never given
        return float((probs * np.where(probs > 0, expected - log_probs, 0)).sum())


def fewest_kept(most: int, is_good: Callable[[int], bool]) -> int | None:
    """The fewest parts, of 1 to ``most``, with which it is good, as far as more are never worse;
    None where it never is. What is returned was tried."""
    bad, good = 0, most + 1
    while good - bad > 1:
        middle = (bad + good) // 2
        if is_good(middle):
            good = middle
        else:
            bad = middle
    return good if good <= most else None
