"""The open corpus's HuBERT: clusters of MFCC and of a layer, stock fairseq's pretraining."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from helpers.commands import REPO
from helpers.models import batch_of, build_model, write_pretrained
from helpers.processes import run_forked

from fairseq_speedup.pretrained import read_file

EXAMPLE = REPO / "examples/open_corpus"
SAMPLE_RATE = 16000
TONES = (300, 900, 2500)  # Hz
SECONDS = 0.4  # of each tone
SMALL = [
    "model.encoder_layers=2",
    "model.encoder_embed_dim=16",
    "model.encoder_ffn_embed_dim=32",
    "model.encoder_attention_heads=2",
    "model.conv_feature_layers='[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2'",
    "model.final_dim=8",
    "model.conv_pos_groups=2",
]


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Utterances of three tones, each in an order of its own."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    time = np.arange(int(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    rows, orders = [], []
    for number in range(6):
        order = rng.permutation(6) % len(TONES)
        wave = np.concatenate([0.1 * np.sin(2 * np.pi * TONES[tone] * time) for tone in order])
        wave += 0.001 * rng.standard_normal(len(wave))
        soundfile.write(folder / f"{number}.wav", wave, SAMPLE_RATE)
        rows.append(f"{number}.wav\t{len(wave)}\n")
        orders.append(order)
    (folder / "train.tsv").write_text(f"{folder}\n{''.join(rows)}")
    return folder, orders


def clusters(folder, output, *options, check=True):
    command = [EXAMPLE / "clusters.py", folder, output, "--clusters", 3, *options]
    return run_forked(*command, check=check)


def read_labels(output) -> list[list[int]]:
    lines = (output / "train.km").read_text().splitlines()
    return [[int(label) for label in line.split()] for line in lines]


@pytest.fixture(scope="module")
def labelled(tones, tmp_path_factory):
    output = tmp_path_factory.mktemp("clusters")
    clusters(tones[0], output)
    return output


def test_sounds_that_differ_get_clusters_of_their_own(tones, labelled):
    _, orders = tones
    assert (labelled / "dict.km.txt").read_text() == "0 1\n1 1\n2 1\n"
    of_tone = {tone: [] for tone in range(len(TONES))}
    for labels, order in zip(read_labels(labelled), orders, strict=True):
        assert len(labels) == (int(6 * SECONDS * SAMPLE_RATE) - 400) // 160 + 1
        for position, tone in enumerate(order):
            start = round(100 * SECONDS * position)
            of_tone[tone] += labels[start + 8 : start + 32]  # away from the edges
    found = [max(set(labels), key=labels.count) for labels in of_tone.values()]
    assert sorted(found) == [0, 1, 2]
    for cluster, labels in zip(found, of_tone.values(), strict=True):
        assert labels.count(cluster) > 0.9 * len(labels)


def test_a_layers_outputs_are_clustered_too(tones, tmp_path):
    path = write_pretrained(tmp_path / "tiny.pt", normalize=True)
    clusters(tones[0], tmp_path / "km", "--checkpoint", path, "--layer", 2)
    frames = {len(labels) for labels in read_labels(tmp_path / "km")}
    assert frames == {build_model(path).w2v_encoder.frame_lengths(int(6 * SECONDS * SAMPLE_RATE))}
    done = clusters(tones[0], tmp_path / "no", "--checkpoint", path, "--layer", 3, check=False)
    assert done.returncode == 1
    assert "has layers 1 to 2" in done.stderr
    done = clusters(tones[0], tmp_path / "no", "--layer", 3, check=False)
    assert "--checkpoint and --layer go together" in done.stderr


def pretrain_on_two_processes(folder, *overrides) -> list[str]:
    """As pretrain.sh does; what each printed."""
    (folder / "rendezvous").unlink(missing_ok=True)
    command = ["fairseq-hydra-train", "--config-dir", EXAMPLE, "--config-name"]
    command += ["pretraining", f"common.user_dir={EXAMPLE}/hubert_on_cpus", *overrides]
    command += ["distributed_training.distributed_world_size=2", f"checkpoint.save_dir={folder}"]
    command += [f"distributed_training.distributed_init_method='file://{folder}/rendezvous'"]

    def run_rank(rank):
        rank_is = f"distributed_training.distributed_rank={rank}"
        done = run_forked(*command, rank_is, f"hydra.run.dir={folder}/rank{rank}")
        return done.stdout + done.stderr

    with ThreadPoolExecutor() as pool:
        return list(pool.map(run_rank, [0, 1]))


def test_what_it_pretrains_goes_on_after_a_break_and_is_fine_tuned(tones, labelled, tmp_path):
    given = [f"task.data={tones[0]}", f"task.label_dir={labelled}", *SMALL]
    given += ["dataset.num_workers=0", "dataset.max_tokens=80000"]
    first, _ = pretrain_on_two_processes(tmp_path, *given, "optimization.max_update=3")
    assert "training on 2 devices" in first
    again, _ = pretrain_on_two_processes(tmp_path, *given, "optimization.max_update=5")
    assert "Loaded checkpoint" in again
    run_forked(EXAMPLE / "slim.py", tmp_path / "checkpoint_last.pt", tmp_path / "slim.pt")
    models = [
        build_model(tmp_path / name, downsample="conv", downsample_factor=2)
        for name in ("checkpoint_last.pt", "slim.pt")
    ]
    assert models[0](**batch_of([16000, 12000]))["encoder_out"].isfinite().all()
    encoders = [model.w2v_encoder.w2v_model.state_dict() for model in models]
    torch.testing.assert_close(*encoders, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["hubert.pt", "hubert_ctc.pt"])
def test_the_committed_checkpoints_are_small_and_are_loaded(name):
    path = EXAMPLE / name
    assert path.stat().st_size < 10e6
    model = build_model(path, downsample="conv", downsample_factor=2)
    assert model(**batch_of([16000, 12000]))["encoder_out"].isfinite().all()
    assert bool(read_file(str(path)).head) == (name == "hubert_ctc.pt")
