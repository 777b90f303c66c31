"""How much each layer of a transformer does."""

import contextlib
from collections.abc import Iterable

import torch

from fairseq_speedup.decoding.generator import batch_of
from fairseq_speedup.importance.whole_audio import whole_audio


@torch.no_grad()
def influence_of_layers(model, waveforms: Iterable[torch.Tensor]) -> dict[int, float]:
    """How much each layer changes its input: 1 less the mean cosine similarity of its frames before
    and after it (arXiv 2409.16302).

    Args:
        model: a CTC model in evaluation
        waveforms: (S,)
    Returns:
        by the layers' indices
    """
    encoder = model.w2v_encoder
    layers = encoder.w2v_model.encoder.layers
    kept = getattr(encoder, "kept_layers", range(len(layers)))
    device = next(model.parameters()).device
    changed: dict[int, float] = dict.fromkeys(kept, 0.0)
    frames: dict[int, int] = dict.fromkeys(kept, 0)

    def watch(index):
        def hook(layer, args, output):
            similarity = torch.cosine_similarity(args[0].float(), output[0].float(), dim=-1)
            changed[index] += (1 - similarity).sum().item()
            frames[index] += similarity.numel()

        return hook

    with contextlib.ExitStack() as before:
        before.enter_context(whole_audio(encoder))
        for index, layer in zip(kept, layers, strict=True):
            before.callback(layer.register_forward_hook(watch(index)).remove)
        for waveform in waveforms:
            model(**batch_of([waveform.to(device)]))
    return {index: changed[index] / frames[index] for index in kept if frames[index]}
