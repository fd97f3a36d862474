"""A finished generation, and how its events add up to it."""

from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import Message
from sfumato_protos.v1 import gateway_pb2

from sfumato_client.attention_maps import WordMaps, word_maps
from sfumato_client.files import write_file


@dataclass(frozen=True)
class GeneratedImage:
    """One image, encoded."""

    index: int
    seed: int  # makes this image alone, with num_images 1
    data: bytes
    width: int  # pixels
    height: int  # pixels
    partial: bool = False  # the deadline came first: predicted by step `step` of `num_steps`
    step: int = 0
    num_steps: int = 0
    latents_digests: tuple[bytes, ...] = ()  # after each step

    def save(self, path: str | Path) -> Path:
        """Writes the file; it appears whole or not at all. Makes the folder if there is none."""
        return write_file(Path(path), self.data)


def reached(image: GeneratedImage) -> str:
    """How far a partial image came, for people; nothing of a whole one."""
    return f", partial: step {image.step} of {image.num_steps}" if image.partial else ""


@dataclass
class Result:
    """What generations and prompt edits give alike."""

    request_id: str = ""
    parameters: Message = field(kw_only=True)  # as they were run, every default resolved
    num_steps: int = 0
    warnings: list[str] = field(default_factory=list)
    images: list[GeneratedImage] = field(default_factory=list)  # by index
    timings: gateway_pb2.Timings = field(default_factory=gateway_pb2.Timings)

    def _add(self, event: gateway_pb2.GenerateResponse | gateway_pb2.EditPromptResponse) -> None:
        match event.WhichOneof("event"):
            case "accepted":
                self.request_id = event.accepted.request_id
                self.parameters = event.accepted.parameters
                self.num_steps = event.accepted.num_steps
                self.warnings = list(event.accepted.warnings)
            case "image":
                # A request that began anew sends its images again.
                others = [image for image in self.images if image.index != event.image.index]
                self.images = sorted([*others, generated(event.image)], key=lambda image: image.index)
            case "done":
                self.timings = event.done.timings


@dataclass
class GenerateResult(Result):
    """What a generation gave."""

    parameters: gateway_pb2.GenerateRequest = field(default_factory=gateway_pb2.GenerateRequest)
    attention: dict[int, WordMaps] = field(default_factory=dict)  # by the image's index, when asked for
    weights: dict[str, str] = field(default_factory=dict)  # SHA-256 by service
    versions: dict[str, str] = field(default_factory=dict)

    def add(self, event: gateway_pb2.GenerateResponse) -> None:
        """Takes in one event of the stream."""
        self._add(event)
        if event.HasField("attention_maps"):
            self.attention[event.attention_maps.image_index] = word_maps(event.attention_maps)
        elif event.HasField("done"):
            self.weights = dict(event.done.manifest.weights)
            self.versions = dict(event.done.manifest.versions)


def generated(image: gateway_pb2.Image) -> GeneratedImage:
    """From the wire."""
    return GeneratedImage(
        image.index, image.seed, image.data, image.width, image.height,
        image.partial, image.step, image.num_steps, tuple(image.latents_digests),
    )  # fmt: skip
