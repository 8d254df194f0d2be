"""Pixels as viewers show them: depth, orientation, transparency, inverted greys; what cannot be known is refused."""

import io
import struct
from pathlib import Path

import numpy
import pytest
from PIL import Image

from flash_launch.data.images import check_files, read_image
from flash_launch.errors import DataError

GREYS = numpy.array([[0, 4096, 32768], [45000, 60000, 65535]], dtype=numpy.uint16)
EIGHT_BITS = [[0, 16, 128], [175, 233, 255]]  # divided by 257


def red_channel(path: Path) -> list[list[int]]:
    image = read_image(path)
    assert image.mode == "RGB"
    pixels: list[list[int]] = numpy.asarray(image)[:, :, 0].tolist()
    return pixels


def tiff(bits: int, data: bytes, size: tuple[int, int], photometric: int = 1, sample_format: int = 1) -> bytes:
    """A little-endian grey TIFF file of one strip."""
    entries = [
        *[(256, 4, size[0]), (257, 4, size[1]), (258, 3, bits), (259, 3, 1), (262, 3, photometric)],
        *[(273, 4, 8), (277, 3, 1), (278, 4, size[1]), (279, 4, len(data)), (339, 3, sample_format)],
    ]
    packed = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + packed + b"\0" * 4


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_by_its_depth(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"deep.{ending}"
    Image.fromarray(GREYS).save(path)
    assert red_channel(path) == EIGHT_BITS
    assert check_files([path]) == ()


def test_tiff_of_12_bits_and_with_white_as_zero(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(12, bytes([0x00, 0x0F, 0xFF]), (2, 1)))
    assert red_channel(path) == [[0, 255]]
    path.write_bytes(tiff(16, GREYS.tobytes(), (3, 2), photometric=0))
    assert red_channel(path) == [[255 - grey for grey in row] for row in EIGHT_BITS]


def test_12_bit_values_in_16_bits_are_dark_and_reported(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        Image.fromarray(GREYS // 16).save(path)
    (note,) = check_files(paths)
    assert "2 of 2 images (as" in note
    assert "have 16 bits, but no value above 4,095 of 65,535" in note
    assert "12-bit values" in note


@pytest.mark.parametrize(
    ("values", "ending", "told"),
    [
        (GREYS / 65535, "tif", "floating-point numbers, .* save it with 8 or 16 bits"),
        (GREYS.astype(numpy.float64), "tif", "floating-point numbers"),
        (GREYS.astype(numpy.int32) * 1000, "tif", "signed or 32-bit whole numbers"),
    ],
)
def test_numbers_whose_white_is_unknown_are_refused_by_name(
    tmp_path: Path, values: numpy.ndarray, ending: str, told: str
) -> None:
    path = tmp_path / f"numbers.{ending}"
    Image.fromarray(values.astype(numpy.float32) if values.dtype == numpy.float64 else values).save(path)
    with pytest.raises(DataError, match=rf"numbers.{ending} cannot be read: it holds {told}"):
        read_image(path)
    with pytest.raises(DataError, match=rf"1 of 1 images cannot be read, the first is .*numbers.{ending}.*{told}"):
        check_files([path])


@pytest.mark.parametrize(("bits", "data"), [(8, b"\x80\x7f"), (16, b"\0\x80\xff\x7f")])
def test_signed_tiff_is_refused(tmp_path: Path, bits: int, data: bytes) -> None:
    path = tmp_path / "signed.tif"
    path.write_bytes(tiff(bits, data, (2, 1), sample_format=2))
    with pytest.raises(DataError, match=r"signed.tif.*signed"):
        check_files([path])


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp", "16-bit png"])
@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (1, 1)), (6, (0, 1)), (8, (1, 0))])
def test_images_are_turned_as_their_orientation_says(
    tmp_path: Path, kind: str, orientation: int, corner: tuple[int, int]
) -> None:
    # white in the stored upper left, of 40 x 20 stored pixels
    stored = Image.new("L", (40, 20))
    stored.paste(255, (0, 0, 20, 10))
    if kind == "16-bit png":
        stored = Image.fromarray(numpy.asarray(stored).astype(numpy.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{kind.split()[-1]}"
    stored.save(path, exif=exif)
    image = read_image(path)
    width, height = image.size
    assert (width, height) == ((40, 20) if orientation in (1, 3) else (20, 40))
    corners = {(row, column): (column * (width - 1), row * (height - 1)) for row in (0, 1) for column in (0, 1)}
    bright = [place for place, pixel in corners.items() if sum(image.getpixel(pixel)) > 600]  # type: ignore[arg-type]
    assert bright == [corner]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_orientation_tag_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    Image.new("RGB", (4, 2), "white").save(path, exif=b"Exif\0\0" + b"MM\0*" + b"\xff" * 8)
    assert read_image(path).size == (4, 2)


def test_transparent_pixels_are_laid_over_white_and_frames_are_reported(tmp_path: Path) -> None:
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    half.putpixel((1, 0), (200, 0, 0, 255))
    half.save(tmp_path / "half.png")
    half.quantize().save(tmp_path / "palette.png")
    Image.new("LA", (2, 1), (10, 0)).save(tmp_path / "grey.png")
    Image.new("RGBA", (2, 1), (9, 9, 9, 255)).save(tmp_path / "opaque.png")
    for name in ("half", "palette"):
        assert red_channel(tmp_path / f"{name}.png") == [[255, 200]]
    assert red_channel(tmp_path / "grey.png") == [[255, 255]]
    assert red_channel(tmp_path / "opaque.png") == [[9, 9]]
    frames = [Image.new("L", (2, 1), shade) for shade in (50, 90)]
    for ending in ("gif", "tif"):
        frames[0].save(tmp_path / f"frames.{ending}", save_all=True, append_images=frames[1:])
        assert red_channel(tmp_path / f"frames.{ending}") == [[50, 50]]
    transparent, several = check_files(sorted(tmp_path.iterdir()))
    assert transparent.startswith("3 of 6 images")
    assert "laid over white" in transparent
    assert several.startswith("2 of 6 images")
    assert "the first of each is read" in several


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_white_is_white_in_every_mode(tmp_path: Path, mode: str) -> None:
    white = Image.new("RGB", (16, 16), "white").convert(mode)
    content = io.BytesIO()
    white.save(content, "TIFF" if mode == "1" else "JPEG")
    (tmp_path / "white").write_bytes(content.getvalue())
    assert min(map(min, red_channel(tmp_path / "white"))) >= 254
