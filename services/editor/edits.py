"""An edit from request to queue: everything that can be refused is refused here, before anything is kept."""

import dataclasses
import hashlib
import io
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from PIL import Image

from sfumato.common.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from sfumato.common.images import open_image
from sfumato.common.tracing import traceparent
from sfumato.editor.artifacts import ArtifactStore
from sfumato.editor.config import EditorSettings
from sfumato.editor.method import Inputs, Method
from sfumato.editor.options import check_folders, from_json, resolve
from sfumato.editor.video import Video, decode, is_video

# Also a folder's name in the artifact store: "..", and what starts with "_", are none.
ID_RULE = "1 to 128 of [A-Za-z0-9._-], the first a letter or digit"
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# What an edit is kept under: its id, and behind an @ whose it is. Without tenants the id alone.
KEY = re.compile(ID.pattern + r"(@[a-z0-9][a-z0-9-]{0,62})?")
MIN_SIDE = 16  # pixels
MAX_PREVIEW_INTERVAL = 10_000


def key_of(operation: str, owner: str) -> str:
    """What an operation's id of that owner is kept under; an owner "" has all of them, by their keys."""
    return f"{operation}@{owner}" if owner else operation


def id_of(key: str) -> str:
    """The id that its owner knows it by."""
    return key.partition("@")[0]


def owner_of(key: str) -> str:
    """Whose it is, "" without tenants."""
    return key.partition("@")[2]


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    id: str  # with its owner
    fingerprint: str  # equal for equal requests
    options: Mapping[str, Any]
    images: Mapping[str, bytes]  # "image", "mask", "image_prompts[0]" ...
    preview_interval: int


@dataclass(frozen=True)
class Edit:
    """An accepted edit, as the database keeps it."""

    id: str
    method: str
    options: dict[str, Any]
    images: dict[str, str]  # field to path in the artifact store
    preview_interval: int  # iterations
    fingerprint: str
    created_ms: int  # milliseconds since 1970
    traceparent: str = ""  # of the request, in W3C's form: the edit goes on in its trace

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From what `dataclasses.asdict` and JSON made of one."""
        return cls(**values)

    def shows(self, iteration: int) -> bool:
        """Whether the iteration has a preview."""
        return bool(self.preview_interval) and iteration % self.preview_interval == 0


def prepare(request: Request, method: Method, store: ArtifactStore, settings: EditorSettings) -> Edit:
    """Checks the request and keeps its images.

    Raises:
        InvalidArgument, ResourceExhausted, NotFound, FailedPrecondition: with field, limit and value.
    """
    if not 0 <= request.preview_interval <= MAX_PREVIEW_INTERVAL:
        raise InvalidArgument(
            "preview_interval_iterations", f"0 to {MAX_PREVIEW_INTERVAL}", request.preview_interval
        )
    options = resolve(method.options, {"seed": secrets.randbits(32), **request.options}, settings)
    check_folders(options, settings.family)
    inputs = _opened(request.images, settings)
    if method.needs_image and inputs.image is None:
        raise InvalidArgument("image", "given", "empty", f"{method.name} edits an image.")
    method.check(options, inputs)
    if path := earlier_path(options, store, owner_of(request.id)):
        method.fits(store.read_tensors(path), settings.family)
    images = {}
    for field, data in request.images.items():
        images[field] = f"{request.id}/inputs/{hashlib.sha256(data).hexdigest()}"
        store.write(images[field], data)
    return Edit(
        request.id, method.name, dataclasses.asdict(options), images, request.preview_interval,
        request.fingerprint, int(time.time() * 1000), traceparent(),
    )  # fmt: skip


def load(edit: Edit, method: Method, store: ArtifactStore, settings: EditorSettings) -> tuple[Any, Inputs]:
    """The options and inputs of an accepted edit."""
    options = from_json(method.options, edit.options)
    files = {field: store.read(path) for field, path in edit.images.items()}
    inputs = _opened(files, settings)
    path = earlier_path(options, store, owner_of(edit.id))
    return options, dataclasses.replace(inputs, earlier=store.read_tensors(path)) if path else inputs


def earlier_path(options: Any, store: ArtifactStore, owner: str) -> str:
    """Path of the result tensors that an option asks for, "" where none does; of the same owner's edits."""
    for field in dataclasses.fields(options):
        if artifact := field.metadata.get("artifact"):
            name = str(getattr(options, field.name))
            collection, _, operation = name.partition("/")
            folder = f"{key_of(operation, owner)}/result"
            if collection != "operations" or not ID.fullmatch(operation) or not store.names(folder):
                raise NotFound(f"{name} has no result here", field=field.name,
                               limit="a finished operation", value=name)  # fmt: skip
            if f"{artifact}.safetensors" not in store.names(folder):
                limit = f"an operation that makes a {artifact}"
                raise FailedPrecondition(f"{name} made none", field=field.name, limit=limit, value=name)
            return f"{folder}/{artifact}.safetensors"
    return ""


def _opened(files: Mapping[str, bytes], settings: EditorSettings) -> Inputs:
    pictures, videos = dict(files), {}
    for field in ("video", "mask"):
        wanted = field == "video" or ("video" in videos and is_video(pictures.get(field, b"")))
        if wanted and (data := pictures.pop(field, b"")):
            videos[field] = _decode(field, data, settings)
    images = {field: _open(field, data, settings) for field, data in pictures.items()}
    image, mask, video = images.pop("image", None), images.pop("mask", None), videos.get("video")
    if (mask is not None or "mask" in videos) and image is None and video is None:
        raise InvalidArgument("mask", "given together with image or video", "given alone")
    size = None if image is None else image.size
    if video is not None:
        size = video.frames.shape[2], video.frames.shape[1]
    if mask is not None and size is not None and mask.size != size:
        raise InvalidArgument(
            "mask", f"{size[0]}x{size[1]}, as what is edited", f"{mask.width}x{mask.height}"
        )
    if "mask" in videos and video is not None:
        _check_alike(videos["mask"], video)
    prompts = tuple(images[f"image_prompts[{index}]"] for index in range(len(images)))
    return Inputs(image, mask, prompts, video, videos.get("mask"))


def _decode(field: str, data: bytes, settings: EditorSettings) -> Video:
    video = decode(data, field, settings.video_limits)
    height, width = video.frames.shape[1:3]
    if min(height, width) < MIN_SIDE:
        raise InvalidArgument(field, f"at least {MIN_SIDE} pixels a side", f"{width}x{height}")
    return video


def _check_alike(mask: Video, video: Video) -> None:
    (n, height, width), (k, h, w) = video.frames.shape[:3], mask.frames.shape[:3]
    if (n, height, width) != (k, h, w):
        limit = f"{n} frames of {width}x{height}, as the video"
        raise InvalidArgument("mask", limit, f"{k} of {w}x{h}")


def _open(field: str, data: bytes, settings: EditorSettings) -> Image.Image:
    if len(data) > settings.max_image_bytes:
        raise ResourceExhausted(field, f"at most {settings.max_image_bytes} bytes", f"{len(data)} bytes")
    image = open_image(data, field, settings.max_pixels)
    if min(image.size) < MIN_SIDE:
        raise InvalidArgument(field, f"at least {MIN_SIDE} pixels a side", f"{image.width}x{image.height}")
    return image


def encode_png(image: Image.Image) -> bytes:
    """A PNG of any mode; RGBA stays RGBA."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
