"""Python arguments to a GenerateRequest."""

from pathlib import Path
from typing import TypedDict

from sfumato_protos.v1 import decoder_pb2, gateway_pb2

SCHEDULERS: tuple[str, ...] = tuple(
    name.removeprefix("SCHEDULER_").lower() for name in gateway_pb2.Scheduler.keys()[1:]
)
IMAGE_FORMATS: tuple[str, ...] = ("PNG", "JPEG", "WEBP")


class GenerateOptions(TypedDict, total=False):
    """What a generation takes beside the prompt; GenerateRequest in gateway.proto has units and ranges."""

    family: str
    negative_prompt: str
    seed: int | None
    num_images: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    width: int | None
    height: int | None
    image: bytes | str | Path | None
    mask: bytes | str | Path | None
    strength: float | None
    preview_interval_steps: int
    image_format: str
    request_id: str


def build_request(prompt: str, options: GenerateOptions) -> gateway_pb2.GenerateRequest:
    """The message; unset and None options keep the service's defaults.

    Raises:
        ValueError: a scheduler or format of no such name.
        OSError: an image or mask that cannot be read.
    """
    request = gateway_pb2.GenerateRequest(prompt=prompt)
    for name, value in options.items():
        if value is None:
            continue
        if name == "scheduler":
            value = scheduler_value(str(value))
        elif name == "image_format":
            if value not in IMAGE_FORMATS:
                raise ValueError(f"image_format must be one of {', '.join(IMAGE_FORMATS)}, but is {value}")
            value = decoder_pb2.ImageFormat.Value(f"IMAGE_FORMAT_{value}")
        elif name in ("image", "mask") and not isinstance(value, bytes):
            value = Path(str(value)).read_bytes()
        setattr(request, name, value)
    return request


def scheduler_value(name: str) -> gateway_pb2.Scheduler.ValueType:
    """The wire value of a sampler's name, such as "dpmpp_2m"."""
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler must be one of {', '.join(SCHEDULERS)}, but is {name}")
    return gateway_pb2.Scheduler.Value(f"SCHEDULER_{name.upper()}")
