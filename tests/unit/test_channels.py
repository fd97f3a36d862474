"""A model service goes away with a call in hand: the call is repeated; no client sees CANCELLED."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import torch
from sfumato_protos.v1 import encoder_pb2, encoder_pb2_grpc

from sfumato.common.errors import Unavailable
from sfumato.common.tensors import to_message
from sfumato.gateway.channels import ModelServices
from sfumato.gateway.config import GatewaySettings


class Leaving(encoder_pb2_grpc.EncoderServiceServicer):
    """Ends so many calls as a server does that is stopped, then answers."""

    def __init__(self, num_cancelled: int, weights_digest: str = "") -> None:
        self.num_cancelled, self.num_calls, self.weights_digest = num_cancelled, 0, weights_digest

    async def EncodeText(
        self, request: encoder_pb2.EncodeTextRequest, context: Any
    ) -> encoder_pb2.EncodeTextResponse:
        self.num_calls += 1
        if self.num_calls <= self.num_cancelled:
            await context.abort(grpc.StatusCode.CANCELLED, "")
        return encoder_pb2.EncodeTextResponse(
            prompt_embeds=to_message(torch.ones(1, 2, 3)),
            num_truncated_tokens=[0],
            texts=[{"words": []}],
            weights_digest=self.weights_digest,
        )


@asynccontextmanager
async def gateway_to(encoder: Leaving) -> AsyncIterator[ModelServices]:
    server = grpc.aio.server()
    encoder_pb2_grpc.add_EncoderServiceServicer_to_server(encoder, server)
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    services = ModelServices(
        GatewaySettings(encoder_target=target, decoder_target=target, denoiser_targets=target)
    )
    yield services
    await services.close()
    await server.stop(None)


async def test_a_call_that_a_leaving_service_dropped_is_repeated() -> None:
    encoder = Leaving(2)
    async with gateway_to(encoder) as services:
        encoded = await services.encode_text(["a cat"])
    assert encoder.num_calls == 3
    assert encoded.prompt_embeds.shape == (1, 2, 3)


async def test_a_repeated_text_is_not_encoded_again_until_the_encoder_was_away() -> None:
    encoder, server = Leaving(0, "first"), grpc.aio.server()
    encoder_pb2_grpc.add_EncoderServiceServicer_to_server(encoder, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    target = f"127.0.0.1:{port}"
    services = ModelServices(
        GatewaySettings(encoder_target=target, decoder_target=target, denoiser_targets=target)
    )
    for _ in range(3):
        await services.encode_text(["a cat"])
    assert encoder.num_calls == 1
    await server.stop(None)
    replaced, server = Leaving(0, "second"), grpc.aio.server()
    encoder_pb2_grpc.add_EncoderServiceServicer_to_server(replaced, server)
    server.add_insecure_port(target)
    await server.start()
    for _ in range(3):
        await services.encode_text(["a cat"])
    assert replaced.num_calls == 1
    await services.close()
    await server.stop(None)


async def test_a_service_that_drops_every_call_is_unavailable() -> None:
    async with gateway_to(Leaving(100)) as services:
        with pytest.raises(Unavailable, match=r"the encoder at .* does not answer"):
            await services.encode_text(["a cat"])
