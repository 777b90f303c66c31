"""espeak-ng through ctypes, from the library that the espeakng-loader package carries."""

import ctypes
import itertools
from pathlib import Path

import espeakng_loader
import numpy as np

# Values of espeak-ng's speak_lib.h
AUDIO_OUTPUT_SYNCHRONOUS = 2
RATE, PITCH = 1, 3
POSITION_CHARACTER = 1
CHARACTERS_UTF8 = 1
LAST_EVENT, WORD_EVENT, END_EVENT = 0, 1, 5


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("message", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # in characters, from 1
        ("length", ctypes.c_int),  # in characters
        ("time_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


def _each(events):
    return (events[index] for index in itertools.count())


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
        # of what was spoken last: character of the text and sample where each word begins (words
        # that are run together begin once), and the sample where speech ends
        self.word_starts: list[tuple[int, int]] = []
        self.end = 0
        self._callback = _Callback(self._receive)  # kept: espeak-ng holds no reference
        self.library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, num_samples, events) -> int:
        for event in itertools.takewhile(lambda each: each.type != LAST_EVENT, _each(events)):
            if event.type == WORD_EVENT:
                self.word_starts.append((event.text_position - 1, event.sample))
            elif event.type == END_EVENT:
                self.end = event.sample
        if samples and num_samples > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0

    def speak(self, text: str, voice: str, words_per_minute: int, pitch: int, seed: int):
        """
        Args:
            voice: language and variant, such as ``en-us+f3``
            pitch: 0 to 99
            seed: of the noise in breathy and voiced sounds. espeak-ng also carries a state from one
                utterance to the next: the same utterances, in the same order from the start of a
                process, give the same samples.
        Returns:
            waveform (S,), float32 in [-1, 1], at ``sample_rate`` Hz
        """
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self.library.espeak_SetParameter(RATE, words_per_minute, 0)
        self.library.espeak_SetParameter(PITCH, pitch, 0)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._pieces.clear()
        self.word_starts.clear()
        encoded = text.encode()
        self.library.espeak_Synth(
            encoded, len(encoded) + 1, 0, POSITION_CHARACTER, 0, CHARACTERS_UTF8, None, None
        )
        return np.concatenate(self._pieces).astype(np.float32) / 32768
