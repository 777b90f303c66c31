"""What an utterance is recognised as does not depend on its neighbours, in any family."""

import pytest
import torch
from fairseq.data.audio.raw_audio_dataset import RawAudioDataset
from helpers.corpora import LETTERS
from helpers.models import build_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("transformers")
from public_checkpoints import FORMS, reference, write_form

from fairseq_speedup.decoding.greedy import GreedyDecoder
from fairseq_speedup.decoding.run import padding_gets_in
from fairseq_speedup.lengths import lengths_of

LONGEST = 6000  # samples, 0.4 s
KINDS = ("noise", "silence", "quiet", "a click")


class InMemory(RawAudioDataset):
    """fairseq's batches, of waveforms at hand: normalised one by one, padded with zeros."""

    def __init__(self, waveforms: list[torch.Tensor], normalize: bool):
        super().__init__(sample_rate=16000, pad=True, normalize=normalize)
        self.waveforms = waveforms

    def __getitem__(self, index):
        return {"id": index, "source": self.postprocess(self.waveforms[index], self.sample_rate)}

    def batch(self, indices: list[int]) -> dict:
        return self.collater([self[index] for index in indices])["net_input"]


def waveform_of(kind: str, num_samples: int, seed: int) -> torch.Tensor:
    if kind == "silence":
        return torch.zeros(num_samples)
    if kind == "a click":
        return torch.zeros(num_samples).index_fill(0, torch.tensor([num_samples // 2]), 1.0)
    noise = torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))
    return noise * (1e-3 if kind == "quiet" else 1.0)


@pytest.fixture(scope="module", params=list(FORMS))
def models(request, tmp_path_factory):
    """The masked form, and fairseq's own, in double precision (but for the group norm): rounding
    may change with the batch, and must not decide between two symbols."""
    path = tmp_path_factory.mktemp("family") / "public.pt"
    write_form(path, request.param, reference(request.param))
    options = {"normalize": FORMS[request.param][2], "labels": LETTERS}
    return build_model(path, **options).double(), build_model(
        path, **options, padding="stock"
    ).double()


@torch.no_grad()
def recognise(model, net_input: dict):
    """Logits (T, V) of each utterance without padding, and its tokens."""
    source, padding_mask = net_input["source"].double(), net_input.get("padding_mask")
    output = model(source=source, padding_mask=padding_mask)
    logits = model.get_logits(output)  # T x B x V
    lengths = lengths_of(output["padding_mask"], logits.transpose(0, 1))
    hypotheses = GreedyDecoder(0).decode(logits.log_softmax(dim=-1), lengths)
    each = range(logits.size(1))
    return [logits[: lengths[i], i] for i in each], [hypotheses[i][0]["tokens"] for i in each]


@st.composite
def utterances(draw):
    """(kind, samples) of each of a batch; 400 samples are the shortest that give a frame."""
    return draw(
        st.lists(
            st.tuples(st.sampled_from(KINDS), st.one_of(st.just(400), st.integers(400, LONGEST))),
            min_size=2,
            max_size=4,
        )
    )


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(given_utterances=utterances(), normalize=st.booleans(), seed=st.integers(0, 99))
def test_neighbours_change_nothing(models, given_utterances, normalize, seed):
    model, _ = models
    data = InMemory(
        [waveform_of(*each, seed + i) for i, each in enumerate(given_utterances)], normalize
    )
    everyone = list(range(len(given_utterances)))
    backwards = everyone[::-1]
    together, transcripts = recognise(model, data.batch(everyone))
    turned, turned_transcripts = recognise(model, data.batch(backwards))
    for i in everyone:
        (alone,), (transcript,) = recognise(model, data.batch([i]))
        assert torch.equal(transcripts[i], transcript)
        assert torch.equal(turned_transcripts[backwards[i]], transcript)
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(turned[backwards[i]], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_they_do_in_fairseqs_own_form(models):
    """Else the test above would show nothing."""
    _, stock = models
    data = InMemory([waveform_of("noise", count, count) for count in (6000, 900)], normalize=True)
    positions = stock.w2v_encoder.w2v_model.encoder.pos_conv or ()
    # a convolution, its padding and its activation, or data2vec's several of them
    several = sum(isinstance(each, nn.Sequential) for each in positions) > 1
    (alone,), _ = recognise(stock, data.batch([1]))
    together, _ = recognise(stock, data.batch([0, 1]))
    changed = not torch.allclose(together[1], alone, atol=1e-3)
    assert changed == (several or padding_gets_in(stock))
