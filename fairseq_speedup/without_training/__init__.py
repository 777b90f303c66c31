"""What makes a trained model faster without training, most of it from some minutes of audio:
another checkpoint, or a threshold for its exits."""
