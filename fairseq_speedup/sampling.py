"""The rate of audio."""

SAMPLE_RATE_HZ = 16000  # of every public model
