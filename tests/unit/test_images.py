"""Image files: read whole or refused by name."""

import io
import struct
import zlib

import pytest
from PIL import Image

from sfumato.common.errors import InvalidArgument, ResourceExhausted
from sfumato.common.images import encode_image, open_image


def png(
    width: int = 16, height: int = 16, colour: tuple[int, ...] = (200, 30, 60), mode: str = "RGB"
) -> bytes:
    """A one-colour PNG."""
    buffer = io.BytesIO()
    Image.new(mode, (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_lossless_formats_keep_every_pixel(image_format: str) -> None:
    image = Image.effect_noise((32, 24), 90).convert("RGB")
    assert open_image(encode_image(image, image_format), "image", 10_000).tobytes() == image.tobytes()


def test_a_truncated_png_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="image must be a complete image file"):
        open_image(png(64, 64)[:-30], "image", 10_000)


def test_an_image_bomb_is_refused_by_its_header() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises((ResourceExhausted, InvalidArgument)):
        open_image(b"\x89PNG\r\n\x1a\n" + chunk + png()[33:], "image", 2**24)


def test_a_jpeg_of_thousands_of_scans_is_refused_before_they_are_read() -> None:
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    assert open_image(data, "image", 10_000).size == (64, 64)
    scan = data[data.rfind(b"\xff\xc4") : -2]
    with pytest.raises(ResourceExhausted, match="at most 500 scans"):
        open_image(data[:-2] + scan * 1000 + data[-2:], "image", 10_000)


def test_transparency_lies_over_white() -> None:
    clear = png(4, 4, (10, 20, 30, 0), "RGBA")
    assert open_image(clear, "image", 100).getpixel((1, 1)) == (255, 255, 255)


def test_other_formats_are_refused() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "BMP")
    with pytest.raises(InvalidArgument, match=r"but is 102 bytes of something else$"):
        open_image(buffer.getvalue(), "mask", 100)
