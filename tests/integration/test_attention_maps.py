"""Attention maps through the services, against diffusers' pipeline with hooks on its UNet."""

import io
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from sfumato_protos.v1 import gateway_pb2, gateway_pb2_grpc
from torch.nn import functional as F

from sfumato.gateway.sampling import make_scheduler
from sfumato_client import AsyncClient
from sfumato_client.stack import Stack
from tests.integration.test_requests import refused

PROMPT, SEED, STEPS = "a cat left of a star", 3, 5
LARGEST, ALL = gateway_pb2.ATTENTION_AGGREGATION_LARGEST, gateway_pb2.ATTENTION_AGGREGATION_ALL


async def maps_of(stack: Stack, **options: Any) -> tuple[list[gateway_pb2.AttentionMaps], bytes]:
    """All maps' events of one request, and its image."""
    request = gateway_pb2.GenerateRequest(
        prompt=PROMPT, seed=SEED, num_inference_steps=STEPS,
        attention_maps=gateway_pb2.AttentionMapOptions(**options),
    )  # fmt: skip
    maps, image = [], b""
    async with grpc.aio.insecure_channel(stack.target) as channel:
        stub: Any = gateway_pb2_grpc.GatewayServiceStub(channel)
        async for event in stub.Generate(request, timeout=60):
            if event.HasField("attention_maps"):
                assert not image
                maps.append(event.attention_maps)
            elif event.HasField("image"):
                image = event.image.data
    return maps, image


def array(message: gateway_pb2.AttentionMaps) -> np.ndarray:
    """[words, h, w]."""
    return np.frombuffer(message.maps.data, "<f4").reshape(message.maps.shape)


@pytest.fixture(scope="module")
def seen(emoji_family: Path) -> tuple[dict[int, np.ndarray], list[str]]:
    """What hooks on the in-process pipeline's UNet see: pixels of a level to [uses, tokens, h, w]."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(emoji_family, torch_dtype=torch.float32)
    pipeline.scheduler = make_scheduler("dpmpp_2m", pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    projected: dict[str, list[torch.Tensor]] = {}
    for name, module in pipeline.unet.named_modules():
        if name.endswith(("attn2.to_q", "attn2.to_k")):
            module.register_forward_hook(
                lambda _, __, output, name=name: projected.setdefault(name, []).append(output[1].double())
            )
    generator = torch.Generator().manual_seed(SEED)
    pipeline(PROMPT, num_inference_steps=STEPS, guidance_scale=5.0, generator=generator)
    levels: dict[int, list[torch.Tensor]] = {}
    for name in (name for name in projected if name.endswith("to_q")):
        heads = pipeline.unet.get_submodule(name.removesuffix(".to_q")).heads
        for query, key in zip(projected[name], projected[name[:-1] + "k"], strict=True):
            query, key = (tensor.unflatten(-1, (heads, -1)).transpose(0, 1) for tensor in (query, key))
            maps = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1).mean(0)
            levels.setdefault(len(maps), []).append(maps.T.unflatten(1, (round(len(maps) ** 0.5), -1)))
    tokens = pipeline.tokenizer.tokenize(PROMPT)
    return {pixels: torch.stack(maps).numpy() for pixels, maps in levels.items()}, tokens


def by_words(token_maps: np.ndarray, tokens: list[str]) -> np.ndarray:
    """Sums the tokens of each word; token 0 is the start token."""
    ends = [index for index, token in enumerate(tokens) if token.endswith("</w>")]
    starts = [0, *(end + 1 for end in ends[:-1])]
    return np.stack([token_maps[1 + start : 2 + end].sum(0) for start, end in zip(starts, ends, strict=True)])


async def test_final_maps_are_those_of_hooks_on_the_pipelines_unet(
    stack: Stack, seen: tuple[dict[int, np.ndarray], list[str]]
) -> None:
    levels, tokens = seen
    maps, _ = await maps_of(stack)
    assert len(maps) == 1
    assert list(maps[0].words) == PROMPT.split()
    expected = by_words(levels[max(levels)].mean(0), tokens)
    assert array(maps[0]).shape == expected.shape
    assert np.abs(array(maps[0]) - expected).max() < 1e-4


async def test_all_layers_are_enlarged_and_averaged(
    stack: Stack, seen: tuple[dict[int, np.ndarray], list[str]]
) -> None:
    levels, tokens = seen
    side = round(max(levels) ** 0.5)
    enlarged = [
        F.interpolate(torch.from_numpy(maps), (side, side), mode="bilinear").numpy()
        for maps in levels.values()
    ]
    maps, _ = await maps_of(stack, aggregation=ALL)
    expected = by_words(np.concatenate(enlarged).mean(0), tokens)
    assert np.abs(array(maps[0]) - expected).max() < 1e-4


async def test_maps_come_as_they_form_and_the_image_stays(client: AsyncClient, stack: Stack) -> None:
    maps, image = await maps_of(stack, interval_steps=2, aggregation=LARGEST)
    assert [message.step for message in maps] == [2, 4, 5]
    assert not np.array_equal(array(maps[0]), array(maps[-1]))
    without = await client.generate(PROMPT, seed=SEED, num_inference_steps=STEPS)
    pixels = [
        np.asarray(Image.open(io.BytesIO(data)), dtype=np.int16) for data in (image, without.images[0].data)
    ]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1


async def test_bad_options_are_refused_by_name(stack: Stack) -> None:
    for options, field in (
        ({"interval_steps": -1}, "attention_maps.interval_steps"),
        ({"aggregation": 9}, "attention_maps.aggregation"),
    ):
        request = gateway_pb2.GenerateRequest(
            prompt="a", attention_maps=gateway_pb2.AttentionMapOptions(**options)
        )
        error = await refused(stack, request)
        assert (error.code, error.field) == ("INVALID_ARGUMENT", field)
