"""Options of decoding: what is out of range or would be ignored is refused."""

import pytest
from fairseq.dataclass.configs import GenerationConfig

from fairseq_speedup.decoding.beam_search import flashlight
from fairseq_speedup.decoding.beam_search.decoder import build_search
from fairseq_speedup.decoding.language.words import Words
from fairseq_speedup.decoding.options import DecodingOptions, check_options, describe
from fairseq_speedup.decoding.results.generated import Utterance
from fairseq_speedup.decoding.results.merge import MergeError, Shard, check_complete


@pytest.fixture
def paths(tmp_path):
    for name in ("lm.arpa", "lexicon.txt"):
        (tmp_path / name).write_text("")
    return {"LM": str(tmp_path / "lm.arpa"), "LEXICON": str(tmp_path / "lexicon.txt")}


def options_of(given: dict, paths: dict):
    """DecodingOptions and GenerationConfig of options mixed together."""
    given = {name: paths.get(value, value) for name, value in given.items()}
    generation = {name: given.pop(name) for name in ("beam", "nbest", "lm_weight") if name in given}
    return DecodingOptions(**given), GenerationConfig(**generation)


GREEDY = [
    ({"nbest": 2}, "--nbest 2: greedy decoding has one hypothesis; .*--ctc-decoder beam"),
    ({"lm_weight": 2.0}, "--lm-weight: greedy decoding uses none of it; add --ctc-decoder beam"),
    ({"kenlm_model": "LM", "word_score": 1.0}, "--kenlm-model, --word-score: greedy"),
    ({"beam_threshold": 10.0}, "--beam-threshold: greedy"),
    ({"decoder_workers": 2}, "--decoder-workers: greedy"),
    ({"blank_skip_threshold": 0.9}, "--blank-skip-threshold: greedy"),
    ({"ctc_decoder": "beams"}, "--ctc-decoder beams is unknown; it is greedy or beam"),
]
BEAM = [
    ({"beam": 0}, "--beam 0 is out of range; it must be 1 or more"),
    ({"beam": 4, "nbest": 5}, "--nbest 5 is out of range; it must be 1 to --beam, which is 4"),
    ({"nbest": 0}, "--nbest 0 is out of range"),
    ({"beam_threshold": 0.0}, "--beam-threshold 0.0 is out of range; it must be above 0"),
    ({"beam_threshold": float("inf")}, "--beam-threshold inf must be a finite number"),
    ({"beam_size_token": -1}, "--beam-size-token -1 is out of range"),
    ({"blank_skip_threshold": 0.5}, "--blank-skip-threshold 0.5 is out of range"),
    ({"blank_skip_threshold": 1.1}, "--blank-skip-threshold 1.1 is out of range"),
    ({"decoder_workers": -1}, "--decoder-workers -1 is out of range"),
    ({"lm_weight": -1.0}, "--lm-weight -1.0 is out of range"),
    ({"lm_weight": 1.0}, "--lm-weight 1.0 needs a language model: give --kenlm-model"),
    ({"lexicon_free": True}, "--lexicon-free needs a language model over labels"),
    ({"kenlm_model": "LM", "lm_weight": 1.0}, "--kenlm-model needs --lexicon"),
    ({"kenlm_model": "LM", "lexicon": "LEXICON"}, "--kenlm-model without --lm-weight has no say"),
    ({"lexicon": "LEXICON", "lexicon_free": True}, "--lexicon-free with --lexicon"),
    ({"word_score": 1.0}, "--word-score 1.0 needs --lexicon"),
    ({"sil_score": 1.0}, "--sil-score 1.0 needs --lexicon or --lexicon-free"),
    (
        {"kenlm_model": "lost.arpa", "lexicon": "LEXICON", "lm_weight": 1.0},
        "--kenlm-model lost.arpa does not exist",
    ),
]


@pytest.mark.parametrize(
    ("given", "words"),
    GREEDY + [({"ctc_decoder": "beam", **given}, words) for given, words in BEAM],
)
def test_options_out_of_range_or_without_effect_are_refused(paths, given, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        check_options(*options_of(given, paths))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"ctm": True},
        {"beam": 20},  # fairseq's default is 5, so that greedy decoding cannot refuse a beam
        {"ctc_decoder": "beam", "beam": 20, "nbest": 20},
        {"ctc_decoder": "beam", "lexicon": "LEXICON", "word_score": -1.0},
        {"ctc_decoder": "beam", "lexicon": "LEXICON", "kenlm_model": "LM", "lm_weight": 2.0},
        {"ctc_decoder": "beam", "lexicon_free": True, "kenlm_model": "LM", "lm_weight": 2.0},
    ],
)
def test_options_that_mean_something_are_taken(paths, given):
    check_options(*options_of(given, paths))


def test_what_decoded_is_described(paths):
    assert describe(*options_of({}, paths)) == {"ctc_decoder": "greedy"}
    given = {"ctc_decoder": "beam", "lexicon": "LEXICON", "kenlm_model": "LM", "lm_weight": 2.0}
    described = describe(*options_of(given, paths))
    expected = {"ctc_decoder": "beam", "beam": 5, "nbest": 1, "lm_weight": 2.0}
    assert described == expected | {"lexicon": paths["LEXICON"], "kenlm_model": paths["LM"]}


def test_workers_make_no_other_run(paths):
    def shard(number: int, **given) -> Shard:
        decoding = describe(*options_of({"ctc_decoder": "beam", **given}, paths))
        report = {"num_shards": 2, "shard_id": number, "utterances_in_subset": 2}
        report["decoding"] = decoding
        return Shard(f"shard{number}", {number: Utterance([])}, report, "WER: 0.00")

    assert shard(0, decoder_workers=3).report["decoding"]["decoder_workers"] == 3
    check_complete([shard(0, decoder_workers=3), shard(1)])
    with pytest.raises(MergeError, match=r"shard0 and shard1 are of other runs: decoding is \{"):
        check_complete([shard(0, beam_threshold=3.0), shard(1)])


def test_a_missing_extra_is_named(paths, monkeypatch):
    monkeypatch.setattr(flashlight, "flashlight", None)
    words = Words(["<s>", "A", "|"])
    options, _ = options_of({"ctc_decoder": "beam", "lexicon": "LEXICON"}, paths)
    with pytest.raises(ValueError, match=r"--lexicon needs flashlight-text.*the extra 'beam'"):
        build_search(options, words, 0, 5, 1, 0.0, "")
    build_search(DecodingOptions(ctc_decoder="beam"), words, 0, 5, 1, 0.0, "")  # needs none
