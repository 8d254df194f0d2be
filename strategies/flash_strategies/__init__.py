"""Finetuning strategies: schedules of what trains when, and the transitions that rebuild the engines across ranks."""
