"""fairseq-generate with every decoder, on a small random model."""

import csv
import json
import shutil

import numpy as np
import pytest
from fairseq.data import Dictionary
from helpers.commands import generate_here
from helpers.corpora import write_arpa
from helpers.models import write_finetuned

from fairseq_speedup.__main__ import main


@pytest.fixture(scope="module")
def lexicon(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("lm") / "lexicon.txt"
    assert main(["lexicon", str(data), "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def language_model(lexicon):
    words = [line.split("\t")[0] for line in lexicon.read_text().splitlines()]
    return write_arpa(lexicon.with_name("words.arpa"), words)


@pytest.fixture(scope="module")
def with_lm(lexicon, language_model):
    options = ["--ctc-decoder", "beam", "--beam", 20, "--nbest", 3, "--lexicon", lexicon]
    options += ["--kenlm-model", language_model, "--lm-weight", 1.5, "--word-score", -0.5]
    return [*options, "--batch-size", 2]


def rows_of(path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def lines_of(results, kind: str) -> dict[int, list[list[str]]]:
    """Cells after the number, by utterance"""
    found = {}
    for line in (results / "generate-test.txt").read_text().splitlines():
        if line.startswith(f"{kind}-"):
            number, *cells = line[2:].split("\t")
            found.setdefault(int(number), []).append(cells)
    return found


def check_nbest(results, lm_weight=0.0, word_score=0.0):
    """That scores are ordered and add up, and are fairseq's."""
    rows = rows_of(results / "nbest-test.tsv")
    lines = lines_of(results, "D")
    assert {int(row["id"]) for row in rows} == set(range(7))
    for utterance in range(7):
        nbest = [row for row in rows if int(row["id"]) == utterance]
        assert [int(row["rank"]) for row in nbest] == list(range(1, len(nbest) + 1))
        scores = [float(row["score"]) for row in nbest]
        assert scores == sorted(scores, reverse=True)
        assert len({row["text"] for row in nbest}) == len(nbest)
        for row, (score, text) in zip(nbest, lines[utterance], strict=True):
            parts = float(row["acoustic_score"]) + lm_weight * float(row["lm_score"])
            parts += word_score * int(row["num_words"])
            assert float(row["score"]) == pytest.approx(parts, abs=1e-3)
            assert float(score) * np.log(2) == pytest.approx(float(row["score"]), abs=1e-3)
            assert text.split() == row["text"].split()
    return rows


def test_a_beam_without_language_model_beats_the_best_path(data, model, tmp_path):
    generate_here(data, model, tmp_path / "greedy", "--batch-size", 3)
    beam = ["--ctc-decoder", "beam", "--beam", 10, "--nbest", 4]
    generate_here(data, model, tmp_path / "beam", "--batch-size", 3, *beam)
    check_nbest(tmp_path / "beam")
    best_path = lines_of(tmp_path / "greedy", "H")
    for utterance, nbest in lines_of(tmp_path / "beam", "H").items():
        assert float(nbest[0][0]) > float(best_path[utterance][0][0])
    compute = json.loads((tmp_path / "beam/compute.json").read_text())
    assert compute["decoding"] == {"ctc_decoder": "beam", "beam": 10, "nbest": 4}
    assert compute["num_frames"] == compute["num_searched_frames"] > 0
    assert compute["decoder_seconds"] > 0
    assert compute["decoder_wait_seconds"] >= compute["decoder_seconds"]


def test_words_are_the_lexicons_and_scores_add_up(data, model, with_lm, lexicon, tmp_path):
    generate_here(data, model, tmp_path, *with_lm, "--ctm")
    rows = check_nbest(tmp_path, lm_weight=1.5, word_score=-0.5)
    known = {line.split("\t")[0] for line in lexicon.read_text().splitlines()}
    assert {word for row in rows for word in row["text"].split()} <= known
    best = {row["id"]: row["text"].split() for row in rows if row["rank"] == "1"}
    assert all(int(row["num_words"]) == len(row["text"].split()) for row in rows)
    texts = [text for nbest in lines_of(tmp_path, "D").values() for _, text in nbest]
    assert texts == [" ".join(text.split()) for text in texts]
    timed = [line.split() for line in (tmp_path / "generate-test.ctm").read_text().splitlines()]
    for utterance, words in best.items():
        ours = [line for line in timed if line[0] == f"test-{utterance}"]
        assert [line[4] for line in ours] == words
        starts = [float(line[2]) for line in ours]
        assert starts == sorted(starts)


def test_a_search_elsewhere_changes_nothing_but_the_time(data, model, with_lm, tmp_path):
    generate_here(data, model, tmp_path / "here", *with_lm)
    generate_here(data, model, tmp_path / "elsewhere", *with_lm, "--decoder-workers", 2)
    for name in ("generate-test.txt", "nbest-test.tsv"):
        assert (tmp_path / "here" / name).read_text() == (tmp_path / "elsewhere" / name).read_text()
    compute = json.loads((tmp_path / "elsewhere/compute.json").read_text())
    assert compute["num_utterances"] == 7
    assert compute["encoder_seconds"] > 0
    assert compute["decoder_seconds"] > 0


def test_letters_without_lexicon(data, model, tmp_path):
    letters = (data / "dict.ltr.txt").read_text().split()[::2]
    arpa = write_arpa(tmp_path / "letters.arpa", letters)
    options = ["--ctc-decoder", "beam", "--beam", 20, "--nbest", 2, "--lexicon-free"]
    options += ["--kenlm-model", arpa, "--lm-weight", 0.5]
    generate_here(data, model, tmp_path / "results", *options)
    check_nbest(tmp_path / "results", lm_weight=0.5)


def test_skipping_blanks_is_reported(data, model, tmp_path):
    options = ["--ctc-decoder", "beam", "--blank-skip-threshold", 0.7]
    generate_here(data, model, tmp_path, *options)
    compute = json.loads((tmp_path / "compute.json").read_text())
    assert 0 < compute["num_searched_frames"] < compute["num_frames"]
    share = compute["num_searched_frames"] / compute["num_frames"]
    assert compute["share_of_frames_searched"] == pytest.approx(share, abs=1e-4)
    assert compute["decoding"]["blank_skip_threshold"] == 0.7


@pytest.mark.parametrize(
    "options",
    [
        {"downsample": "conv", "downsample_factor": 2.0, "logit_upsample": 2},
        {"frame_pool": 2, "merge_ratio": 0.1},
        {"exit_layers": "0", "exit_criterion": "entropy", "exit_threshold": 99.0},
        {"frontend": "fbank", "head": "mlp"},
        {"stock": True},
    ],
    ids=str,
)
def test_every_reduction_is_decoded_with_words_and_times(
    data, pretrained, with_lm, tmp_path, options
):
    dictionary = Dictionary.load(str(data / "dict.ltr.txt"))
    path = write_finetuned(tmp_path / "model.pt", pretrained, dictionary, **options)
    generate_here(data, path, tmp_path / "results", *with_lm, "--ctm")
    check_nbest(tmp_path / "results", lm_weight=1.5, word_score=-0.5)
    durations = dict(row.split("\t") for row in (data / "test.tsv").read_text().splitlines()[1:])
    for line in (tmp_path / "results/generate-test.ctm").read_text().splitlines():
        recording, _, start, duration, _ = line.split()
        end = float(start) + float(duration)
        assert end <= int(durations[f"{recording}.wav"]) / 16000 + 2e-3


def test_sentencepiece_labels_with_words_and_without(data, pretrained, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train.tsv", "train.ltr", "test.tsv", "test.ltr"):
        shutil.copy(data / name, folder)
    assert main(["spm", str(folder), "--vocab-size", "16"]) == 0
    dictionary = Dictionary.load(str(folder / "dict.spm.txt"))
    path = write_finetuned(tmp_path / "model.pt", pretrained, dictionary, labels="spm")
    lexicon = tmp_path / "lexicon.txt"
    command = ["lexicon", str(folder), "--labels", "spm", "--output", str(lexicon)]
    assert main(command) == 0
    rows = [line.split("\t") for line in lexicon.read_text().splitlines()]
    known = sorted({word for word, _ in rows})
    assert all(spelling.replace(" ", "") == f"\u2581{word}" for word, spelling in rows)
    (tmp_path / "words.txt").write_text("\n".join(known))
    listed = ["--words", str(tmp_path / "words.txt"), "--overwrite"]
    assert main([*command, *listed]) == 0

    spm = ["--labels", "spm", "--post-process", "sentencepiece", "--ctc-decoder", "beam"]
    spm += ["--beam", 20, "--nbest", 2, "--lm-weight", 1, "--ctm"]
    words = write_arpa(tmp_path / "words.arpa", known)
    pieces = write_arpa(tmp_path / "pieces.arpa", dictionary.symbols[dictionary.nspecial :])
    for name, options in {
        "lexicon": ["--lexicon", lexicon, "--kenlm-model", words],
        "free": ["--lexicon-free", "--kenlm-model", pieces],
    }.items():
        results = tmp_path / name
        generate_here(folder, path, results, *spm, *options)
        found = check_nbest(results, lm_weight=1)
        timed = [line.split() for line in (results / "generate-test.ctm").read_text().splitlines()]
        best = [row["text"].split() for row in found if row["rank"] == "1"]
        assert len(timed) == sum(len(text) for text in best)
        if name == "lexicon":
            assert {word for row in found for word in row["text"].split()} <= set(known)
    with pytest.raises(ValueError, match="--lexicon-free needs a model over the labels"):
        generate_here(folder, path, None, *spm[:-1], "--lexicon-free", "--kenlm-model", words)


def test_two_shards_merged_are_the_single_run(data, model, with_lm, tmp_path, capsys):
    generate_here(data, model, tmp_path / "whole", *with_lm, "--ctm")
    shards = [tmp_path / f"shard{number}" for number in range(2)]
    for number, folder in enumerate(shards):
        options = ["--num-shards", 2, "--shard-id", number, "--ctm"]
        generate_here(data, model, folder, *with_lm, *options)
    merged = tmp_path / "merged"
    merge = ["merge", "--output", str(merged)]
    assert main([*merge, *map(str, shards)]) == 0
    assert "7 utterances of 2 shards" in capsys.readouterr().out

    whole = tmp_path / "whole"
    for name in ("generate-test.txt", "nbest-test.tsv"):
        expected = sorted((whole / name).read_text().splitlines())
        assert sorted((merged / name).read_text().splitlines()) == expected
    last_lines = [
        (folder / "generate-test.txt").read_text().splitlines()[-1] for folder in (whole, merged)
    ]
    assert last_lines[0] == last_lines[1]
    assert "WER: " in last_lines[0]
    assert (merged / "generate-test.ctm").read_text() == (whole / "generate-test.ctm").read_text()
    one, both = (json.loads((each / "compute.json").read_text()) for each in (whole, merged))
    assert both["audio_seconds"] == pytest.approx(one["audio_seconds"])
    assert both["macs_per_second"] == pytest.approx(one["macs_per_second"])
    assert both["num_frames"] == one["num_frames"]
    assert [each["shard_id"] for each in both["shards"]] == [0, 1]

    # what is no whole run is refused
    assert main([*merge, *map(str, shards)]) == 1
    assert "exists; give --overwrite" in capsys.readouterr().err
    merge.append("--overwrite")
    for given, words in [
        (shards[:1], "shards 1 of 2 are missing"),
        ([*shards, shards[0]], "a shard is given twice"),
        ([shards[0], whole], "are of other runs: num_shards is 2 and 1"),
        ([*shards, tmp_path / "lost"], "has no results of test"),
    ]:
        assert main([*merge, *map(str, given)]) == 1
        assert words in capsys.readouterr().err
    results = shards[0] / "generate-test.txt"
    lines = results.read_text().splitlines()
    results.write_text("\n".join(lines[len(lines) // 2 :]) + "\n")
    assert main([*merge, *map(str, shards)]) == 1
    assert "decode that shard again" in capsys.readouterr().err


def test_a_shard_does_not_write_into_anothers_results(data, model, tmp_path):
    shards = ["--num-shards", 2, "--batch-size", 2, "--shard-id"]
    generate_here(data, model, tmp_path, *shards, 0)
    with pytest.raises(ValueError, match=r"is that of shard 0 of 2.*give shard 1 of 2 another"):
        generate_here(data, model, tmp_path, *shards, 1)
    with pytest.raises(ValueError, match="--shard-id 2 is out of range"):
        generate_here(data, model, tmp_path / "other", *shards, 2)
    generate_here(data, model, tmp_path, *shards, 0)  # a rerun replaces


def test_more_shards_than_batches_are_refused(data, model, tmp_path):
    options = ["--num-shards", 3, "--shard-id", 0, "--batch-size", 4]
    with pytest.raises(ValueError, match="--num-shards 3: there are 2 batches"):
        generate_here(data, model, tmp_path, *options)


def test_files_of_an_earlier_run_do_not_stay_beside_new_results(data, model, tmp_path):
    generate_here(data, model, tmp_path, "--ctc-decoder", "beam", "--ctm")
    generate_here(data, model, tmp_path)
    assert not (tmp_path / "nbest-test.tsv").exists()
    assert not (tmp_path / "generate-test.ctm").exists()
    with pytest.raises(ValueError, match="--ctm writes into the results: give --results-path"):
        generate_here(data, model, None, "--ctm")


def test_half_precision_on_a_cpu_names_what_is_fast_there(data, model):
    with pytest.raises(ValueError, match=r"--fp16 is for GPUs.*--inference fp32, bf16 or int8"):
        generate_here(data, model, None, "--fp16")


def test_a_model_of_other_words_is_refused_before_decoding(data, model, lexicon, tmp_path):
    lower = write_arpa(tmp_path / "lower.arpa", ["a", "to", "note"])
    options = ["--ctc-decoder", "beam", "--lexicon", lexicon, "--kenlm-model", lower]
    with pytest.raises(ValueError, match=r"100.0 % of the words of .*train.ltr are out of its"):
        generate_here(data, model, tmp_path / "results", *options, "--lm-weight", 1)


def test_tuning_decodes_what_the_model_gave_once(
    data, model, lexicon, language_model, tmp_path, capsys
):
    emissions = tmp_path / "emissions.npz"
    command = ["tune-lm", str(data), "--path", str(model), "--gen-subset", "test", "--cpu"]
    command += ["--kenlm-model", str(language_model), "--lexicon", str(lexicon), "--beam", "8"]
    command += ["--rounds", "1", "--workers", "2", "--emissions", str(emissions)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"wrote {emissions}" in printed
    rows = [line.split() for line in printed.splitlines() if line.startswith("    ")]
    wers = {
        tuple(map(float, row[:2])): float(row[2])
        for row in rows
        if len(row) == 3 and row[0] != "lm"
    }
    assert len(wers) >= 25
    (found,) = [line for line in printed.splitlines() if line.startswith("best of")]
    assert f"WER {min(wers.values()):.2f} %" in found

    # the command that it prints gives the WER that it prints
    words = printed.splitlines()[-1].split()
    assert words[0] == "fairseq-generate"
    start = words.index("--ctc-decoder")
    generate_here(data, model, tmp_path / "results", *words[start:])
    assert f"WER: {min(wers.values()):.2f}" in (tmp_path / "results/generate-test.txt").read_text()

    # what the model gave is read again, and only for the same model
    capsys.readouterr()
    assert main(command) == 0
    assert "wrote" not in capsys.readouterr().out
    assert main([*command, "--model-overrides", "{'frame_pool': 2}"]) == 1
    assert "is of another run: model_overrides" in capsys.readouterr().err
    emissions.write_bytes(b"no emissions")
    assert main(command) == 1
    assert f"--emissions {emissions} cannot be read" in capsys.readouterr().err
    assert main([*command, "--workers", "0"]) == 1
    assert "--workers 0 is out of range; it must be 1 or more" in capsys.readouterr().err
