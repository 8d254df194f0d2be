"""Templates of Slurm scripts; a package only so that importlib.resources finds them."""
