"""What a generation was made from and by, step for step, so that it can be run again and compared.

A manifest is one JSON object: `request` (a GenerateRequest with every default filled in, images as base64),
`weights` (SHA-256 by service), `versions`, and for each of `images` its seed, the digests of its latents
after each step, and the SHA-256 of its file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from sfumato_protos.v1 import gateway_pb2

from sfumato_client.files import write_file
from sfumato_client.results import GeneratedImage, GenerateResult

FORMAT = 1
IMAGE_FIELDS = {"index", "seed", "partial", "num_steps", "latents", "sha256"}
SAME, RESULT_DIFFERS, WEIGHTS_DIFFER, VERSIONS_DIFFER = 0, 3, 4, 5  # exit codes of `sfumato replay`


def manifest_of(result: GenerateResult, request: gateway_pb2.GenerateRequest) -> dict[str, Any]:
    """Of a result, and the request as it was sent, which has the images that went into it."""
    resolved = gateway_pb2.GenerateRequest()
    resolved.CopyFrom(result.parameters)
    resolved.ClearField("request_id")
    resolved.image, resolved.mask = request.image, request.mask
    if request.guidance.clip.image_prompts:
        resolved.guidance.clip.ClearField("image_prompts")
        resolved.guidance.clip.image_prompts.extend(request.guidance.clip.image_prompts)
    return {
        "sfumato_manifest": FORMAT,
        "request": MessageToDict(resolved, preserving_proto_field_name=True),
        "weights": dict(sorted(result.weights.items())),
        "versions": dict(sorted(result.versions.items())),
        "images": [_image(image) for image in result.images],
    }


def _image(image: GeneratedImage) -> dict[str, Any]:
    return {
        "index": image.index,
        "seed": image.seed,
        "partial": image.partial,
        "num_steps": image.num_steps,
        "latents": [digest.hex() for digest in image.latents_digests],
        "sha256": hashlib.sha256(image.data).hexdigest(),
    }


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """The file appears whole or not at all."""
    write_file(path, (json.dumps(manifest, indent=1) + "\n").encode())


def read_manifest(path: Path) -> dict[str, Any]:
    """
    Raises:
        ValueError: it is no manifest, or one of no image. OSError: it cannot be read.
    """
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["sfumato_manifest"] != FORMAT or not manifest["images"]:
            raise KeyError
        for part in ("request", "weights", "versions"):
            dict(manifest[part])
        for image in manifest["images"]:
            if not {*image} >= IMAGE_FIELDS or not isinstance(image["latents"], list):
                raise KeyError
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{path} is no manifest: `sfumato generate ... --manifest FILE` writes one"
        ) from None
    return dict(manifest)


def request_of(manifest: Mapping[str, Any]) -> gateway_pb2.GenerateRequest:
    """
    Raises:
        ValueError: what it asks for is no request.
    """
    try:
        return ParseDict(manifest["request"], gateway_pb2.GenerateRequest())
    except (ParseError, KeyError) as error:
        raise ValueError(f"the manifest's request is none: {error}") from error


@dataclass
class Replay:
    """How a run differs from what a manifest says.

    Attributes:
        weights, versions: by name, what they were and are, those that differ.
        images: a line for each image that differs, with the first step at which it does.
        first_step: the first step, from 1, at which any image differs; 0: none does.
    """

    weights: dict[str, tuple[str, str]] = field(default_factory=dict)
    versions: dict[str, tuple[str, str]] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    first_step: int = 0

    @property
    def exit_code(self) -> int:
        """SAME where the results are, whatever made them; else the likeliest reason."""
        if not self.images:
            return SAME
        if self.weights:
            return WEIGHTS_DIFFER
        return VERSIONS_DIFFER if self.versions else RESULT_DIFFERS


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Replay:
    """Two manifests of one request."""
    replay = Replay(_changed(before, after, "weights"), _changed(before, after, "versions"))
    now = {image["index"]: image for image in after["images"]}
    steps = []
    for image in before["images"]:
        index = image["index"]
        if index not in now:
            replay.images.append(f"image {index} did not come")
            continue
        step = _first_step(image["latents"], now[index]["latents"])
        if step:
            steps.append(step)
            replay.images.append(f"image {index} differs first at step {step} of {image['num_steps']}")
        elif not image["partial"] and image["sha256"] != now[index]["sha256"]:
            replay.images.append(f"image {index} differs only in its file: its latents are the same")
    replay.first_step = min(steps, default=0)
    return replay


def _changed(before: Mapping[str, Any], after: Mapping[str, Any], part: str) -> dict[str, tuple[str, str]]:
    names = sorted({*before.get(part, {}), *after[part]})
    pairs = {name: (before.get(part, {}).get(name, ""), after[part].get(name, "")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _first_step(before: list[str], after: list[str]) -> int:
    """From 1; 0 where all that was recorded is the same."""
    for step, digest in enumerate(before):
        if step >= len(after) or after[step] != digest:
            return step + 1
    return 0
