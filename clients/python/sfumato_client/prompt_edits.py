"""Python arguments to an EditPromptRequest, and its events to the two images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from sfumato_protos.v1 import decoder_pb2, gateway_pb2

from sfumato_client.requests import ON_DISCONNECT, family_name, set_field
from sfumato_client.results import GeneratedImage

KINDS: tuple[str, ...] = ("replace", "refine")


class EditPromptOptions(TypedDict, total=False):
    """What an edit takes beside the prompts; EditPromptRequest in gateway.proto has units and ranges."""

    family: str
    kind: str | None
    weights: Mapping[str, float]
    cross_replace: float | None
    self_replace: float | None
    blend_words: Sequence[str]
    image: bytes | str | Path | None
    negative_prompt: str
    seed: int | None
    num_inference_steps: int
    guidance_scale: float
    width: int | None
    height: int | None
    image_format: str
    request_id: str
    priority: int
    allow_partial: bool
    on_disconnect: str
    keep_seconds: float | None
    progress_interval_steps: int


@dataclass
class EditPromptResult:
    """What an edit gave: the source image (of a given one its reconstruction), and the edited one."""

    request_id: str = ""
    parameters: gateway_pb2.EditPromptRequest = field(default_factory=gateway_pb2.EditPromptRequest)
    num_steps: int = 0
    warnings: list[str] = field(default_factory=list)
    images: list[GeneratedImage] = field(default_factory=list)  # source, target
    timings: gateway_pb2.Timings = field(default_factory=gateway_pb2.Timings)

    def add(self, event: gateway_pb2.EditPromptResponse) -> None:
        """Takes in one event of the stream."""
        match event.WhichOneof("event"):
            case "accepted":
                self.request_id = event.accepted.request_id
                self.parameters = event.accepted.parameters
                self.num_steps = event.accepted.num_steps
                self.warnings = list(event.accepted.warnings)
            case "image":
                i = event.image
                # A request that began anew sends its images again.
                self.images = [image for image in self.images if image.index != i.index]
                self.images.append(
                    GeneratedImage(i.index, i.seed, i.data, i.width, i.height, i.partial, i.step, i.num_steps)
                )
                self.images.sort(key=lambda image: image.index)
            case "done":
                self.timings = event.done.timings


def build_edit_prompt(
    prompt: str, target_prompt: str, options: EditPromptOptions
) -> gateway_pb2.EditPromptRequest:
    """The message; unset and None options keep the service's defaults.

    Raises:
        ValueError: a kind or format of no such name.
        OSError: an image that cannot be read.
    """
    request = gateway_pb2.EditPromptRequest(prompt=prompt, target_prompt=target_prompt)
    given = {name: value for name, value in options.items() if value not in (None, "")}
    given["family"] = family_name(options.get("family", ""))
    for word, scale in options.get("weights", {}).items():
        request.weights.add(word=word, scale=scale)
    request.blend_words.extend(options.get("blend_words", ()))
    for name, known, enum, prefix in (
        ("kind", KINDS, gateway_pb2.EditKind, "EDIT_KIND"),
        ("on_disconnect", ON_DISCONNECT, gateway_pb2.OnDisconnect, "ON_DISCONNECT"),
        ("image_format", ("PNG", "JPEG", "WEBP"), decoder_pb2.ImageFormat, "IMAGE_FORMAT"),
    ):
        if name in given:
            if given[name] not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, but is {given[name]}")
            given[name] = enum.Value(f"{prefix}_{str(given[name]).upper()}")
    if "image" in given and not isinstance(given["image"], bytes):
        given["image"] = Path(str(given["image"])).read_bytes()
    for name, value in given.items():
        if name not in ("weights", "blend_words"):
            set_field(request, name, value)
    return request
