"""Checks of manifests, labels and audio, before and while fairseq's datasets read them."""
