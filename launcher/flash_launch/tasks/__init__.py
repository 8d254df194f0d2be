"""What is trained: the built-in image classification task and one's own."""

import flash_strategies.lightning  # noqa: F401 - before Lightning: both of its names lead to the same classes then
