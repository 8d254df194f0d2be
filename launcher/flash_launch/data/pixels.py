"""Pixels of an image file as viewers show them: upright, 8 bits by the file's depth, transparency over white."""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy
from PIL import Image, ImageOps

from flash_launch.errors import DataError

__all__ = ["ImageLook", "look_at", "notes_on", "read_image", "to_rgb"]

# What PIL raises for a file that is missing, cut short, no image, or made to exhaust the memory.
_READ_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error),
    Image.DecompressionBombError,
)

_SAVE_AGAIN = "save it with 8 or 16 bits per channel, scaled from black to white the same for all images"
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF 6.0
_WHITE_IS_ZERO, _SIGNED = 0, 2
_FAINT = 1 << 14


@dataclass(frozen=True)
class ImageLook:
    """What is to be known of an image file before it is trained on."""

    path: Path
    """The file."""

    fault: str = ""
    """Why it cannot be read; empty: it can."""

    transparent: bool = False
    """Whether some of its pixels are not opaque."""

    several: bool = False
    """Whether it has more frames or pages than the one that is read."""

    brightest: int | None = None
    """The highest value of a grey image of 16 bits; None: another kind of image."""


def read_image(path: Path) -> Image.Image:
    """Read a file as upright RGB of 8 bits per channel.

    16-bit grey is scaled by its depth, the same for each image; transparent pixels are laid over white; of several
    frames or pages the first is read.

    Raises:
        DataError: it cannot be read, or holds floating-point, signed or 32-bit numbers, of which nothing says what is
            white; names the file.
    """
    try:
        with _opened(path) as image:
            image.load()
            _turn_upright(image)
            return _rgb(image)
    except _READ_ERRORS as error:
        raise DataError(f"image {path} cannot be read: {error}") from error


def to_rgb(image: Image.Image, where: str) -> Image.Image:
    """An image in memory as RGB of 8 bits per channel, by the rules of `read_image`, but for its orientation tag.

    Raises:
        DataError: see read_image; `where` says which image it is.
    """
    try:
        return _rgb(image)
    except _READ_ERRORS as error:
        raise DataError(f"{where} cannot be read: {error}") from error


def look_at(path: Path) -> ImageLook:
    """Decode a file, to its end but no larger than is needed to find faults."""
    try:
        with _opened(path) as image:
            several = bool(getattr(image, "is_animated", False)) and image.format != "MPO"  # a photo and its previews
            image.draft("RGB", (1, 1))  # JPEG files are decoded at an eighth of their size
            image.load()
            _rgb(image)
            brightest = int(numpy.asarray(image).max()) if _grey_bits(image) == 16 else None
            transparent = image.has_transparency_data and _alpha(image).getextrema() != (255, 255)
    except _READ_ERRORS as error:
        return ImageLook(path, fault=str(error) or type(error).__name__)
    return ImageLook(path, "", transparent, several, brightest)


def notes_on(looks: Sequence[ImageLook]) -> tuple[str, ...]:
    """What was decided about images that can be read in more than one way, a sentence each."""
    notes = []
    if transparent := [look for look in looks if look.transparent]:
        notes.append(f"{_of(transparent, looks)} transparent pixels: they are laid over white")
    if several := [look for look in looks if look.several]:
        notes.append(f"{_of(several, looks)} several frames or pages: the first of each is read")
    deep = [look for look in looks if look.brightest is not None]
    brightest = max((look.brightest or 0 for look in deep), default=_FAINT)
    if brightest < _FAINT:
        notes.append(
            f"{_of(deep, looks)} 16 bits, but no value above {brightest:,} of 65,535: they are read as dark as viewers "
            f"show them; if these are {max(brightest.bit_length(), 1)}-bit values, scale all images to 65,535"
        )
    return tuple(notes)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    # by its name, PIL 13.0.0 maps an uncompressed TIFF file and mixes its rows up where it is to be turned
    with path.open("rb") as file, Image.open(file) as image:
        yield image


def _of(some: Sequence[ImageLook], looks: Sequence[ImageLook]) -> str:
    return f"{len(some):,} of {len(looks):,} images (as {some[0].path}) have"


def _turn_upright(image: Image.Image) -> None:
    """As its orientation tag says; in place, since a copy would not know its format and tags."""
    # a broken block of EXIF data fails in any way: viewers show the pixels as they are
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _rgb(image: Image.Image) -> Image.Image:
    bits = _grey_bits(image)
    if bits is not None:
        return _eight_bits(image, bits).convert("RGB")
    if image.mode == "F":
        raise ValueError(f"it holds floating-point numbers, and nothing says which are black and white: {_SAVE_AGAIN}")
    if image.mode == "I" or _tag(image, _SAMPLE_FORMAT) == _SIGNED:
        raise ValueError(
            "it holds signed or 32-bit whole numbers, and nothing says which are black and white: " + _SAVE_AGAIN
        )
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _alpha(image: Image.Image) -> Image.Image:
    return image.convert("RGBA").getchannel("A")


def _grey_bits(image: Image.Image) -> int | None:
    """Bits per pixel of a grey image of more than 8 unsigned ones; None: another kind of image."""
    if image.mode.startswith("I;16"):
        bits = _tag(image, _BITS_PER_SAMPLE)
        return 16 if bits is None else bits
    # PIL brings such files to 16 bits, in a mode of 32
    return 16 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _eight_bits(image: Image.Image, bits: int) -> Image.Image:
    white = (1 << bits) - 1
    shades = (numpy.arange(white + 1) * 255 + white // 2) // white
    if _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:  # PIL heeds it for 8 bits only
        shades = shades[::-1]
    return Image.fromarray(shades.astype(numpy.uint8)[numpy.asarray(image)])


def _tag(image: Image.Image, number: int) -> int | None:
    """The first value of a TIFF file's tag; None: not a TIFF file, or without it."""
    value = getattr(image, "tag_v2", {}).get(number)
    first = value[0] if isinstance(value, tuple) and value else value
    return first if isinstance(first, int) else None
