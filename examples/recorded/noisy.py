"""A noisy copy of a split, at one signal-to-noise ratio or between two.

    python examples/recorded/noisy.py out/data test --snr 10

adds out/data/test_snr10.tsv and .ltr, and its audio below out/data/test_snr10. With --snr 0 25 each
utterance has a ratio of its own, and the split is test_snr0-25. The noise is pink; with --noise
babble it is three to six other utterances of the split at once, and the split test_babble_snr10.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import soundfile

from fairseq_speedup.data.manifest import read_manifest
from fairseq_speedup.files import written_whole

sys.path.append(str(Path(__file__).resolve().parents[1] / "open_corpus"))
from augmentation import BABBLING_VOICES, NOISE_SLOPES, add_noise, babble, coloured_noise

LABELS = ("ltr", "wrd")
BABBLE = "babble"


def noisy_copy(
    data: Path, split: str, kind: str, snr_db: list[float], seed: int, labelled: bool
) -> str:
    """The new split's name; its manifest is the last that is written.

    Args:
        kind: of noise, a colour or ``babble``
        snr_db: one ratio in dB, or the least and the largest
        labelled: else its lines of labels are empty, for training from audio alone
    """
    manifest = read_manifest(str(data / f"{split}.tsv"))
    if kind == BABBLE and len(manifest.files) < max(BABBLING_VOICES):
        raise ValueError(
            f"{manifest.path} has {len(manifest.files)} utterances; --noise {BABBLE} takes at "
            f"least {max(BABBLING_VOICES)}, as each is heard under others"
        )
    of_kind = "" if kind == "pink" else f"_{kind}"
    name = f"{split}{of_kind}_snr{'-'.join(f'{each:g}' for each in snr_db)}"
    folder = (data / name).resolve()
    folder.mkdir(exist_ok=True)
    files = []
    read = (soundfile.read(Path(manifest.root) / file, dtype="float32") for file in manifest.files)
    if kind == BABBLE:
        read = list(read)  # each is heard under others
    for number, (speech, rate) in enumerate(read):
        rng = np.random.default_rng([seed, number])
        if kind == BABBLE:
            others = [each for index, (each, _) in enumerate(read) if index != number]
            noise = babble(len(speech), others, rng)
        else:
            noise = coloured_noise(len(speech), NOISE_SLOPES[kind], rng)
        mixed = add_noise(speech, noise, rng.uniform(snr_db[0], snr_db[-1]))
        mixed *= min(1.0, 0.99 / np.abs(mixed).max())  # nothing is clipped
        files.append((f"{number}.flac", len(mixed)))
        soundfile.write(folder / files[-1][0], mixed, rate)
    for labels in LABELS:
        path = data / f"{split}.{labels}"
        if path.is_file() and labelled:
            shutil.copyfile(path, data / f"{name}.{labels}")
        elif path.is_file():
            (data / f"{name}.{labels}").write_text("\n" * len(files), encoding="utf-8")
    with written_whole(str(data / f"{name}.tsv")) as part:
        lines = [str(folder), *(f"{file}\t{count}" for file, count in files)]
        Path(part).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with manifests and labels")
    parser.add_argument("split")
    parser.add_argument("--snr", type=float, nargs="+", default=[10.0], metavar="DB")
    kinds = (*NOISE_SLOPES, BABBLE)
    parser.add_argument("--noise", choices=kinds, default="pink", help="default: %(default)s")
    parser.add_argument("--without-labels", action="store_true", help="audio alone")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if len(args.snr) > 2 or args.snr != sorted(args.snr):
        parser.error("argument --snr: give one ratio, or the least and the largest")
    try:
        name = noisy_copy(
            *(args.data, args.split, args.noise, args.snr, args.seed, not args.without_labels)
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.data / name}.tsv: decode with --gen-subset {name}")


if __name__ == "__main__":
    main()
