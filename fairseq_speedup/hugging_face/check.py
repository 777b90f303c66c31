"""Whether two models give the same numbers: what was converted, and what it was converted from."""

import torch
from fairseq import checkpoint_utils
from omegaconf import OmegaConf
from torch import nn

from fairseq_speedup.data.dictionary import dictionary_of
from fairseq_speedup.lengths import conv_stack_length, padding_mask_of
from fairseq_speedup.pretrained import Pretrained, build_encoder, load_weights, read_file
from fairseq_speedup.tasks.speedup_finetuning import (
    SpeedupFinetuningConfig,
    SpeedupFinetuningTask,
)

LIMIT = 1e-4
# samples of each utterance, up to 3 s: far enough for WavLM's buckets of many distances
SINGLE = [48000]
BATCH = [48000, 31000, 40500]


@torch.no_grad()
def outputs_of(model: nn.Module, conv_layers) -> list[torch.Tensor]:
    """Logits, or last hidden states, of random audio, in float64: of one utterance, then of each
    in a padded batch, (T, V) with its own length. The model is left in float64.

    Args:
        model: fairseq's or ours, with CTC or the encoder alone, or transformers'
        conv_layers: (dim, kernel_size, stride) of each convolution of its front-end
    """
    model = model.double().eval()
    found = []
    for counts in (SINGLE, BATCH):
        generator = torch.Generator().manual_seed(len(counts))
        source = torch.randn(len(counts), max(counts), generator=generator, dtype=torch.float64)
        padding_mask = padding_mask_of(torch.tensor(counts), max(counts))
        batch = _run(model, source.masked_fill(padding_mask, 0), padding_mask)
        for row, count in zip(batch, counts, strict=True):
            found.append(row[: conv_stack_length(count, conv_layers)])
    return found


def _run(model, source, padding_mask):
    """(B, T, V)"""
    if hasattr(model, "w2v_encoder"):
        output = model(source=source, padding_mask=padding_mask)
        return output["encoder_out"].transpose(0, 1)  # T x B x V -> B x T x V
    if hasattr(model, "extract_features"):
        return model.extract_features(source, padding_mask)["x"]
    output = model(source, attention_mask=(~padding_mask).long())
    return output.logits if "logits" in output else output.last_hidden_state


def largest_differences(found: list[torch.Tensor], expected: list[torch.Tensor]) -> list[float]:
    """Between two models' :func:`outputs_of`: of the one utterance, and in the padded batch."""
    pairs = zip(found, expected, strict=True)
    worst = [float((ours - theirs).abs().max()) for ours, theirs in pairs]
    return [worst[0], float(torch.tensor(worst[1:]).max())]


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
    cfg = SpeedupFinetuningConfig(data="", labels="ltr", normalize=normalize)
    task = SpeedupFinetuningTask.with_dictionary(OmegaConf.structured(cfg), dictionary_of(symbols))
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    if state["cfg"].model._name == "speedup_ctc":
        state["cfg"].model.padding = "stock"
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([path], task=task, state=state)
    return model


def load_written(path: str) -> nn.Module:
    """The encoder in a checkpoint."""
    return load_encoder(read_file(path), path)
