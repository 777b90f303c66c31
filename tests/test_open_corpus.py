"""The open corpus: sentences, voices and rooms by split, noise, going on after a break."""

import json
import sys

import numpy as np
import pytest
from helpers.commands import REPO

FOLDERS = [str(REPO / "examples" / name) for name in ("open_corpus", "quickstart")]
MODULES = ("make_corpus", "books", "engines", "augmentation", "recorded_prompts")

BOOK = """CHAPTER I

"My dear Mr. Bennet," said his lady to him one day, "have you heard that Netherfield
Park is let at last?" Mr. Bennet replied that he had not. It was the 5th of June, and
nobody else had heard of it either, as far as he knew. The apple-trees--all of them, even the
oldest--were in bloom behind our neighbour's house that day.

The first part of this is long enough to be a sentence of its own, as anyone can see and hear;
the second, too, has as many words as one could wish for and as anyone would care to read aloud
in a single breath, so that the two together are too much.
"""


@pytest.fixture(scope="module")
def corpus():
    """The example's modules, whose names other examples have too."""
    pytest.importorskip("soxr")
    others = {name: sys.modules.pop(name, None) for name in MODULES}
    sys.path[:0] = FOLDERS
    try:
        import make_corpus

        yield make_corpus
    finally:
        for folder in FOLDERS:
            sys.path.remove(folder)
        for name, module in others.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


@pytest.fixture(scope="module")
def augmentation(corpus):
    return sys.modules["augmentation"]


@pytest.fixture(scope="module")
def sentences():
    """Twenty for each split."""
    nouns = ["river", "garden", "letter", "carriage", "window"]
    verbs = ["remembered", "painted", "described", "forgot"]
    return {
        split: [
            f"On that morning {who} {verb} the {noun} behind our house."
            for noun in nouns
            for verb in verbs
        ]
        for split, who in (("train", "my sister"), ("valid", "the doctor"), ("test", "a farmer"))
    }


def spoken_by_espeak(corpus, sentence, **conditions):
    rng = np.random.default_rng(0)
    quiet = {"room": None, "noise": None, "snr_db": None, "level_dbfs": -26.0}
    utterance = corpus.spoken("train", sentence, rng) | {"engine": "espeak", "voice": "en-us+f1"}
    return utterance | quiet | conditions


def test_sentences_of_a_book_can_all_be_written_with_letters(corpus):
    found = corpus.books.sentences(BOOK)
    assert [each.split()[:2] for each in found] == [
        ["My", "dear"],
        ["The", "apple-trees,"],
        ["The", "first"],
        ["the", "second,"],
    ]
    assert found[0].startswith(
        "My dear Mister Bennet, said his lady to him one day, have you heard"
    )
    assert corpus.books.words(found[1]).startswith("the apple trees all of them even the oldest")
    assert all(
        set(corpus.books.words(each)) <= set("abcdefghijklmnopqrstuvwxyz '") for each in found
    )


def test_sentences_voices_and_rooms_are_in_one_split_only(corpus, sentences):
    planned = corpus.plan(0.02, sentences)
    voices, texts = {}, {}
    for split, utterances in planned.items():
        name = corpus.speakers_of(split)
        voices.setdefault(name, set()).update(
            (each["engine"], each["voice"].split("+")[-1]) for each in utterances
        )
        texts.setdefault(name, set()).update(each["sentence"] for each in utterances)
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert voices[one] and not voices[one] & voices[other]
        assert texts[one] and not texts[one] & texts[other]


def test_noisy_test_set_is_the_clean_one_in_rooms_and_noise(corpus, sentences):
    planned = corpus.plan(0.05, sentences | {"train": make_many(sentences["train"])})
    conditions = ("room", "noise", "snr_db", "level_dbfs")
    without = [
        [{k: v for k, v in each.items() if k not in conditions} for each in planned[split]]
        for split in ("test", "test_noisy")
    ]
    assert without[0] == without[1]
    assert all(each["room"] is None and each["noise"] is None for each in planned["test"])
    assert all(each["room"] is not None and each["noise"] for each in planned["test_noisy"])


def make_many(sentences):
    return [f"{sentence[:-1]}, {ending}." for sentence in sentences for ending in "abcdef"]


def test_more_hours_go_on_where_fewer_end(corpus, sentences):
    few, more = (corpus.plan_split("train", sentences["train"], hours) for hours in (0.01, 0.015))
    assert 0 < len(few) < len(more)
    assert more[: len(few)] == few


def test_more_hours_than_sentences_are_an_error(corpus, sentences):
    with pytest.raises(SystemExit, match="the books of train have sentences for"):
        corpus.plan(1.0, sentences)


@pytest.mark.parametrize("snr_db", [0.0, 12.5])
def test_noise_has_the_power_asked_for(augmentation, snr_db):
    rng = np.random.default_rng(0)
    speech = rng.standard_normal(16000).astype(np.float32)
    noise = augmentation.coloured_noise(16000, 1.0, rng)
    added = augmentation.add_noise(speech, noise, snr_db) - speech
    found = 10 * np.log10(np.mean(speech**2) / np.mean(added**2))
    assert found == pytest.approx(snr_db, abs=0.01)


@pytest.mark.parametrize(("slope", "db_per_octave"), [(0.0, 0.0), (1.0, -3.0), (2.0, -6.0)])
def test_coloured_noise_falls_with_frequency(augmentation, slope, db_per_octave):
    noise = augmentation.coloured_noise(2**18, slope, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2
    hertz = np.fft.rfftfreq(2**18, 1 / augmentation.SAMPLE_RATE)
    low, high = (power[(f <= hertz) & (hertz < 1.1 * f)].mean() for f in (500, 4000))
    assert 10 * np.log10(high / low) / 3 == pytest.approx(db_per_octave, abs=0.3)


def test_babble_is_of_utterances_of_any_length(augmentation):
    rng = np.random.default_rng(0)
    utterances = [rng.standard_normal(n).astype(np.float32) for n in (50, 400, 90, 1000, 7, 8, 9)]
    mixed = augmentation.babble(300, utterances, rng)
    assert mixed.shape == (300,)
    assert np.isfinite(mixed).all()


def test_a_room_delays_nothing_and_rings_on(augmentation):
    pytest.importorskip("pyroomacoustics")
    responses = augmentation.room_responses(2, np.random.default_rng(0))
    again = augmentation.room_responses(2, np.random.default_rng(0))
    for response, same in zip(responses, again, strict=True):
        np.testing.assert_array_equal(response, same)
        assert np.abs(response).max() == 1
        # the direct sound is there within 5 ms
        assert np.abs(response[:80]).max() > 0.2
        assert len(response) > augmentation.REVERBERATION_SECONDS[0] * augmentation.SAMPLE_RATE


def test_a_corpus_that_was_broken_off_goes_on_to_the_same_samples(corpus, sentences, tmp_path):
    pytest.importorskip("espeakng_loader")
    jobs = {
        "train/000": [
            spoken_by_espeak(corpus, sentences["train"][0], noise="pink", snr_db=5.0),
            spoken_by_espeak(corpus, sentences["train"][1], room=1),
        ],
        "train/001": [spoken_by_espeak(corpus, each) for each in sentences["train"][2:5]],
    }
    babblers = {"train": [spoken_by_espeak(corpus, sentences["train"][9])]}
    digests = {}
    for name in ("unbroken", "broken"):
        part = tmp_path / name
        (part / "rooms").mkdir(parents=True)
        np.savez(part / "rooms/train.npz", np.float32([1]), np.float32([1, 0.5, 0, 0.25]))
        if name == "broken":
            corpus.run_jobs(part, {"train/000": jobs["train/000"]}, babblers, 1)
            # an utterance of the next job was written, its record was not
            (part / "audio/train/001-00-espeak-en-us+f1.flac").write_bytes(b"fLa")
        corpus.run_jobs(part, jobs, babblers, 1)
        records = corpus.read_records(part, jobs)
        corpus.write_splits(part, tmp_path / name / "audio", records)
        digests[name] = (part / "audio.sha256").read_text()
    assert digests["broken"] == digests["unbroken"]

    root, *rows = (part / "train.tsv").read_text().splitlines()
    labels = (part / "train.ltr").read_text().splitlines()
    assert len(rows) == len(labels) == 5
    assert labels[0].startswith("O N | T H A T | M O R N I N G |")
    soundfile = pytest.importorskip("soundfile")
    for row in rows:
        path, num_samples = row.split("\t")
        info = soundfile.info(f"{root}/{path}")
        assert (info.frames, info.samplerate) == (int(num_samples), 16000)
    known = [json.loads(line) for line in (part / "utterances.jsonl").read_text().splitlines()]
    assert [each["path"] for each in known] == [row.split("\t")[0] for row in rows]


def test_labelled_subsets_are_the_beginnings_of_train(corpus):
    records = [{"path": str(n), "num_samples": 60 * 16000} for n in range(70)]
    subsets = corpus.labelled_subsets(records)
    assert subsets == {"train_10m": records[:10], "train_1h": records[:60]}
    assert corpus.labelled_subsets(records[:30]) == {"train_10m": records[:10]}


def test_test_sets_are_of_known_synthesisers_and_of_others(corpus):
    records = {
        "train": [{"engine": "espeak"}, {"engine": "pico"}],
        "test": [{"engine": "espeak"}, {"engine": "piper"}, {"engine": "espeak"}],
        "test_noisy": [{"engine": "piper"}],
    }
    assert corpus.by_synthesiser(records) == {
        "train": records["train"],
        "test": [{"engine": "espeak"}] * 2,
        "test_other": [{"engine": "piper"}],
        "test_other_noisy": [{"engine": "piper"}],
    }


def test_recorded_prompts_are_those_that_letters_can_label(corpus, tmp_path):
    import gzip

    import recorded_prompts

    target = tmp_path / recorded_prompts.TRANSCRIPTS
    target.parent.mkdir(parents=True)
    lines = [
        "; remarks",
        "",
        "vm-goodbye: Goodbye!",
        "press-1: Press 1 now.",
        "beep: [a tone]",
        "digits/one: one",
        "spy-local: Local",
        "followme/sorry: I'm sorry, the person is not available.",
    ]
    target.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert recorded_prompts.transcripts(tmp_path) == {
        "vm-goodbye": "goodbye",
        "followme/sorry": "i'm sorry the person is not available",
    }
