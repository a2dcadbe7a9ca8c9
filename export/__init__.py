"""Checkpoints to a Triton model repository: `python -m export`."""
