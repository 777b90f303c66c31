"""What a model can do without, measured on some audio: no training, no labels."""
