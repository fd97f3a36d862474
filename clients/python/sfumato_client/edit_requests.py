"""Python arguments to an EditRequest, and an operation back to what it made."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.rpc import code_pb2
from sfumato_protos.v1 import editor_pb2

from sfumato_client.errors import SfumatoError, read_details
from sfumato_client.fields import set_field
from sfumato_client.files import write_file

COMMON = ("family", "request_id", "image", "mask", "video", "seed", "preview_interval_iterations")
METHODS = tuple(
    field.name.replace("_", "-")
    for field in editor_pb2.EditRequest.DESCRIPTOR.oneofs_by_name["method"].fields
)


def build_edit_request(method: str, options: dict[str, Any]) -> editor_pb2.EditRequest:
    """The message; unset and None options keep the service's defaults.

    Args:
        method: such as "vqgan-clip".
        options: fields of EditRequest and of the method's message. Images and videos are bytes or
            paths; prompts are texts, "text:weight", or (text, weight) pairs; enums their names ("cosine").

    Raises:
        ValueError: no such method or option.
        OSError: an image that cannot be read.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, but is {method}")
    request = editor_pb2.EditRequest()
    message: Message = getattr(request, method.replace("-", "_"))
    message.SetInParent()  # a method without options is chosen, too
    for name, value in options.items():
        if value is None:
            continue
        if name in COMMON:
            set_field(request, name, _bytes(value) if name in ("image", "mask", "video") else value)
        else:
            _set(message, method, name, value)
    return request


def _set(message: Message, method: str, name: str, value: Any) -> None:
    field = message.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        known = ", ".join(message.DESCRIPTOR.fields_by_name)
        raise ValueError(f"{method} has no option {name}; it has {known}")
    if name == "prompts":
        value = [value] if isinstance(value, str) else value
        message.prompts.extend(to_prompt(entry) for entry in value)  # type: ignore[attr-defined]
    elif name == "image_prompts":
        images = [editor_pb2.ImagePrompt(image=_bytes(entry)) for entry in value]
        message.image_prompts.extend(images)  # type: ignore[attr-defined]
    else:
        set_field(message, name, _scalar(field, value))


def _scalar(field: Any, value: Any) -> Any:
    """A value of the field's type, also from text."""
    if field.enum_type is not None:
        prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
        names = {
            entry.name.removeprefix(prefix).lower(): entry.number for entry in field.enum_type.values[1:]
        }
        if value not in names:
            raise ValueError(f"{field.name} must be one of {', '.join(names)}, but is {value}")
        return names[value]
    kinds: dict[int, type] = {
        FieldDescriptor.CPPTYPE_INT32: int,
        FieldDescriptor.CPPTYPE_DOUBLE: float,
        FieldDescriptor.CPPTYPE_STRING: str,
    }
    try:
        return kinds[field.cpp_type](value)
    except ValueError as error:
        raise ValueError(f"{field.name} must be a number, but is {value}") from error


def to_prompt(entry: "str | tuple[str, float] | editor_pb2.Prompt") -> editor_pb2.Prompt:
    """A prompt; "blurry:-0.5" is the text "blurry" of weight -0.5."""
    if isinstance(entry, editor_pb2.Prompt):
        return entry
    if not isinstance(entry, str):
        return editor_pb2.Prompt(text=entry[0], weight=entry[1])
    weighted = re.fullmatch(r"(.+):(-?\d+(?:\.\d*)?)", entry, re.DOTALL)
    if weighted:
        return editor_pb2.Prompt(text=weighted[1], weight=float(weighted[2]))
    return editor_pb2.Prompt(text=entry)


def _bytes(value: "bytes | str | Path") -> bytes:
    return value if isinstance(value, bytes) else Path(value).read_bytes()


@dataclass(frozen=True)
class Artifact:
    """A file that an edit made."""

    name: str  # "image", "edit_layer", "mapper" ...
    media_type: str
    data: bytes  # empty where it is too large for a message; then it lies at uri
    uri: str

    def save(self, path: str | Path) -> Path:
        """Writes the file; it appears whole or not at all. Makes the folder if there is none."""
        return write_file(Path(path), self.data)


def metadata_of(operation: operations_pb2.Operation) -> editor_pb2.EditMetadata:
    """Method, state and progress of an operation."""
    metadata = editor_pb2.EditMetadata()
    operation.metadata.Unpack(metadata)
    return metadata


def artifacts_of(operation: operations_pb2.Operation) -> Sequence[Artifact]:
    """What a finished edit made, "image" or "video" first.

    Raises:
        SfumatoError: it failed or was cancelled.
        ValueError: it has not ended.
    """
    if not operation.done:
        raise ValueError(f"{operation.name} has not ended")
    if operation.HasField("error"):
        error = SfumatoError(code_pb2.Code.Name(operation.error.code), operation.error.message)
        read_details(error, operation.error)
        raise error
    result = editor_pb2.EditResult()
    operation.response.Unpack(result)
    return [Artifact(a.name, a.media_type, a.data, a.uri) for a in result.artifacts]
