"""Python arguments to a GenerateRequest."""

from pathlib import Path
from typing import TypedDict, TypeVar

from sfumato_protos.v1 import decoder_pb2, gateway_pb2

from sfumato_client.fields import check_names, enum_value, set_field
from sfumato_client.guidance import OPTIONS, GuidanceOptions, ImageFile, build_guidance

SCHEDULERS: tuple[str, ...] = tuple(
    name.removeprefix("SCHEDULER_").lower() for name in gateway_pb2.Scheduler.keys()[1:]
)
AGGREGATIONS: tuple[str, ...] = ("largest", "all")
PREVIEW_KINDS: tuple[str, ...] = ("projected", "decoded")
ON_DISCONNECT: tuple[str, ...] = ("cancel", "continue")
IMAGE_FORMATS: tuple[str, ...] = ("PNG", "JPEG", "WEBP")


class AttentionMapOptions(TypedDict, total=False):
    """Asks for each word's attention map."""

    interval_steps: int  # the average so far, every so many steps, 0 to 1,000. Default 0: the final maps only
    aggregation: str  # the layers that are averaged, "largest" or "all". Default "largest"


class HandlingOptions(TypedDict, total=False):
    """How a request is handled; what it makes is the same."""

    request_id: str  # up to 128 of A-Z a-z 0-9 . _ -: the same again is joined. Default: made up
    priority: int  # among your waiting requests, 0 to 9; larger first. Default 0
    on_disconnect: str  # what nobody reads: "cancel", or with a request_id "continue". Default "cancel"
    keep_seconds: float | None  # with a request_id: goes on unread, and is kept; up to 3,600. Default 300
    progress_interval_steps: int  # an event every so many steps, 0 to 1,000; 0: none. Default 1


class GenerateOptions(GuidanceOptions, HandlingOptions, total=False):
    """What a generation takes beside the prompt. None is as good as left out."""

    family: str  # one of list_families(). Default: the one that is_default there
    negative_prompt: str  # what the image must not show, up to 1,000 characters
    seed: int | None  # of the first image; image i has seed + i. 0 to 2**63 - 1 - num_images. Default: random
    num_images: int  # 1 to 8. Default 1
    num_inference_steps: int  # 1 to 1,000. Default 30
    guidance_scale: float | None  # with cfg, 0 to 100; 1 or less: unguided. Default 5
    scheduler: str  # one of SCHEDULERS. Default "dpmpp_2m"
    adapter: str  # a LoRA, one of the family's. Default: none
    width: int | None  # pixels, a multiple of the family's size_multiple. Default: the family's
    height: int | None  # as width
    image: ImageFile | None  # to start from: PNG, JPEG or WebP, as bytes or a path. Default: none
    mask: ImageFile | None  # of image: white is repainted, black kept. Default: none
    strength: float | None  # how far to depart from image, above 0, up to 1. Default 0.8; 1 with a mask
    preview_interval_steps: int  # a preview every so many steps, 0 to 1,000. Default 0: none
    preview_kind: str  # "projected", quick, or "decoded". Default "projected"
    image_format: str  # of images and previews, one of IMAGE_FORMATS. Default "PNG"
    allow_partial: bool  # where the deadline comes first, the image so far. Default False
    attention_maps: AttentionMapOptions | None  # Default: none, at no cost


Options = TypeVar("Options", bound=HandlingOptions)


def without_steps(options: Options) -> Options:
    """The options, with no events of steps unless they are asked for: only the result is looked at."""
    if "progress_interval_steps" not in options:
        options["progress_interval_steps"] = 0
    return options


def build_request(prompt: str, options: GenerateOptions) -> gateway_pb2.GenerateRequest:
    """The message; unset and None options keep the service's defaults.

    Raises:
        TypeError, ValueError: an option, scheduler, format or kind of guidance of no such name, or a value
            that is none.
        OSError: an image, mask or image prompt that cannot be read.
    """
    check_names(options, GenerateOptions)
    request = gateway_pb2.GenerateRequest(guidance=build_guidance(options))
    set_field(request, "prompt", prompt)
    for name, value in options.items():
        if value is None or name in OPTIONS:
            continue
        if name == "family":
            value = family_name(str(value))
        if name == "scheduler":
            value = scheduler_value(str(value))
        elif name == "image_format":
            value = enum_value(name, value, IMAGE_FORMATS, decoder_pb2.ImageFormat, "IMAGE_FORMAT")
        elif name == "preview_kind":
            value = enum_value(name, value, PREVIEW_KINDS, gateway_pb2.PreviewKind, "PREVIEW_KIND")
        elif name == "on_disconnect":
            if not value:
                continue
            value = enum_value(name, value, ON_DISCONNECT, gateway_pb2.OnDisconnect, "ON_DISCONNECT")
        elif name in ("image", "mask") and not isinstance(value, bytes):
            value = Path(str(value)).read_bytes()
        elif name == "attention_maps":
            request.attention_maps.CopyFrom(attention_map_options(options["attention_maps"] or {}))
            continue
        set_field(request, name, value)
    return request


def family_name(name: str) -> str:
    """ "families/{id}" of that or of the id alone; "" stays."""
    return name if not name or name.startswith("families/") else f"families/{name}"


def scheduler_value(name: str) -> gateway_pb2.Scheduler.ValueType:
    """The wire value of a sampler's name, such as "dpmpp_2m"."""
    value: gateway_pb2.Scheduler.ValueType = enum_value(
        "scheduler", name, SCHEDULERS, gateway_pb2.Scheduler, "SCHEDULER"
    )
    return value


def attention_map_options(options: AttentionMapOptions) -> gateway_pb2.AttentionMapOptions:
    """The message; raises ValueError where there is no such aggregation."""
    aggregation = options.get("aggregation", "largest")
    enum = gateway_pb2.AttentionAggregation
    return gateway_pb2.AttentionMapOptions(
        interval_steps=options.get("interval_steps", 0),
        aggregation=enum_value("aggregation", aggregation, AGGREGATIONS, enum, "ATTENTION_AGGREGATION"),
    )
