"""Every RPC there is, from the descriptors: a new one is in every test that goes over them."""

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import sfumato_protos.v1
from google.longrunning import operations_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2

# Of encoder, decoder and denoiser alike.
OPEN_INFERENCE, MODELS = "inference.GRPCInferenceService", "sfumato.v1.ModelService"
# Served behind the gateway; everything else is the gateway's.
BEHIND = {
    "sfumato.v1.EncoderService", "sfumato.v1.DecoderService", "sfumato.v1.DenoiserService",
    OPEN_INFERENCE, MODELS,
}  # fmt: skip


@dataclass(frozen=True)
class Rpc:
    """One method."""

    service: str
    name: str
    request: type[Message]
    client_streaming: bool
    server_streaming: bool

    @property
    def path(self) -> str:
        """As gRPC has it on the wire."""
        return f"/{self.service}/{self.name}"


@dataclass(frozen=True)
class Ended:
    """How a call ended."""

    code: grpc.StatusCode
    responses: list[bytes]
    details: str = ""
    trailing: tuple[tuple[str, str | bytes], ...] = ()


def all_rpcs() -> list[Rpc]:
    """All of sfumato.v1, of google.longrunning.Operations and of the Open Inference Protocol."""
    names = [module.name for module in pkgutil.iter_modules(sfumato_protos.v1.__path__)]
    modules = [
        importlib.import_module(f"sfumato_protos.v1.{name}") for name in names if name.endswith("_pb2")
    ]
    files: list[FileDescriptor] = [module.DESCRIPTOR for module in modules]
    files.append(operations_pb2.DESCRIPTOR.services_by_name["Operations"].file)
    files.append(service_pb2.DESCRIPTOR)
    return [
        Rpc(
            service.full_name, method.name, message_factory.GetMessageClass(method.input_type),
            method.client_streaming, method.server_streaming,
        )
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
    ]  # fmt: skip


def doors() -> list[Rpc]:
    """Those that clients reach, at the gateway."""
    return [rpc for rpc in all_rpcs() if rpc.service not in BEHIND]


def call(
    channel: grpc.Channel,
    rpc: Rpc,
    messages: Sequence[bytes],
    token: str = "",
    timeout: float = 20,
    metadata: Sequence[tuple[str, str]] = (),
) -> Ended:
    """Calls with these bytes as messages, of which all but the first are for streams."""
    bearer = [("authorization", f"Bearer {token}")] if token else []
    options: Any = {"timeout": timeout, "metadata": (*metadata, *bearer)}
    try:
        if rpc.client_streaming:
            return Ended(grpc.StatusCode.OK, list(channel.stream_stream(rpc.path)(iter(messages), **options)))
        if rpc.server_streaming:
            return Ended(grpc.StatusCode.OK, list(channel.unary_stream(rpc.path)(messages[0], **options)))
        return Ended(grpc.StatusCode.OK, [channel.unary_unary(rpc.path)(messages[0], **options)])
    except grpc.RpcError as error:
        failed: Any = error
        trailing = tuple((key, value) for key, value in failed.trailing_metadata() or ())
        return Ended(failed.code(), [], failed.details() or "", trailing)
