"""Whether two models give the same numbers: what was converted, and what it was converted from."""

import logging
from collections.abc import Callable

import torch
from fairseq import checkpoint_utils
from omegaconf import OmegaConf
from torch import nn

from fairseq_speedup.lengths import padding_mask_of
from fairseq_speedup.pretrained import Pretrained, build_encoder, load_weights, read_file
from fairseq_speedup.pretrained.write import dictionary_of

LIMIT = 1e-4
# samples of each utterance, up to 3 s: far enough for WavLM's buckets of many distances
SINGLE = [48000]
BATCH = [48000, 31000, 40500]


def hugging_face_outputs(model) -> Callable:
    """(source (B, S), padding mask (B, S)) -> logits, or last hidden states, (B, T, V)."""
    model = model.double().eval()

    def run(source, padding_mask):
        output = model(source, attention_mask=(~padding_mask).long())
        return output.logits if "logits" in output else output.last_hidden_state

    return run


def fairseq_outputs(model) -> Callable:
    """The same of a CTC model of fairseq's or ours, or of an encoder."""
    model = model.double().eval()

    def run(source, padding_mask):
        if hasattr(model, "w2v_encoder"):
            output = model(source=source, padding_mask=padding_mask)
            return output["encoder_out"].transpose(0, 1)  # T x B x V -> B x T x V
        return model.extract_features(source, padding_mask)["x"]

    return run


@torch.no_grad()
def largest_differences(found: Callable, expected: Callable, output_lengths) -> list[float]:
    """Of one utterance, and of a padded batch, in valid frames.

    Args:
        found: (source, padding mask) -> (B, T, V), in float64
        expected: the same
        output_lengths: frames of a number of samples
    """
    differences = []
    for counts in (SINGLE, BATCH):
        generator = torch.Generator().manual_seed(len(counts))
        source = torch.randn(len(counts), max(counts), generator=generator, dtype=torch.float64)
        padding_mask = padding_mask_of(torch.tensor(counts), max(counts))
        source = source.masked_fill(padding_mask, 0)
        ours, theirs = found(source, padding_mask), expected(source, padding_mask)
        frames = [output_lengths(count) for count in counts]
        pairs = zip(ours, theirs, frames, strict=True)
        worst = [float((a[:n] - b[:n]).abs().max()) for a, b, n in pairs]
        differences.append(max(worst))
    return differences


def load_encoder(pretrained: Pretrained, source: str) -> nn.Module:
    """fairseq's model of an encoder; ``source`` names its weights in messages."""
    model = build_encoder(pretrained.cfg)
    load_weights(model, pretrained.weights, source)
    return model


def load_ctc(path: str, symbols: list[str], normalize: bool) -> nn.Module:
    """The CTC model in a checkpoint, as ``fairseq-generate`` loads it; padding where fairseq and
    Hugging Face have it.

    Args:
        symbols: of its dictionary, which must be the checkpoint's
    """
    from fairseq_speedup.tasks.speedup_finetuning import (
        SpeedupFinetuningConfig,
        SpeedupFinetuningTask,
    )

    cfg = SpeedupFinetuningConfig(data="", labels="ltr", normalize=normalize)
    task = SpeedupFinetuningTask(OmegaConf.structured(cfg))
    task.state.merge_state_dict({"target_dictionary": dictionary_of(symbols)})
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    if state["cfg"].model._name == "speedup_ctc":
        state["cfg"].model.padding = "stock"
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([path], task=task, state=state)
    return model


def load_written(path: str) -> nn.Module:
    """The encoder in a checkpoint."""
    return load_encoder(read_file(path), path)


def quiet() -> None:
    """fairseq logs each config whole."""
    logging.getLogger("fairseq").setLevel(logging.WARNING)
