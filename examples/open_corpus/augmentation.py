"""Rooms and noise. Waveforms are (S,), float32, at 16 kHz."""

import numpy as np
from scipy.signal import fftconvolve

SAMPLE_RATE = 16000
ROOM_METRES = ([3.0, 3.0, 2.4], [8.0, 7.0, 3.2])  # smallest and largest
REVERBERATION_SECONDS = (0.2, 0.5)  # RT60
# power falls with frequency to the power of this
NOISE_SLOPES = {"white": 0.0, "pink": 1.0, "brown": 2.0}
BABBLING_VOICES = (3, 7)


def room_responses(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Impulse responses of shoebox rooms by the image source method (Allen and Berkley 1979), from
    the direct sound on, with a largest amplitude of 1."""
    import pyroomacoustics

    # the order of a sum over threads would change the last bits
    pyroomacoustics.constants.set("num_threads", 1)
    responses = []
    for _ in range(count):
        size = rng.uniform(*ROOM_METRES)
        absorption, order = pyroomacoustics.inverse_sabine(
            rng.uniform(*REVERBERATION_SECONDS), size
        )
        room = pyroomacoustics.ShoeBox(
            size,
            fs=SAMPLE_RATE,
            materials=pyroomacoustics.Material(absorption),
            max_order=order,
        )
        source, microphone = rng.uniform(0.5, size - 0.5, (2, 3))
        room.add_source(source)
        room.add_microphone(microphone)
        room.compute_rir()
        responses.append(_from_direct_sound(room.rir[0][0], np.linalg.norm(source - microphone)))
    return responses


def _from_direct_sound(response: np.ndarray, metres: float) -> np.ndarray:
    import pyroomacoustics

    start = int(metres / pyroomacoustics.constants.get("c") * SAMPLE_RATE)
    return (response[start:] / np.abs(response).max()).astype(np.float32)


def reverberate(speech: np.ndarray, response: np.ndarray) -> np.ndarray:
    """As long as the speech was."""
    return fftconvolve(speech, response)[: len(speech)].astype(np.float32)


def coloured_noise(num_samples: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    hertz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE)
    spectrum *= np.maximum(hertz, 20) ** (-slope / 2)
    return np.fft.irfft(spectrum, num_samples).astype(np.float32)


def babble(num_samples: int, utterances: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Several utterances at once, each from a random place on and repeated as needed."""
    chosen = rng.choice(len(utterances), size=rng.integers(*BABBLING_VOICES), replace=False)
    mixed = np.zeros(num_samples, np.float32)
    for index in chosen:
        utterance = utterances[index] / np.sqrt(np.mean(utterances[index] ** 2))
        mixed += np.resize(np.roll(utterance, rng.integers(len(utterance))), num_samples)
    return mixed


def add_noise(speech: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Speech with noise, whose mean power is ``snr_db`` below the speech's."""
    ratio = np.mean(speech**2) / np.mean(noise**2)
    return speech + noise * np.sqrt(ratio * 10 ** (-snr_db / 10))


def at_level(waveform: np.ndarray, dbfs: float) -> np.ndarray:
    """At this root mean square, or as loud as it can be without clipping."""
    factor = 10 ** (dbfs / 20) / np.sqrt(np.mean(waveform**2))
    return waveform * min(factor, 0.99 / np.abs(waveform).max())
