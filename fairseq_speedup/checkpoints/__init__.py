"""Checkpoint files: opened safely, told by what they hold, written whole."""
