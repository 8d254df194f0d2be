"""`python -m flash_launch`: the command, where the console script is not on the path."""

import sys

from flash_launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
