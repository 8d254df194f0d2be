"""Slurm: options of a job, its script, and the cluster's own words about it. Nothing here imports torch."""
