"""What trains: Flash's Trainer over Lightning's."""

import flash_strategies.lightning  # noqa: F401 - before Lightning: both of its names lead to the same classes then
