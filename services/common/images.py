"""Image files to pixels and back; sizes are read from the header before pixels are made."""

import io
from typing import Any

from PIL import Image, UnidentifiedImageError

from sfumato.common.errors import InvalidArgument, ResourceExhausted

FORMATS = ("PNG", "JPEG", "WEBP")
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 3},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}
MAX_SCANS = 500  # of a JPEG: each costs a pass over the image, and may be of a few bytes


def open_image(data: bytes, field: str, max_pixels: int) -> Image.Image:
    """An RGB image from an encoded file, transparency laid over white.

    Raises:
        InvalidArgument: not a complete PNG, JPEG or WebP.
        ResourceExhausted: more than max_pixels, or than MAX_SCANS of a JPEG.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise InvalidArgument(
            field, "a PNG, JPEG or WebP file", f"{len(data)} bytes of something else"
        ) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidArgument(field, "a PNG, JPEG or WebP file", f"{len(data)} bytes: {error}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ResourceExhausted(field, f"at most {max_pixels} pixels", f"{width}x{height}")
    if image.format == "JPEG" and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ResourceExhausted(field, f"at most {MAX_SCANS} scans", scans, "Save it as a baseline JPEG.")
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InvalidArgument(field, "a complete image file", f"{len(data)} bytes: {error}") from error
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def encode_image(image: Image.Image, image_format: str) -> bytes:
    """The image as a file; image_format is PNG, JPEG or WEBP."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **SAVE_OPTIONS[image_format])
    return buffer.getvalue()
