"""Whether the services' image is the pipeline's, to the precision that the UNet has."""

import gc
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sfumato_client import Client
from tests.bench.mixed import InProcess, Request

# A half-precision pipeline rounds its latents and decodes in halves, too; the services do neither.
OF_PIPELINES = 1.5
# Of the distance to another seed's image: rounding to 8 bits, and torch's TF32 convolutions on a GPU.
ROUNDING = 0.05


class Check:
    """One request by the float32 pipeline, by one in the precision asked for, and by the services."""

    def __init__(self, family: Path, device: torch.device, dtype: torch.dtype, request: Request) -> None:
        self._family, self._device, self._dtype, self._request = family, device, dtype, request
        self._images: dict[str, np.ndarray] = {}

    def make_references(self) -> None:
        """The pipelines' images."""
        request, other = self._request, Request(self._request.settings, self._request.prompt, 10_000)
        pipeline = InProcess(self._family, self._device)
        for name, one in (("reference", request), ("other_seed", other)):
            self._images[name] = _array(pipeline.images([one])[0])
        del pipeline
        gc.collect()
        half = InProcess(self._family, self._device, self._dtype)
        self._images["pipeline"] = _array(half.images([request])[0])

    def ask(self, target: str) -> None:
        """The services' image; their first, so that it warms them."""
        with Client(target, timeout=600) as client:
            result = client.generate(self._request.prompt, **self._request.options)
        self._images["services"] = _array(Image.open(io.BytesIO(result.images[0].data)))

    def figures(self) -> dict[str, Any]:
        """Distances to the float32 pipeline's image, of the distance of another seed's image to it.

        same: the services are at most as far as OF_PIPELINES times the pipeline in their precision, and
        rounding.
        """
        reference = self._images["reference"]
        scale = _distance(self._images["other_seed"], reference)
        shares = {name: _distance(self._images[name], reference) / scale for name in ("pipeline", "services")}
        allowed = OF_PIPELINES * shares["pipeline"] + ROUNDING
        return {
            "same": shares["services"] <= allowed,
            "services_off": round(shares["services"], 4), "allowed": round(allowed, 4),
            "pipeline_off": round(shares["pipeline"], 4),
            "of_another_seeds_distance": round(scale, 2),
            "services_largest_difference": int(np.abs(self._images["services"] - reference).max()),
        }  # fmt: skip


def _array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float32)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root of the mean square, in 255ths."""
    return float(np.sqrt(np.square(a - b).mean()))
