"""Writes digits.zip: some of scikit-learn's handwritten digits as images, a folder a class, and some without labels."""

import io
import zipfile

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two")
PER_CLASS = {"train": 24, "val": 8}


def main() -> None:
    digits = load_digits(n_class=len(NAMES))
    taken = 0
    with zipfile.ZipFile("digits.zip", "w") as archive:
        for folder, count in PER_CLASS.items():
            for label, name in enumerate(NAMES):
                of_class = digits.images[digits.target == label][taken : taken + count]
                for number, pixels in enumerate(of_class):
                    archive.writestr(f"digits/{folder}/{name}/{number:02}.png", png(pixels))
            taken += count
        for number, pixels in enumerate(digits.images[-6:]):
            archive.writestr(f"digits/new/{number}.png", png(pixels))


def png(pixels: np.ndarray) -> bytes:
    """An image of 8 x 8 pixels from values of 0 to 16."""
    file = io.BytesIO()
    Image.fromarray((pixels * 15.9).astype("uint8")).convert("RGB").save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
