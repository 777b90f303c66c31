"""What checkpoints are, and whether they are safe to load and fit for what."""
