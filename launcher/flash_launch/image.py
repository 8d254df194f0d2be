"""Flash's `flash.image`: ImageClassifier and ImageClassificationData."""

import flash_strategies.lightning  # noqa: F401 - before all that imports Lightning, of whose names the user has one

# isort: split
from flash_launch.data.image_classification import ImageClassificationData
from flash_launch.tasks.flash_image import ImageClassifier

__all__ = ["ImageClassificationData", "ImageClassifier"]
