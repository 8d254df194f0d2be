"""Checkpoints of a run: what they hold, when they are saved, which one a run goes on from."""
