"""An invisible mark in every image that leaves, by the invisible-watermark library (its dwtDctSvd).

The text's bits lie in the singular values of blocks of a wavelet band, again and again over the image, so
that JPEG does not remove them. The library is none of our dependencies, for it asks for an OpenCV that wants
a display; it is imported only where a mark is asked for.
"""

from typing import Any

import numpy as np
from PIL import Image

from sfumato.common.errors import FailedPrecondition

METHOD = "dwtDctSvd"
MIN_PIXELS = 256 * 256  # of an image, the library's limit
PACKAGES = ("invisible-watermark==0.2.0", "PyWavelets==1.9.0", "opencv-python-headless==5.0.0.93")


class Watermark:
    """Puts one text into images; WatermarkDecoder("bytes", 8 * length).decode(bgr, METHOD) reads it."""

    def __init__(self, text: str) -> None:
        """
        Raises:
            ValueError: the library is not there; the message says how it is installed.
        """
        try:
            from imwatermark import WatermarkEncoder  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            install = f"pip install --no-deps {' '.join(PACKAGES)}"
            raise ValueError(f"SFUMATO_DECODER_WATERMARK needs a library ({error}): {install}") from error
        self._encoder: Any = WatermarkEncoder()
        self._encoder.set_watermark("bytes", text.encode())

    def check_size(self, width: int, height: int) -> None:
        """Raises FailedPrecondition where an image of this size cannot carry the mark."""
        if width * height < MIN_PIXELS:
            raise FailedPrecondition(
                "images of this service carry a watermark, which needs 256x256 pixels or as many",
                field="width x height", limit=f"at least {MIN_PIXELS} pixels", value=f"{width}x{height}",
            )  # fmt: skip

    def marked(self, image: Image.Image) -> Image.Image:
        """The RGB image of MIN_PIXELS or more, with the mark."""
        bgr = np.ascontiguousarray(np.asarray(image)[..., ::-1])
        return Image.fromarray(np.ascontiguousarray(self._encoder.encode(bgr, METHOD)[..., ::-1]))
