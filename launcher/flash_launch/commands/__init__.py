"""The commands of `flash-launch`: a file each, with a function `main` of the arguments that returns the exit code."""
