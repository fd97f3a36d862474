"""Python arguments to an EditPromptRequest, and its events to the two images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sfumato_protos.v1 import decoder_pb2, gateway_pb2

from sfumato_client.fields import check_names, enum_value, naming, set_field
from sfumato_client.guidance import ImageFile
from sfumato_client.requests import IMAGE_FORMATS, ON_DISCONNECT, HandlingOptions, family_name
from sfumato_client.results import Result

KINDS: tuple[str, ...] = ("replace", "refine")


class EditPromptOptions(HandlingOptions, total=False):
    """What an edit takes beside the prompts. None is as good as left out."""

    family: str  # as GenerateOptions.family
    kind: str | None  # "replace" or "refine". Default: by the number of words
    weights: Mapping[str, float] | None  # words of the target: attention times -2 to 2. At most 64
    cross_replace: float | None  # share of the steps with the source's cross-attention, 0 to 1. Default 0.8
    self_replace: float | None  # and self-attention. Default 0.4
    blend_words: Sequence[str] | None  # outside of what attends to them the source is kept. At most 64
    image: ImageFile | None  # to edit: PNG, JPEG or WebP, bytes or a path. Default: made of prompt and seed
    negative_prompt: str  # up to 1,000 characters; not with image
    seed: int | None  # of the source, 0 to 2**63 - 2; not with image. Default: random
    num_inference_steps: int  # 1 to 1,000. Default 50
    guidance_scale: float | None  # 0 to 100; 1 or less: unguided. Default 5
    width: int | None  # pixels, a multiple of the family's size_multiple. Default: the family's
    height: int | None  # as width
    image_format: str  # one of IMAGE_FORMATS. Default "PNG"
    allow_partial: bool  # where the deadline comes first, the images so far. Default False


@dataclass
class EditPromptResult(Result):
    """What an edit gave: the source image (of a given one its reconstruction), and the edited one."""

    parameters: gateway_pb2.EditPromptRequest = field(default_factory=gateway_pb2.EditPromptRequest)

    def add(self, event: gateway_pb2.EditPromptResponse) -> None:
        """Takes in one event of the stream."""
        self._add(event)


def build_edit_prompt(
    prompt: str, target_prompt: str, options: EditPromptOptions
) -> gateway_pb2.EditPromptRequest:
    """The message; unset and None options keep the service's defaults.

    Raises:
        TypeError, ValueError: an option, kind or format of no such name, or a value that is none.
        OSError: an image that cannot be read.
    """
    check_names(options, EditPromptOptions)
    request = gateway_pb2.EditPromptRequest()
    given = {name: value for name, value in options.items() if value not in (None, "")}
    given |= {
        "prompt": prompt,
        "target_prompt": target_prompt,
        "family": family_name(options.get("family", "")),
    }
    for word, scale in (options.get("weights") or {}).items():
        with naming("weights"):
            request.weights.add(word=word, scale=scale)
    with naming("blend_words"):
        request.blend_words.extend(options.get("blend_words") or ())
    for name, known, enum, prefix in (
        ("kind", KINDS, gateway_pb2.EditKind, "EDIT_KIND"),
        ("on_disconnect", ON_DISCONNECT, gateway_pb2.OnDisconnect, "ON_DISCONNECT"),
        ("image_format", IMAGE_FORMATS, decoder_pb2.ImageFormat, "IMAGE_FORMAT"),
    ):
        if name in given:
            given[name] = enum_value(name, given[name], known, enum, prefix)
    if "image" in given and not isinstance(given["image"], bytes):
        given["image"] = Path(str(given["image"])).read_bytes()
    for name, value in given.items():
        if name not in ("weights", "blend_words"):
            set_field(request, name, value)
    return request
