"""Greedy decoding on tables made by hand, and the generator around it."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq.dataclass.configs import GenerationConfig
from helpers.models import Labels, batch_of, build_model, write_pretrained
from hypothesis import given
from hypothesis import strategies as st

from fairseq_speedup.decoding.generator import CtcGenerator, log_posteriors
from fairseq_speedup.decoding.greedy import GreedyDecoder
from fairseq_speedup.decoding.hypothesis import from_path
from fairseq_speedup.decoding.options import DecodingOptions, check_options
from fairseq_speedup.models.exported_ctc import ExportedCtc
from fairseq_speedup.profiling.compute import ComputeMeter

BLANK = 0


def table(rows):
    """Log-probabilities (T, 1, V) of rows of probabilities."""
    return torch.tensor(rows).log()[:, None, :]


def test_a_table_made_by_hand():
    log_probs = table(
        [
            [0.6, 0.3, 0.1],  # blank
            [0.1, 0.8, 0.1],  # 1
            [0.2, 0.7, 0.1],  # 1 again: merged
            [0.9, 0.05, 0.05],  # blank
            [0.3, 0.6, 0.1],  # 1 after a blank: another 1
            [0.1, 0.4, 0.5],  # 2
            [0.1, 0.2, 0.7],  # past the end
        ]
    )
    ((hypothesis,),) = GreedyDecoder(BLANK).decode(log_probs, torch.tensor([6]))
    assert hypothesis["tokens"].tolist() == [1, 1, 2]
    assert hypothesis["alignment"] == [(1, 0), (4, 1), (5, 2)]
    path = math.log(0.6 * 0.8 * 0.7 * 0.9 * 0.6 * 0.5)
    assert hypothesis["score"] == pytest.approx(path, abs=1e-5)
    scores = [math.log(0.8 * 0.7), math.log(0.6), math.log(0.5)]
    assert hypothesis["positional_scores"].tolist() == pytest.approx(scores, abs=1e-5)


def test_only_blanks_give_an_empty_hypothesis():
    hypothesis = from_path(torch.zeros(4, dtype=torch.long), torch.full((4,), -1.0), BLANK)
    assert hypothesis["tokens"].tolist() == []
    assert hypothesis["alignment"] == []
    assert hypothesis["score"] == -4


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_merging_equals_the_rule_said_in_words(path):
    expected = [
        label for i, label in enumerate(path) if label != BLANK and (i == 0 or path[i - 1] != label)
    ]
    hypothesis = from_path(torch.tensor(path), torch.arange(len(path)).float(), BLANK)
    assert hypothesis["tokens"].tolist() == expected
    for frame, token in hypothesis["alignment"]:
        assert path[frame] == expected[token]


def generator_of(models):
    labels = Labels()
    meter = ComputeMeter(models, 16000)
    return CtcGenerator(GreedyDecoder(BLANK), labels.target_dictionary, BLANK, meter)


@pytest.mark.parametrize("options", [{}, {"downsample": "conv", "downsample_factor": 2.0}])
def test_an_utterance_decodes_the_same_alone_and_in_a_padded_batch(pretrained, options):
    model = build_model(pretrained, **options)
    net_input = batch_of([9000, 5000, 7000])
    generator = generator_of([model])
    together = generator.generate([model], {"net_input": net_input})
    for i, count in enumerate([9000, 5000, 7000]):
        alone = {"source": net_input["source"][i : i + 1, :count], "padding_mask": None}
        ((expected,),) = generator.generate([model], {"net_input": alone})
        assert together[i][0]["tokens"].tolist() == expected["tokens"].tolist()
        assert together[i][0]["alignment"] == expected["alignment"]
        assert together[i][0]["score"] == pytest.approx(expected["score"], abs=1e-3)
    assert generator.meter.num_samples == [9000, 5000, 7000, 9000, 5000, 7000]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_pytorch_leaves_its_threads_to_an_engine(two_threads):
    class Session:
        metadata = SimpleNamespace(reductions={})
        fails = False

        def log_probs(self, waveform, lengths):
            assert not self.fails
            found.append(torch.get_num_threads())
            return np.log(np.full((1, 5, 4), 0.25, dtype=np.float32)), np.array([5])

    found, session = [], Session()
    model = ExportedCtc(session)
    sample = {"id": torch.tensor([0]), "net_input": batch_of([9000])}
    generator = generator_of([model])
    generator.generate([model], sample)
    assert set(found) == {1}
    assert torch.get_num_threads() == 2
    session.fails = True
    with pytest.raises(AssertionError):
        generator.generate([model], sample)
    assert torch.get_num_threads() == 2


def test_what_is_no_number_is_refused_and_named(pretrained):
    model = build_model(pretrained)
    net_input = batch_of([9000, 5000])
    sample = {"id": torch.tensor([7, 4]), "net_input": net_input}
    generator = generator_of([model])
    net_input["source"][1, 5000:] = math.nan  # padding, which reaches no utterance
    generator.generate([model], sample)
    net_input["source"][1, 100] = math.nan
    with pytest.raises(ValueError, match=r"no numbers \(NaN\) for utterance 4, counted from 0: "):
        generator.generate([model], sample)


def test_an_ensemble_averages_posteriors(tmp_path):
    models = [
        build_model(write_pretrained(tmp_path / f"{seed}.pt", seed=seed), seed=seed)
        for seed in (1, 2)
    ]
    net_input = batch_of([6000, 4000])
    with torch.no_grad():
        each = [log_posteriors([model], net_input)[0].exp() for model in models]
        found, lengths, _ = log_posteriors(models, net_input)
    torch.testing.assert_close(found.exp(), (each[0] + each[1]) / 2)
    assert lengths.tolist() == [models[0].w2v_encoder.output_lengths(n) for n in (6000, 4000)]


def test_an_ensemble_of_other_frame_rates_is_refused(pretrained):
    models = [
        build_model(pretrained),
        build_model(pretrained, downsample="average", downsample_factor=2.0),
    ]
    with pytest.raises(ValueError, match="ensemble must give the same frames"):
        log_posteriors(models, batch_of([6000]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nbest": 2, "beam": 2}, "--nbest 2: greedy decoding has one hypothesis"),
        ({"sampling": True}, "--sampling does not apply"),
        ({"score_reference": True}, "--score-reference does not apply"),
        ({"lm_path": "lm.pt"}, "--lm-path does not apply"),
        ({"print_alignment": "soft"}, "--print-alignment soft"),
    ],
)
def test_options_that_greedy_decoding_cannot_honour_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        check_options(DecodingOptions(), GenerationConfig(**options))
