"""A recommendation cascade, retrieve -> prerank -> rank, from PyTorch checkpoints to Triton.

Legend, used in every docstring: B users in a batch, K candidates, N items in the catalogue,
D embedding width, F features.
"""
