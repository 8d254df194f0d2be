"""Reads run folders and Slurm for people: status, logs and tables of sweeps. Nothing here writes or waits for a run."""
