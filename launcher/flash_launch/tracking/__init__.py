"""Weights & Biases: what rank 0 records there, with or without a network, and how it is uploaded later."""
