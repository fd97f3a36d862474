"""ModelService, which encoder, denoiser and decoder serve beside their own: families at run time."""

from typing import Any

import grpc
from sfumato_protos.v1 import model_pb2, model_pb2_grpc

from sfumato.common.calls import Context
from sfumato.common.families import Families, Listed

SERVICE = "sfumato.v1.ModelService"


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Messages to calls of the families."""

    def __init__(self, families: Families[Any]) -> None:
        self._families = families

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: Context
    ) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse(
            models=[_message(entry) for entry in self._families.listed()],
            loadable=self._families.loadable(),
            memory_limit_bytes=self._families.limit_bytes(),
        )

    async def LoadModel(
        self, request: model_pb2.LoadModelRequest, context: Context
    ) -> model_pb2.LoadModelResponse:
        listed = await self._families.load(request.family, request.revision)
        return model_pb2.LoadModelResponse(model=_message(listed))

    async def UnloadModel(
        self, request: model_pb2.UnloadModelRequest, context: Context
    ) -> model_pb2.UnloadModelResponse:
        await self._families.unload(request.family, request.revision)
        return model_pb2.UnloadModelResponse()


def _message(entry: Listed) -> model_pb2.Model:
    return model_pb2.Model(
        family=entry.name,
        state=model_pb2.ModelState.Value(f"MODEL_STATE_{entry.state}"),
        memory_bytes=entry.num_bytes,
        revision=entry.revision,
    )


def add_model_service(server: grpc.aio.Server, families: Families[Any]) -> None:
    """Serves it on the server."""
    model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(families), server)
