"""Encoder, denoisers and decoder without weights: real channels, families and statuses, in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import torch
from sfumato_protos.v1 import (
    decoder_pb2,
    decoder_pb2_grpc,
    denoiser_pb2,
    denoiser_pb2_grpc,
    encoder_pb2,
    encoder_pb2_grpc,
)

from sfumato.common.admission import TrustGateway
from sfumato.common.config import FamiliesSettings
from sfumato.common.families import Families
from sfumato.common.family_loader import Source
from sfumato.common.interceptors import CallInterceptor
from sfumato.common.model_service import add_model_service
from sfumato.common.tensors import from_message, to_message
from sfumato.gateway.channels import ModelServices
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.families import Families as GatewayFamilies

OWN, OTHER, THIRD = "families/own", "families/other", "families/third"
MODEL_BYTES = 10


def family_folder(root: Path) -> Path:
    """Of three families that have names alone."""
    for name in (OWN, OTHER, THIRD):
        folder = root / name.removeprefix("families/")
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
    return root


class Replica:
    """One of a service; its models are their folders' names.

    Attributes:
        may_load: loads wait for it.
        version: of the weights.
        refused: what a load of anything but the own family raises.
    """

    def __init__(self, root: Path, max_models: int) -> None:
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.version = 1
        self.refused: Exception | None = None
        self.families: Families[str] = Families(
            FamiliesSettings(family=root / "own", families=root, model_memory_bytes=max_models * MODEL_BYTES),
            Source(self._load, lambda *_: MODEL_BYTES, torch.device("cpu"), self._warm),
        )

    def _load(self, folder: Path, *_: Any) -> str:
        if self.refused is not None and folder.name != "own":
            raise self.refused
        return folder.name

    async def _warm(self, _: str) -> None:
        await self.may_load.wait()

    @property
    def states(self) -> dict[str, str]:
        """By family."""
        return {listed.name: listed.state for listed in self.families.listed()}


class Encoder(Replica, encoder_pb2_grpc.EncoderServiceServicer):
    """Says what it holds."""

    async def GetEncoderInfo(self, request: Any, context: Any) -> encoder_pb2.GetEncoderInfoResponse:
        with self.families.use(request.family):
            return encoder_pb2.GetEncoderInfoResponse(family=request.family or OWN)

    async def EncodeText(self, request: Any, context: Any) -> encoder_pb2.EncodeTextResponse:
        """The weights' version, as embeddings."""
        with self.families.use(request.family) as weights:
            return encoder_pb2.EncodeTextResponse(
                prompt_embeds=to_message(torch.full((1, 8, 16), float(self.version))),
                num_truncated_tokens=[0], texts=[encoder_pb2.TextWords()],
                weights_digest=f"{weights} {self.version}",
            )  # fmt: skip


class Decoder(Replica, decoder_pb2_grpc.DecoderServiceServicer):
    """Says what it holds."""

    async def GetDecoderInfo(self, request: Any, context: Any) -> decoder_pb2.GetDecoderInfoResponse:
        with self.families.use(request.family):
            return decoder_pb2.GetDecoderInfoResponse(
                family=request.family or OWN, latent_channels=4, vae_scale_factor=8
            )


class Denoiser(Replica, denoiser_pb2_grpc.DenoiserServiceServicer):
    """Doubles the latents."""

    async def GetDenoiserInfo(self, request: Any, context: Any) -> denoiser_pb2.GetDenoiserInfoResponse:
        with self.families.use(request.family) as weights:
            return denoiser_pb2.GetDenoiserInfoResponse(
                family=request.family or OWN, in_channels=4, sample_size=8 * self.version,
                cross_attention_dim=16, weights_digest=f"{weights} {self.version}", engine="none",
                scheduler_config="{}",
            )  # fmt: skip

    async def Denoise(
        self, request_iterator: AsyncIterator[denoiser_pb2.DenoiseRequest], context: Any
    ) -> AsyncIterator[denoiser_pb2.DenoiseResponse]:
        async with AsyncExitStack() as held:
            async for request in request_iterator:
                if request.HasField("open"):
                    held.enter_context(self.families.use(request.open.family))
                else:
                    latents = from_message(request.step.latents, "latents", (1, 4, None, None), 2**20)
                    yield denoiser_pb2.DenoiseResponse(noise_pred=to_message(2 * latents))


class Stack:
    """One encoder, one decoder and some denoisers, and as many gateways as are asked for."""

    def __init__(self, root: Path, max_models: int, num_denoisers: int) -> None:
        self.encoder, self.decoder = Encoder(root, max_models), Decoder(root, max_models)
        self.denoisers = [Denoiser(root, max_models) for _ in range(num_denoisers)]
        self.targets: dict[Replica, str] = {}

    @property
    def replicas(self) -> list[Replica]:
        """All of them."""
        return [self.encoder, self.decoder, *self.denoisers]

    def states(self, family: str) -> set[str]:
        """Where it is, at all replicas."""
        return {replica.states.get(family, "") for replica in self.replicas}

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[tuple[ModelServices, GatewayFamilies]]:
        """Its channels, and its families, which are looked at when the test says so."""
        settings = GatewaySettings(
            encoder_target=self.targets[self.encoder],
            decoder_target=self.targets[self.decoder],
            denoiser_targets=",".join(self.targets[denoiser] for denoiser in self.denoisers),
            replica_wait_seconds=1.0,
        )
        services = ModelServices(settings)
        families = GatewayFamilies(services, await services.family(), 3600)
        await families.looked()
        yield services, families
        await families.close()
        await services.close()


@asynccontextmanager
async def weightless(root: Path, max_models: int = 3, num_denoisers: int = 1) -> AsyncIterator[Stack]:
    """The services, each with its own family; max_models: that have room together."""
    stack = Stack(root, max_models, num_denoisers)
    ready = asyncio.Event()
    ready.set()
    async with AsyncExitStack() as opened:
        for replica in stack.replicas:
            await replica.families.load_default()
            server = grpc.aio.server(interceptors=[CallInterceptor(ready, TrustGateway())])
            add_model_service(server, replica.families)
            if isinstance(replica, Encoder):
                encoder_pb2_grpc.add_EncoderServiceServicer_to_server(replica, server)
            elif isinstance(replica, Decoder):
                decoder_pb2_grpc.add_DecoderServiceServicer_to_server(replica, server)
            elif isinstance(replica, Denoiser):
                denoiser_pb2_grpc.add_DenoiserServiceServicer_to_server(replica, server)
            stack.targets[replica] = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            await server.start()
            opened.push_async_callback(server.stop, None)
            opened.callback(replica.families.close)
        yield stack
