"""Manifests, labels and audio that are wrong, and CTC feasibility."""

import gzip
import logging
import re
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.corpora import write_dictionary, write_split
from helpers.models import build_model, task_of
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fairseq_speedup.architectures import architecture_config
from fairseq_speedup.data.audio import BadUtteranceError
from fairseq_speedup.data.feasibility import (
    Feasibility,
    InfeasibleCtcError,
    check_feasibility,
    needed_frames,
    report_feasibility,
)
from fairseq_speedup.data.manifest import ManifestError, infer_labels
from fairseq_speedup.lengths import conv_stack_length
from fairseq_speedup.tasks import SpeedupFinetuningConfig, SpeedupFinetuningTask

TRAINING = {"data_selector": None}  # what fairseq's trainer gives for the training split alone


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    for split in ("train", "test"):
        write_split(folder, split, 12)
    write_dictionary(folder)
    return folder


def edit_lines(path: Path, edit) -> None:
    lines = path.read_text().splitlines()
    edit(lines)
    path.write_text("".join(line + "\n" for line in lines))


def test_a_good_split_loads(data, pretrained):
    task = task_of(data, build_model(pretrained))
    task.load_dataset("test")
    dataset = task.dataset("test")
    assert len(dataset) == len(dataset.ordered_indices()) == 12
    batch = dataset.collater([dataset[i] for i in range(3)])
    assert batch["net_input"]["source"].size(0) == batch["target"].size(0) == 3


def drop_manifest(data):
    (data / "test.tsv").unlink()
    return FileNotFoundError, "test.tsv does not exist; splits in .*data: train"


def empty_manifest(data):
    (data / "test.tsv").write_text("")
    return ManifestError, "test.tsv has no utterances"


def broken_row(data):
    edit_lines(data / "test.tsv", lambda lines: lines.__setitem__(2, "a.wav 16000"))
    return ManifestError, "test.tsv, line 3: expected 'path<TAB>number of samples'.*'a.wav 16000'"


def lost_root(data):
    edit_lines(data / "test.tsv", lambda lines: lines.__setitem__(0, "/nowhere"))
    return FileNotFoundError, "test.tsv, line 1: the root folder '/nowhere' does not exist"


def lost_audio(data):
    edit_lines(data / "test.tsv", lambda lines: lines.__setitem__(1, "lost.wav\t16000"))
    return FileNotFoundError, "test.tsv, line 2: the audio file .*lost.wav does not exist"


def lost_labels(data):
    (data / "test.ltr").unlink()
    return FileNotFoundError, r"label file .*test.ltr does not exist \(task.labels=ltr\)"


def fewer_labels(data):
    edit_lines(data / "test.ltr", lambda lines: lines.pop())
    return ManifestError, "test.ltr has 11 lines of labels but .*test.tsv has 12 utterances"


def unknown_label(data):
    edit_lines(data / "test.ltr", lambda lines: lines.__setitem__(4, "E T Q | 7 |"))
    words = r"1 of 12 utterances are bad: utterance 4 \(test-4.wav\): labels outside.*: 7 Q"
    return ManifestError, words + r".*symbols of dict.ltr.txt: \| E T"


def short_audio(data):
    edit_lines(data / "test.tsv", lambda lines: lines.__setitem__(6, "test-5.wav\t399"))
    words = r"utterance 5 \(test-5.wav\): 399 samples are shorter.*needs at least 400 samples"
    return ManifestError, words


def lost_dictionary(data):
    (data / "dict.ltr.txt").unlink()
    return FileNotFoundError, r"dict.ltr.txt does not exist \(task.labels=ltr\)"


@pytest.mark.parametrize(
    "spoil",
    [
        drop_manifest,
        empty_manifest,
        broken_row,
        lost_root,
        lost_audio,
        lost_labels,
        fewer_labels,
        unknown_label,
        short_audio,
        lost_dictionary,
    ],
)
def test_bad_data_are_refused_by_name_before_anything_runs(data, pretrained, spoil):
    error, words = spoil(data)
    with pytest.raises(error, match=words):
        task_of(data, build_model(pretrained)).load_dataset("test")


def test_decoding_without_labels_names_the_command_that_needs_none(data):
    lost_labels(data)
    task = task_of(data)
    given = OmegaConf.create({"labels": "ltr", "normalize": True, "tpu": False})
    with pytest.raises(FileNotFoundError, match=r"\(task.labels=ltr\); .* transcribe decodes"):
        task.load_dataset("test", task_cfg=given)
    with pytest.raises(FileNotFoundError, match=r"\(task.labels=ltr\)$"):
        task.load_dataset("test")


@pytest.mark.parametrize("spoil", [unknown_label, short_audio])
def test_one_bad_row_is_left_out_of_training_with_a_warning(data, pretrained, caplog, spoil):
    for ending in ("tsv", "ltr"):
        (data / f"test.{ending}").write_text((data / f"train.{ending}").read_text())
    edit_lines(data / "test.tsv", lambda lines: lines.__setitem__(6, lines[6]))
    spoil(data)
    task = task_of(data, build_model(pretrained))
    with caplog.at_level(logging.WARNING):
        task.load_dataset("test", **TRAINING)
    assert len(task.dataset("test").ordered_indices()) == 11
    assert "1 of 12 utterances are bad" in caplog.text
    assert "left out of training" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "dict.ltr.txt is empty"), ("A\n", "dict.ltr.txt: .*a label and a count")],
)
def test_a_bad_dictionary_is_named(data, text, words):
    (data / "dict.ltr.txt").write_text(text)
    with pytest.raises(ManifestError, match=words):
        task_of(data).load_dataset("test")


MARK = "\ufeff"  # of byte order, as some editors begin a file with
COMPOSED, DECOMPOSED = "\u00c9", "E\u0301"


def test_a_byte_order_mark_is_no_character_of_a_text(data):
    task = task_of(data)
    task.load_dataset("test")
    expected = task.dataset("test")[0]
    for name in ("dict.ltr.txt", "test.tsv", "test.ltr"):
        (data / name).write_text(MARK + (data / name).read_text())
    marked = task_of(data)
    marked.load_dataset("test")
    assert marked.target_dictionary == task.target_dictionary
    found = marked.dataset("test")[0]
    assert torch.equal(found["label"], expected["label"])
    assert torch.equal(found["source"], expected["source"])


@pytest.mark.parametrize(
    ("symbol", "label", "words"),
    [
        (COMPOSED, DECOMPOSED, "U+0045 U+0301; U+00C9, another Unicode normal form"),
        (DECOMPOSED, COMPOSED, "U+00C9; U+0045 U+0301, another Unicode normal form"),
        ("Q", "\u200bE", "U+200B U+0045)"),
    ],
)
def test_labels_that_look_alike_are_told_by_their_code_points(data, symbol, label, words):
    with (data / "dict.ltr.txt").open("a") as dictionary:
        dictionary.write(f"{symbol} 1\n")
    edit_lines(data / "test.ltr", lambda lines: lines.__setitem__(4, f"E {label} |"))
    with pytest.raises(ManifestError, match=re.escape(f"dictionary: {label} ({words}")):
        task_of(data).load_dataset("test")


def test_text_that_is_not_utf8_is_named(data):
    (data / "test.ltr").write_bytes("E T \u00c9 |\n".encode("latin-1"))
    with pytest.raises(ManifestError, match=r"test.ltr is not UTF-8 text"):
        task_of(data).load_dataset("test")
    (data / "dict.ltr.txt").write_bytes("\u00c9 1\n".encode("latin-1"))
    with pytest.raises(ManifestError, match=r"dict.ltr.txt is not UTF-8 text"):
        task_of(data).target_dictionary  # noqa: B018


def test_utterances_without_labels_are_named(data, caplog):
    edit_lines(data / "test.ltr", lambda lines: lines.__setitem__(4, ""))
    task_of(data).load_dataset("test")
    assert "test: 1 utterances have no labels: test-4.wav" in caplog.text


def test_several_dictionaries_need_a_choice(data):
    (data / "dict.spm.txt").write_text("a 1\n")
    cfg = OmegaConf.structured(SpeedupFinetuningConfig(data=str(data)))
    with pytest.raises(ManifestError, match=r"task.labels is not set.*several: ltr, spm"):
        SpeedupFinetuningTask.setup_task(cfg).target_dictionary  # noqa: B018
    with pytest.raises(ManifestError, match="--labels is not set"):
        infer_labels(str(data), "--labels")


def test_the_one_dictionary_tells_the_labels(data):
    cfg = OmegaConf.structured(SpeedupFinetuningConfig(data=str(data)))
    task = SpeedupFinetuningTask.setup_task(cfg)
    assert task.target_dictionary.symbols[-1] == "R"
    assert task.cfg.labels == "ltr"


def replace_audio(data, index, waveform, sample_rate=16000):
    soundfile.write(data / "audio" / f"test-{index}.wav", waveform, sample_rate, subtype="FLOAT")
    length = f"test-{index}.wav\t{len(waveform)}"
    edit_lines(data / "test.tsv", lambda lines: lines.__setitem__(index + 1, length))


def stereo(data):
    replace_audio(data, 3, np.random.randn(8000, 2))
    return "2 channels; 1 is needed"


def other_rate(data):
    replace_audio(data, 3, np.random.randn(8000), 8000)
    return "sample rate is 8000 Hz; task.sample_rate=16000 is needed"


def not_a_number(data):
    waveform = np.random.randn(8000)
    waveform[100] = np.nan
    replace_audio(data, 3, waveform)
    return "NaN or infinite"


def unreadable(data):
    (data / "audio" / "test-3.wav").write_text("no audio")
    return "Format not recognised"


def lost(data):
    (data / "audio" / "test-3.wav").unlink()
    return "test-3.wav does not exist"


def part_of_a_recording(data):
    edit_lines(data / "test.tsv", lambda lines: lines.__setitem__(4, "test-3.wav:800:8000\t4000"))
    return (
        "8000 bytes of .*test-3.wav from byte 800 on are no audio file .*"
        "is a file in a zip without compression"
    )


def in_a_compressed_zip(data):
    row = zipped(data, 3, zipfile.ZIP_DEFLATED)
    edit_lines(data / "test.tsv", lambda lines: lines.__setitem__(4, row))
    return "bytes of .*all.zip from byte .* on are no audio file .*a zip without compression"


def zipped(data, index, compression) -> str:
    """Puts an utterance into a zip; its row of the manifest."""
    file = data / "audio" / f"test-{index}.wav"
    with zipfile.ZipFile(data / "audio" / "all.zip", "w", compression) as archive:
        archive.write(file, file.name)
    info = archive.getinfo(file.name)
    first = info.header_offset + 30 + len(file.name)  # a zip's local header has 30 bytes and name
    return f"all.zip:{first}:{info.compress_size}\t{soundfile.info(file).frames}"


def other_length(data):
    edit_lines(data / "test.tsv", lambda lines: lines.__setitem__(4, "test-3.wav\t12345"))
    return "samples, the manifest says 12345"


def silent(data):
    replace_audio(data, 3, np.zeros(8000))
    return "it is silent"


BAD_AUDIO = [
    *(stereo, other_rate, not_a_number, unreadable, other_length, silent, lost),
    *(part_of_a_recording, in_a_compressed_zip),
]


@pytest.mark.parametrize("spoil", BAD_AUDIO)
def test_bad_audio_is_left_out_of_training_with_a_counted_warning(data, caplog, spoil):
    words = spoil(data)
    task = task_of(data)
    task.load_dataset("test", **TRAINING)
    dataset = task.dataset("test")
    with caplog.at_level(logging.WARNING):
        batch = dataset.collater([dataset[i] for i in range(5)])
    assert batch["id"].tolist() == [0, 1, 2, 4]
    assert batch["target"].size(0) == 4
    (warning,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert "test: utterance 3" in warning
    assert data.name in warning
    assert re.search(words, warning)
    assert "(1 so far)" in warning


@pytest.mark.parametrize("spoil", [s for s in BAD_AUDIO if s is not silent])
def test_bad_audio_is_an_error_in_validation_and_decoding(data, spoil):
    words = spoil(data)
    task = task_of(data)
    task.load_dataset("test")
    with pytest.raises(BadUtteranceError, match=words) as error:
        task.dataset("test")[3]
    assert f"test: utterance 3 ({data}/audio/" in str(error.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_audio_is_read_and_counted_once(data, caplog, monkeypatch, num_workers):
    lost(data)
    edit_lines(data / "test.tsv", lambda lines: lines.__setitem__(6, "test-5.wav\t7"))
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    task = task_of(data)
    task.load_dataset("test", **TRAINING)
    dataset = task.dataset("test")
    for _ in range(3):  # epochs, each with loading processes of its own
        loader = torch.utils.data.DataLoader(
            dataset, 4, collate_fn=dataset.collater, num_workers=num_workers
        )
        found = [index for batch in loader for index in batch["id"].tolist()]
        assert found == [0, 1, 2, 4, *range(6, 12)]
    assert dataset.dataset.was_bad.nonzero().flatten().tolist() == [3, 5]
    assert pauses == []
    if num_workers == 0:
        warnings = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
        assert [text[-9:-1] for text in warnings] == ["1 so far", "2 so far"]


def test_an_exception_without_text_is_told_by_its_kind(data, monkeypatch):
    def odd(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(soundfile, "read", odd)
    task = task_of(data)
    task.load_dataset("test")
    with pytest.raises(BadUtteranceError, match=r"test-0.wav\): AssertionError$"):
        task.dataset("test")[0]


def test_files_in_a_stored_zip_and_with_colons_in_their_names_are_read(data):
    waveform, _ = soundfile.read(data / "audio" / "test-3.wav", dtype="float32")
    row = zipped(data, 3, zipfile.ZIP_STORED)
    mp3 = data / "audio" / "talk: 1:2.mp3"
    soundfile.write(mp3, waveform, 16000)
    edit_lines(data / "test.tsv", lambda lines: lines.__setitem__(4, row))
    edit_lines(
        data / "test.tsv", lambda lines: lines.__setitem__(1, f"{mp3.name}\t{len(waveform)}")
    )
    task = task_of(data)
    task.cfg.normalize = False
    task.load_dataset("test")
    assert np.array_equal(task.dataset("test")[3]["source"].numpy(), waveform)
    expected, _ = soundfile.read(mp3, dtype="float32")
    assert np.array_equal(task.dataset("test")[0]["source"].numpy(), expected)


def test_silence_is_decoded_with_a_warning(data, caplog):
    silent(data)
    task = task_of(data)
    task.load_dataset("test")
    assert task.dataset("test")[3]["source"] is not None
    assert "test-3.wav): it is silent" in caplog.text


def test_training_stops_when_most_audio_is_bad(data):
    task = task_of(data, sample_rate=8000)
    task.load_dataset("train", **TRAINING)
    with pytest.raises(BadUtteranceError, match="10 of the 10 utterances read are bad"):
        for index in range(12):
            task.dataset("train")[index]


@pytest.mark.parametrize(
    ("kwargs", "option"), [(TRAINING, "dataset.max_tokens"), ({}, "dataset.max_tokens_valid")]
)
def test_an_utterance_longer_than_a_batch_may_be_is_named(data, kwargs, option):
    task = task_of(data)
    task.load_dataset("test", **kwargs)
    dataset = task.dataset("test")
    longest = int(dataset.sizes.argmax())
    samples = dataset.sizes[longest]
    task.get_batch_iterator(dataset, max_tokens=samples)
    words = (
        f"test: utterance {longest} ({data}/audio/test-{longest}.wav) has {samples} samples, more "
        f"than a batch may have: {option}={samples - 1}. 1 of 12 are longer"
    )
    with pytest.raises(BadUtteranceError, match=re.escape(words)):
        task.get_batch_iterator(dataset, max_tokens=samples - 1)
    dataset.dataset.leave_out(longest)
    task.get_batch_iterator(dataset, max_tokens=samples - 1)


def test_it_is_named_before_training(data):
    cfg = OmegaConf.create({"task": task_of(data).cfg, "dataset": {"max_tokens_valid": 7}})
    task = SpeedupFinetuningTask.setup_task(cfg.task)
    task.load_dataset("train", **TRAINING)
    with pytest.raises(BadUtteranceError, match=r"dataset.max_tokens_valid=7. 12 of 12"):
        task.load_dataset("test")


@given(st.lists(st.sampled_from("ab"), max_size=8))
def test_needed_frames_is_the_shortest_path_with_a_blank_between_repeats(labels):
    path = []
    for label in labels:
        if path and path[-1] == label:
            path.append("blank")
        path.append(label)
    assert needed_frames(labels) == len(path)


def test_infeasible_utterances_are_counted():
    found = check_feasibility([3, 1, 5], [["a", "b", "c"], ["a", "a"], ["a", "a", "a"]])
    assert (found.num_infeasible, found.num_utterances) == (1, 3)
    assert found.needed_upsampling == 3  # "a a" needs 3 frames and has 1
    assert found.percent == pytest.approx(100 / 3)


def test_most_utterances_infeasible_is_an_error_unless_allowed(caplog):
    found = Feasibility(100, 51, 3)
    with pytest.raises(
        InfeasibleCtcError, match=r"51 of 100 .*51.0 %.*3 times the model.logit_upsample.*spm"
    ):
        report_feasibility("train", found, allow=False, zero_infinity=True)
    report_feasibility("train", found, allow=True, zero_infinity=False)
    assert "51.0 %" in caplog.text
    assert "criterion.zero_infinity=true" in caplog.text
    report_feasibility("train", Feasibility(100, 50), allow=False, zero_infinity=True)


def test_feasibility_is_checked_when_data_are_loaded_for_training(data, pretrained):
    model = build_model(pretrained, downsample="average", downsample_factor=8.0)
    with pytest.raises(InfeasibleCtcError, match="feasibility of train: 12 of 12"):
        task_of(data, model).load_dataset("train", **TRAINING)
    task_of(data, model, allow_infeasible_ctc=True).load_dataset("train", **TRAINING)
    upsampled = build_model(
        pretrained, downsample="average", downsample_factor=8.0, logit_upsample=4
    )
    task_of(data, upsampled).load_dataset("train", **TRAINING)


def test_validation_is_held_to_the_speed_that_is_evaluated_and_training_to_all(
    data, pretrained, caplog
):
    for split in ("train", "test"):
        row = f"{split}-5.wav\t1200"
        edit_lines(data / f"{split}.tsv", lambda lines, row=row: lines.__setitem__(6, row))
    model = build_model(pretrained, downsample="conv", downsample_factors=[1.0, 4.0])
    task = task_of(data, model)
    task.load_dataset("test")
    assert len(task.dataset("test").ordered_indices()) == 12
    with pytest.raises(InfeasibleCtcError, match="feasibility of train: 8 of 11"):
        task.load_dataset("train", **TRAINING)
    task = task_of(data, model, allow_infeasible_ctc=True)
    task.load_dataset("train", **TRAINING)
    assert 5 not in task.dataset("train").ordered_indices()
    assert "train: 1 of 12 utterances are bad: utterance 5" in caplog.text


LENGTHS = Path(__file__).parents[2] / "shared/librispeech_eval.tsv.gz"


@pytest.mark.skipif(not LENGTHS.exists(), reason="no file with LibriSpeech's transcripts")
@pytest.mark.parametrize(("factor", "percent"), [(2, 0), (3, 24), (4, 82)])
def test_characters_of_librispeech_become_infeasible_as_in_the_study(factor, percent):
    with gzip.open(LENGTHS, "rt") as rows:
        cells = [row.rstrip("\n").split("\t") for row in rows]
    cells = [c for c in cells if c[0] == "test-clean"]
    num_samples = np.array([int(c[2]) * 160 for c in cells]) // factor
    layers = eval(architecture_config("large").model.conv_feature_layers)
    labels = [[*c[3].replace(" ", "|"), "|"] for c in cells]  # as fairseq writes letters
    found = check_feasibility(conv_stack_length(num_samples, layers), labels)
    assert found.percent == pytest.approx(percent, abs=1)
