"""The names of the inference forms, which configs say; ``inference`` registers under them what they
are made of."""

from fairseq_speedup.registry import Registry

LINEARS = Registry("inference")
