"""A finished generation, and how its events add up to it."""

from dataclasses import dataclass, field
from pathlib import Path

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
class GenerateResult:
    """What a generation gave."""

    request_id: str = ""
    parameters: gateway_pb2.GenerateRequest = field(default_factory=gateway_pb2.GenerateRequest)
    num_steps: int = 0
    warnings: list[str] = field(default_factory=list)
    images: list[GeneratedImage] = field(default_factory=list)
    attention: dict[int, WordMaps] = field(default_factory=dict)  # by the image's index, when asked for
    timings: gateway_pb2.Timings = field(default_factory=gateway_pb2.Timings)
    weights: dict[str, str] = field(default_factory=dict)  # SHA-256 by service
    versions: dict[str, str] = field(default_factory=dict)

    def add(self, event: gateway_pb2.GenerateResponse) -> None:
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
                    GeneratedImage(
                        i.index,
                        i.seed,
                        i.data,
                        i.width,
                        i.height,
                        i.partial,
                        i.step,
                        i.num_steps,
                        tuple(i.latents_digests),
                    )
                )
                self.images.sort(key=lambda image: image.index)
            case "attention_maps":
                self.attention[event.attention_maps.image_index] = word_maps(event.attention_maps)
            case "done":
                self.timings = event.done.timings
                self.weights = dict(event.done.manifest.weights)
                self.versions = dict(event.done.manifest.versions)
