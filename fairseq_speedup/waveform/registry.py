from fairseq_speedup.registry import Registry

WAVEFORM_REDUCTIONS = Registry("downsample")
