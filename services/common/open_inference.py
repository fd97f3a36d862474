"""The Open Inference Protocol (KServe v2 over gRPC) beside a service's own contract, for Triton's clients.

The messages are tritonclient's. A service gives a table of models; requests go the way of the service's own
calls. Specification: github.com/kserve/open-inference-protocol, open_inference_grpc.proto; ModelConfig and
ModelStreamInfer are Triton's. Health, ModelReady too, is answered while the service loads and drains.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib.metadata import version
from typing import Any

import grpc
import structlog
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from sfumato.common.calls import Context
from sfumato.common.errors import NotFound, SfumatoError, Unimplemented
from sfumato.common.inference_tensors import Model, Tensor, inputs_of, response_of, wanted_outputs

log = structlog.get_logger()

SERVICE = "inference.GRPCInferenceService"
# Answered while the service is not ready: they say so.
HEALTH = tuple(f"/{SERVICE}/{name}" for name in ("ServerLive", "ServerReady", "ModelReady"))
VERSIONS = ("1",)
# A stream's errors end it with their status, where this is "true"; by default they are messages of it.
STATUS_KEY = "triton_grpc_error"
FINAL_KEY, ASK_FINAL_KEY = "triton_final_response", "triton_enable_empty_final_response"

Models = Callable[[], Sequence[Model]]


class OpenInferenceServicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves the models of a service."""

    def __init__(self, name: str, models: Models, is_serving: Callable[[], Awaitable[bool]]) -> None:
        """
        Args:
            name: of the service, for ServerMetadata.
            models: the table, asked for at each call, but only while the service is loaded.
            is_serving: whether it is loaded and not about to stop.
        """
        self._name, self._models, self._is_serving = name, models, is_serving

    async def ServerLive(
        self, request: service_pb2.ServerLiveRequest, context: Context
    ) -> service_pb2.ServerLiveResponse:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: service_pb2.ServerReadyRequest, context: Context
    ) -> service_pb2.ServerReadyResponse:
        return service_pb2.ServerReadyResponse(ready=await self._is_serving())

    async def ModelReady(
        self, request: service_pb2.ModelReadyRequest, context: Context
    ) -> service_pb2.ModelReadyResponse:
        ready = await self._is_serving() and self._find(request.name, request.version) is not None
        return service_pb2.ModelReadyResponse(ready=ready)

    async def ServerMetadata(
        self, request: service_pb2.ServerMetadataRequest, context: Context
    ) -> service_pb2.ServerMetadataResponse:
        return service_pb2.ServerMetadataResponse(
            name=self._name, version=version("sfumato"), extensions=["model_configuration"]
        )

    async def ModelMetadata(
        self, request: service_pb2.ModelMetadataRequest, context: Context
    ) -> service_pb2.ModelMetadataResponse:
        model = self._model(request.name, request.version)
        response = service_pb2.ModelMetadataResponse(name=model.name, versions=VERSIONS, platform="sfumato")
        for tensors, field in ((model.inputs, response.inputs), (model.outputs, response.outputs)):
            for tensor in tensors:
                field.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        return response

    async def ModelConfig(
        self, request: service_pb2.ModelConfigRequest, context: Context
    ) -> service_pb2.ModelConfigResponse:
        model = self._model(request.name, request.version)

        def described(tensor: Tensor) -> dict[str, Any]:
            kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
            dims = tensor.shape[1:] if model.max_batch_size else tensor.shape
            return {"name": tensor.name, "data_type": f"TYPE_{kind}", "dims": dims}

        config = model_config_pb2.ModelConfig(
            name=model.name,
            platform="sfumato",
            max_batch_size=model.max_batch_size,
            input=[described(tensor) for tensor in model.inputs],
            output=[described(tensor) for tensor in model.outputs],
        )
        return service_pb2.ModelConfigResponse(config=config)

    async def ModelInfer(
        self, request: service_pb2.ModelInferRequest, context: Context
    ) -> service_pb2.ModelInferResponse:
        model = self._model(request.model_name, request.model_version)
        wanted = wanted_outputs(request, model)
        outputs = await model.infer(wanted, **inputs_of(request, model))
        return response_of(request, wanted, outputs)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[service_pb2.ModelInferRequest], context: Context
    ) -> AsyncIterator[service_pb2.ModelStreamInferResponse]:
        """One request after the other, in their order."""
        metadata = dict(context.invocation_metadata() or ())
        as_status = metadata.get(STATUS_KEY) == "true"
        async for request in request_iterator:
            try:
                response = await self.ModelInfer(request, context)
            except SfumatoError as error:
                if as_status:
                    raise
                log.info("refused", reason=error.reason, field=error.field, limit=error.limit)
                named = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
                yield service_pb2.ModelStreamInferResponse(error_message=error.message, infer_response=named)
                continue
            if request.parameters[ASK_FINAL_KEY].bool_param:
                response.parameters[FINAL_KEY].bool_param = True
            yield service_pb2.ModelStreamInferResponse(infer_response=response)

    def _find(self, name: str, wanted_version: str) -> Model | None:
        if wanted_version not in ("", *VERSIONS):
            return None
        return next((model for model in self._models() if model.name == name), None)

    def _model(self, name: str, wanted_version: str) -> Model:
        model = self._find(name, wanted_version)
        if model is None:
            known = ", ".join(model.name for model in self._models())
            asked = f"{name}, version {wanted_version}" if wanted_version else name
            raise NotFound(f"no model {asked} here; there are {known}, each in version 1", field="model_name")
        return model


def _not_offered(name: str) -> Callable[..., Awaitable[None]]:
    async def refuse(self: OpenInferenceServicer, request: Any, context: Context) -> None:
        raise Unimplemented(f"{SERVICE}/{name} is not offered here")

    return refuse


for _method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
    if _method.name not in vars(OpenInferenceServicer):
        setattr(OpenInferenceServicer, _method.name, _not_offered(_method.name))


def add_open_inference(
    server: grpc.aio.Server, name: str, models: Models, is_serving: Callable[[], Awaitable[bool]]
) -> None:
    """Serves the models on the server; arguments as OpenInferenceServicer's."""
    servicer = OpenInferenceServicer(name, models, is_serving)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
