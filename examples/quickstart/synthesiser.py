"""espeak-ng through ctypes, from the library that the espeakng-loader package carries."""

import ctypes
from pathlib import Path

import espeakng_loader
import numpy as np

# Values of espeak-ng's speak_lib.h
AUDIO_OUTPUT_SYNCHRONOUS = 2
RATE, PITCH = 1, 3
POSITION_CHARACTER = 1
CHARACTERS_UTF8 = 1

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Synthesiser:
    """Speaks text into an array. One instance a process: espeak-ng is global."""

    def __init__(self):
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = Path(espeakng_loader.get_data_path()).parent
        self.sample_rate = self.library.espeak_Initialize(
            AUDIO_OUTPUT_SYNCHRONOUS, 0, str(data).encode(), 0
        )
        if self.sample_rate <= 0:
            raise RuntimeError(f"espeak-ng cannot start with its data in {data}")
        self._pieces: list[np.ndarray] = []
        self._callback = _Callback(self._receive)  # kept: espeak-ng holds no reference
        self.library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, num_samples, _events) -> int:
        if samples and num_samples > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0

    def speak(self, text: str, voice: str, words_per_minute: int, pitch: int, seed: int):
        """
        Args:
            voice: language and variant, such as ``en-us+f3``
            pitch: 0 to 99
            seed: of the noise in breathy and voiced sounds; the same seed gives the same samples
        Returns:
            waveform (S,), float32 in [-1, 1], at ``sample_rate`` Hz
        """
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self.library.espeak_SetParameter(RATE, words_per_minute, 0)
        self.library.espeak_SetParameter(PITCH, pitch, 0)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._pieces.clear()
        encoded = text.encode()
        self.library.espeak_Synth(
            encoded, len(encoded) + 1, 0, POSITION_CHARACTER, 0, CHARACTERS_UTF8, None, None
        )
        return np.concatenate(self._pieces).astype(np.float32) / 32768
