"""Labels for HuBERT's pretraining: k-means clusters of each frame, as arXiv 2106.07447 makes them.

    python clusters.py CORPUS FOLDER                                 # of MFCC, 100 a second
    python clusters.py CORPUS FOLDER --checkpoint FILE --layer 4     # of a layer, 50 a second

FOLDER gets train.km, a line of clusters for each utterance of CORPUS/train.tsv, and dict.km.txt:
the label_dir of fairseq's task hubert_pretraining.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy.fft import dct
from scipy.signal import savgol_filter
from sklearn.cluster import MiniBatchKMeans

from fairseq_speedup.data.manifest import Manifest, read_manifest
from fairseq_speedup.frontend.fbank import LogMel
from fairseq_speedup.pretrained import build_encoder, load_weights, read_file

NUM_CEPSTRA = 13
DELTA_FRAMES = 9
NUM_FITTED = 400_000  # frames that k-means is fitted on


def normalised(waveform: np.ndarray) -> torch.Tensor:
    """(1, S) with zero mean and unit variance"""
    source = torch.from_numpy(waveform).float()
    return torch.nn.functional.layer_norm(source, source.shape)[None]


class Cepstra:
    """MFCC with first and second differences, each of zero mean and unit variance over the
    utterance, which takes off much of the speaker and the room."""

    def __init__(self):
        self.log_mel = LogMel()

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """(S,) -> (T, 39), every 10 ms"""
        energies = self.log_mel.energies(normalised(waveform))[0].numpy()
        cepstra = dct(energies, norm="ortho")[:, :NUM_CEPSTRA]
        differences = [
            savgol_filter(cepstra, DELTA_FRAMES, polyorder=order, deriv=order, axis=0)
            for order in (1, 2)
        ]
        features = np.concatenate([cepstra, *differences], axis=1)
        return (features - features.mean(0)) / features.std(0).clip(min=1e-3)


class LayerOutputs:
    """What a pretrained model's layer, counted from 1, gives."""

    def __init__(self, path: str, layer: int):
        pretrained = read_file(path)
        self.model = build_encoder(pretrained.cfg)
        load_weights(self.model, pretrained.weights, path)
        self.model.eval()
        num_layers = len(self.model.encoder.layers)
        if not 1 <= layer <= num_layers:
            raise SystemExit(f"--layer {layer}: {path} has layers 1 to {num_layers}")
        self.layer = layer

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """(S,) -> (T, C), every 20 ms"""
        found = self.model.extract_features(
            normalised(waveform), padding_mask=None, mask=False, layer=self.layer - 1
        )
        return found["x"][0].numpy()


def features_of(extract, manifest: Manifest, step: int = 1) -> Iterator[np.ndarray]:
    for name in manifest.files[::step]:
        waveform, _ = soundfile.read(Path(manifest.root) / name, dtype="float32")
        yield extract(waveform).astype(np.float32)


def fit(extract, manifest: Manifest, clusters: int, seed: int) -> MiniBatchKMeans:
    frames = sum(manifest.num_samples) // 160
    step = max(1, frames // NUM_FITTED)
    features = np.concatenate(list(features_of(extract, manifest, step)))
    kmeans = MiniBatchKMeans(clusters, random_state=seed, batch_size=10_000, n_init=5, max_iter=100)
    return kmeans.fit(features)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subset", default="train")
    parser.add_argument("--checkpoint", help="cluster a layer's outputs in place of MFCC")
    parser.add_argument("--layer", type=int, help="of the checkpoint, counted from 1")
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    if (options.checkpoint is None) != (options.layer is None):
        parser.error("--checkpoint and --layer go together")
    return options


@torch.inference_mode()
def main() -> None:
    options = parse(sys.argv[1:])
    start = time.perf_counter()
    manifest = read_manifest(str(options.corpus / f"{options.subset}.tsv"))
    extract = Cepstra()
    if options.checkpoint:
        extract = LayerOutputs(options.checkpoint, options.layer)
    kmeans = fit(extract, manifest, options.clusters, options.seed)
    options.folder.mkdir(parents=True, exist_ok=True)
    lines = [
        " ".join(map(str, kmeans.predict(features))) for features in features_of(extract, manifest)
    ]
    (options.folder / f"{options.subset}.km").write_text("".join(f"{line}\n" for line in lines))
    names = "".join(f"{cluster} 1\n" for cluster in range(options.clusters))
    (options.folder / "dict.km.txt").write_text(names)
    seconds = time.perf_counter() - start
    print(
        f"{options.folder}: {len(lines)} utterances, {options.clusters} clusters, {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
