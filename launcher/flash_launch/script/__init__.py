"""Scripts of any kind, run on every rank as torchrun does: their options, how they are checked, and how they ended."""
