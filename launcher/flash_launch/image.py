"""Flash's `flash.image`: ImageClassifier and ImageClassificationData."""

from flash_launch.data.image_classification import ImageClassificationData
from flash_launch.tasks.flash_image import ImageClassifier

__all__ = ["ImageClassificationData", "ImageClassifier"]
