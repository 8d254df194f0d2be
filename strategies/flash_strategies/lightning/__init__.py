"""The Lightning front door: a callback and two strategies."""
