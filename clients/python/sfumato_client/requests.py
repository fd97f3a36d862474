"""Python arguments to a GenerateRequest."""

from pathlib import Path
from typing import Any, TypedDict

from google.protobuf.message import Message
from sfumato_protos.v1 import decoder_pb2, gateway_pb2

from sfumato_client.guidance import OPTIONS, GuidanceOptions, build_guidance

SCHEDULERS: tuple[str, ...] = tuple(
    name.removeprefix("SCHEDULER_").lower() for name in gateway_pb2.Scheduler.keys()[1:]
)
AGGREGATIONS: tuple[str, ...] = ("largest", "all")
PREVIEW_KINDS: tuple[str, ...] = ("projected", "decoded")
ON_DISCONNECT: tuple[str, ...] = ("cancel", "continue")
IMAGE_FORMATS: tuple[str, ...] = ("PNG", "JPEG", "WEBP")


class AttentionMapOptions(TypedDict, total=False):
    """Asks for each word's attention map; AttentionMapOptions in gateway.proto."""

    interval_steps: int
    aggregation: str


class GenerateOptions(GuidanceOptions, total=False):
    """What a generation takes beside the prompt; GenerateRequest in gateway.proto has units and ranges."""

    family: str
    negative_prompt: str
    seed: int | None
    num_images: int
    num_inference_steps: int
    guidance_scale: float | None
    scheduler: str
    adapter: str
    width: int | None
    height: int | None
    image: bytes | str | Path | None
    mask: bytes | str | Path | None
    strength: float | None
    preview_interval_steps: int
    preview_kind: str
    progress_interval_steps: int
    image_format: str
    request_id: str
    priority: int
    allow_partial: bool
    on_disconnect: str
    keep_seconds: float | None
    attention_maps: AttentionMapOptions | None


def build_request(prompt: str, options: GenerateOptions) -> gateway_pb2.GenerateRequest:
    """The message; unset and None options keep the service's defaults.

    Raises:
        ValueError: a scheduler, format or kind of guidance of no such name.
        OSError: an image, mask or image prompt that cannot be read.
    """
    request = gateway_pb2.GenerateRequest(prompt=prompt, guidance=build_guidance(options))
    for name, value in options.items():
        if value is None or name in OPTIONS:
            continue
        if name == "family":
            value = family_name(str(value))
        if name == "scheduler":
            value = scheduler_value(str(value))
        elif name == "image_format":
            if value not in IMAGE_FORMATS:
                raise ValueError(f"image_format must be one of {', '.join(IMAGE_FORMATS)}, but is {value}")
            value = decoder_pb2.ImageFormat.Value(f"IMAGE_FORMAT_{value}")
        elif name == "preview_kind":
            if value not in PREVIEW_KINDS:
                raise ValueError(f"preview_kind must be one of {', '.join(PREVIEW_KINDS)}, but is {value}")
            value = gateway_pb2.PreviewKind.Value(f"PREVIEW_KIND_{str(value).upper()}")
        elif name == "on_disconnect":
            if not value:
                continue
            if value not in ON_DISCONNECT:
                raise ValueError(f"on_disconnect must be one of {', '.join(ON_DISCONNECT)}, but is {value}")
            value = gateway_pb2.OnDisconnect.Value(f"ON_DISCONNECT_{str(value).upper()}")
        elif name in ("image", "mask") and not isinstance(value, bytes):
            value = Path(str(value)).read_bytes()
        elif name == "attention_maps":
            request.attention_maps.CopyFrom(attention_map_options(options["attention_maps"] or {}))
            continue
        set_field(request, name, value)
    return request


def set_field(message: Message, name: str, value: Any) -> None:
    """protobuf's own errors do not name the field.

    Raises:
        TypeError, ValueError: of another type, or out of the type's range.
    """
    try:
        setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def family_name(name: str) -> str:
    """ "families/{id}" of that or of the id alone; "" stays."""
    return name if not name or name.startswith("families/") else f"families/{name}"


def scheduler_value(name: str) -> gateway_pb2.Scheduler.ValueType:
    """The wire value of a sampler's name, such as "dpmpp_2m"."""
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler must be one of {', '.join(SCHEDULERS)}, but is {name}")
    return gateway_pb2.Scheduler.Value(f"SCHEDULER_{name.upper()}")


def attention_map_options(options: AttentionMapOptions) -> gateway_pb2.AttentionMapOptions:
    """The message; raises ValueError where there is no such aggregation."""
    aggregation = options.get("aggregation", "largest")
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation must be one of {', '.join(AGGREGATIONS)}, but is {aggregation}")
    return gateway_pb2.AttentionMapOptions(
        interval_steps=options.get("interval_steps", 0),
        aggregation=gateway_pb2.AttentionAggregation.Value(f"ATTENTION_AGGREGATION_{aggregation.upper()}"),
    )
