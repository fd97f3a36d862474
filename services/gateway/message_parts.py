"""Parts that several of the gateway's messages share."""

import functools
import re
from importlib.metadata import version
from typing import Any

from sfumato_protos.v1 import decoder_pb2, gateway_pb2

from sfumato.common import calls
from sfumato.common.errors import InvalidArgument
from sfumato.gateway.stages import Seconds

MAX_PRIORITY = 9
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def take_request_id(request_id: str) -> None:
    """The client's own id in the place of the made-up one, if it gave any."""
    if not request_id:
        return
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidArgument("request_id", "1 to 128 of [A-Za-z0-9._-]", request_id)
    calls.request_id.set(request_id)


def given_priority(request: gateway_pb2.GenerateRequest | gateway_pb2.EditPromptRequest) -> int:
    """Among the tenant's own waiting requests; larger first."""
    if not 0 <= request.priority <= MAX_PRIORITY:
        raise InvalidArgument("priority", f"0 to {MAX_PRIORITY}", request.priority)
    return request.priority


def name_format(given: dict[str, Any]) -> None:
    """Turns the image_format that a client set into its name."""
    if "image_format" in given:
        value = decoder_pb2.ImageFormat.DESCRIPTOR.values_by_number.get(given["image_format"])
        if value is None:
            raise InvalidArgument("image_format", "one of PNG, JPEG, WEBP", given["image_format"])
        given["image_format"] = value.name.removeprefix("IMAGE_FORMAT_")


def format_value(name: str) -> decoder_pb2.ImageFormat.ValueType:
    """The wire value of PNG, JPEG or WEBP."""
    return decoder_pb2.ImageFormat.Value(f"IMAGE_FORMAT_{name}")


def manifest_message(weights: dict[str, str], engine: str) -> gateway_pb2.Manifest:
    """What made the images: the weights' digests, and the versions of what ran them."""
    return gateway_pb2.Manifest(weights=weights, versions={**_versions(), "denoiser": engine})


@functools.cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("sfumato", "torch", "diffusers")}


def timings_message(seconds: Seconds) -> gateway_pb2.Timings:
    """Where the time went."""
    return gateway_pb2.Timings(
        total_seconds=seconds.total,
        encode_text_seconds=seconds.encode_text,
        encode_image_seconds=seconds.encode_image,
        denoise_seconds=seconds.denoise,
        decode_seconds=seconds.decode,
        num_replayed_steps=seconds.num_replayed_steps,
    )
