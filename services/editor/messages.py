"""Messages to what the editor's modules take, and jobs back to messages."""

import hashlib
from collections.abc import Mapping
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.rpc import status_pb2
from sfumato_protos.v1 import editor_pb2

from sfumato.common import calls
from sfumato.common.errors import InvalidArgument, SfumatoError
from sfumato.common.status import to_status
from sfumato.editor.artifacts import ArtifactStore, result_path
from sfumato.editor.edits import ID, KEY, Request, id_of, key_of
from sfumato.editor.failures import Failure
from sfumato.editor.records import Job

MAX_INLINE_BYTES = 4 * 2**20
MEDIA_TYPES = {"png": "image/png", "mp4": "video/mp4", "safetensors": "application/vnd.safetensors"}
STATES = {
    "queued": editor_pb2.EDIT_STATE_QUEUED,
    "running": editor_pb2.EDIT_STATE_RUNNING,
    "succeeded": editor_pb2.EDIT_STATE_SUCCEEDED,
    "failed": editor_pb2.EDIT_STATE_FAILED,
    "cancelled": editor_pb2.EDIT_STATE_CANCELLED,
}


def method_name(field: str) -> str:
    """A method's name from its field in EditRequest: vqgan_clip is "vqgan-clip"."""
    return field.replace("_", "-")


def to_request(message: editor_pb2.EditRequest, operation: str) -> tuple[str, Request]:
    """Method and request of a message.

    Raises:
        InvalidArgument: no method is set.
    """
    field = message.WhichOneof("method")
    if field is None:
        known = ", ".join(f.name for f in message.DESCRIPTOR.oneofs_by_name["method"].fields)
        raise InvalidArgument("method", f"one of {known}", "unset")
    options = given_fields(getattr(message, field))
    images = {name: data for name in ("image", "mask", "video") if (data := getattr(message, name))}
    for index, prompt in enumerate(options.get("image_prompts", ())):
        images[f"image_prompts[{index}]"] = prompt.pop("image", b"")
    if message.HasField("seed"):
        options["seed"] = message.seed
    request = Request(operation, fingerprint(message), options, images, message.preview_interval_iterations)
    return method_name(field), request


def fingerprint(message: editor_pb2.EditRequest) -> str:
    """Equal for requests that ask for the same, whatever their ids."""
    asked = editor_pb2.EditRequest()
    asked.CopyFrom(message)
    asked.request_id = ""
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).hexdigest()


def given_fields(message: Message) -> dict[str, Any]:
    """The fields that were set: enums by the rest of their names in lower case, messages as dictionaries."""
    return {field.name: _value(field, value) for field, value in message.ListFields()}


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return [given_fields(entry) for entry in value]
    if field.enum_type is not None:
        found = field.enum_type.values_by_number.get(value)
        prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
        return found.name.removeprefix(prefix).lower() if found else str(value)
    return value


def operation_name(name: str) -> str:
    """The key of the caller's "operations/{id}"; who sees all names others' as "operations/{id}@{tenant}".

    Raises:
        InvalidArgument: it is no such name.
    """
    owner = calls.caller.get().owner
    collection, _, operation = name.partition("/")
    if collection != "operations" or not (ID if owner else KEY).fullmatch(operation):
        raise InvalidArgument("name", "operations/{id}", name or "empty")
    return key_of(operation, owner)


def to_operation(job: Job, store: ArtifactStore, *, with_data: bool = True) -> operations_pb2.Operation:
    """The operation of a job; with_data reads the result's files."""
    metadata = editor_pb2.EditMetadata(
        method=job.edit.method,
        state=STATES[job.state],
        iteration=job.iteration,
        num_iterations=job.num_iterations,
        seed=job.edit.options.get("seed", 0),
    )
    metadata.create_time.FromMilliseconds(job.edit.created_ms)
    if job.ended_ms is not None and job.expires_ms is not None:
        metadata.end_time.FromMilliseconds(max(job.ended_ms, job.edit.created_ms))
        metadata.expire_time.FromMilliseconds(job.expires_ms)
    seen = id_of(job.edit.id) if calls.caller.get().owner else job.edit.id
    operation = operations_pb2.Operation(name=f"operations/{seen}", done=job.ended)
    operation.metadata.Pack(metadata)
    if job.failure is not None:
        operation.error.CopyFrom(to_failure_status(job.failure))
    elif job.ended:
        artifacts = [_artifact(job.edit.id, file, size, store, with_data) for file, size in job.result]
        operation.response.Pack(editor_pb2.EditResult(artifacts=artifacts))
    return operation


def _artifact(
    operation: str, file: str, size: int, store: ArtifactStore, with_data: bool
) -> editor_pb2.Artifact:
    name, _, suffix = file.rpartition(".")
    path = result_path(operation, file)
    data = store.read(path) if with_data and size <= MAX_INLINE_BYTES else b""
    return editor_pb2.Artifact(
        name=name, media_type=MEDIA_TYPES[suffix], data=data, uri=store.uri(path), size_bytes=size
    )


def to_failure_status(failure: Failure) -> status_pb2.Status:
    """google.rpc status of a failure, as a call's would be."""
    error = SfumatoError(failure.message, field=failure.field, limit=failure.limit, value=failure.value)
    error.code, error.reason = failure.code, failure.reason
    return to_status(error)


def to_watch_response(
    iteration: int, num_iterations: int, losses: Mapping[str, float], preview: bytes
) -> editor_pb2.WatchEditResponse:
    """One iteration."""
    return editor_pb2.WatchEditResponse(
        iteration=iteration, num_iterations=num_iterations, losses=losses, preview=preview
    )
