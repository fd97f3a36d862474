"""Guidance through the services: the composed gradient, every kind, and what is refused."""

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from PIL import Image
from sfumato_protos.v1 import (
    decoder_pb2,
    decoder_pb2_grpc,
    denoiser_pb2,
    denoiser_pb2_grpc,
    guidance_pb2,
)

from sfumato.common.noised_clip import load_noised_clip
from sfumato.common.tensors import to_message
from sfumato.decoder.engine_torch import TorchAutoencoder
from sfumato.denoiser.engine_torch import TorchUNet
from sfumato.encoder.cutouts import make_cutouts
from sfumato.encoder.engine_torch import JointEncoder, TextEncoder
from sfumato.gateway.channels import ModelServices
from sfumato.gateway.clip_gradient import embed_targets, image_gradient
from sfumato.gateway.conditioning import Conditioning
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.guidance import Point, classifier_free
from sfumato.gateway.guidance_options import PATHS, ClipOptions, resolve_guidance
from sfumato.gateway.sampling import SCHEDULERS
from sfumato_client import AsyncClient, SfumatoError
from sfumato_client.stack import Stack
from tests.integration.test_faults import bring_back, busiest

CPU = torch.device("cpu")
KINDS = ("none", "cfg", "clip", "noised-clip", "cfg+clip", "cfg+noised-clip")


@pytest.fixture
async def tiny(tiny_stack: Stack) -> AsyncIterator[AsyncClient]:
    """A client of the tiny family's services."""
    async with AsyncClient(tiny_stack.target, timeout=120) as opened:
        yield opened


@pytest.fixture
async def services(tiny_stack: Stack) -> AsyncIterator[ModelServices]:
    """The gateway's own channels to the model services."""
    settings = GatewaySettings(
        encoder_target=tiny_stack.encoder.target,
        decoder_target=tiny_stack.decoder.target,
        denoiser_targets=",".join(service.target for service in tiny_stack.denoisers),
    )
    opened = ModelServices(settings)
    yield opened
    await opened.close()


def clip_options(**given: Any) -> ClipOptions:
    """As a request has them, with every term at work."""
    given = {"scale": 100.0, "tv_scale": 3.0, "range_scale": 2.0, "num_cutouts": 3, **given}
    clip = resolve_guidance({"kind": "clip", "clip": given}, "a cat", 100, 100).clip
    assert clip is not None
    return clip


def point(prediction_type: str) -> Point:
    """Somewhere in the middle of a trajectory."""
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return Point(3, 10, x, 400.0, 0.4, prediction_type)


class OneProcess:
    """The whole chain in float64, differentiated by autograd at once."""

    def __init__(self, family: Path) -> None:
        self.unet = TorchUNet(family, CPU, torch.float64)
        self.vae = TorchAutoencoder(family, CPU, torch.float64)
        self.joint = JointEncoder(f"local-dir:{family / 'clip'}", CPU, torch.float64)
        self.texts = TextEncoder(family, CPU)

    def gradient(
        self, at: Point, embeds: torch.Tensor, scale: float, rescale: float, options: ClipOptions, seed: int
    ) -> torch.Tensor:
        """d J / d x_t along the path of the options."""
        x = at.model_input.double().requires_grad_()
        timesteps = torch.tensor([at.timestep])
        rows = torch.cat(
            [self.unet.model(x, timesteps, row.double(), return_dict=False)[0] for row in embeds.split(1)]
        )
        prediction = classifier_free(rows, scale, rescale)
        signal, noise = at.alpha_cumprod**0.5, (1 - at.alpha_cumprod) ** 0.5
        eps = noise * x + signal * prediction if at.prediction_type == "v_prediction" else prediction
        if options.path == "constant_noise":
            eps = eps.detach()
        x0 = x if options.path == "noisy_latents" else (x - noise * eps) / signal
        image = self.vae.model.decode(x0 / self.vae.scaling_factor, return_dict=False)[0]
        cutouts = make_cutouts(image, self.joint.image_size, options.num_cutouts, options.cut_power, seed)
        features = self.joint.features_of(cutouts)
        targets = self.joint.embed_texts(list(options.prompts)).clone()
        weights = torch.tensor(options.prompt_weights, dtype=torch.float64)
        right, below = image.diff(dim=3).square().sum(), image.diff(dim=2).square().sum()
        overflow = torch.relu(image.abs() - 1).square().mean()
        similarity = (weights * (features @ targets.T).mean(0)).sum()
        variation = (right + below) / image.numel()
        objective = options.scale * similarity - options.tv_scale * variation - options.range_scale * overflow
        return torch.autograd.grad(objective, x)[0]


@pytest.fixture(scope="module")
def one_process(tiny_family: Path) -> Iterator[OneProcess]:
    """Loaded once; on one thread, since the services beside it have the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield OneProcess(tiny_family)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("prediction_type", "texts"), [("epsilon", [""]), ("epsilon", ["", "a cat"]), ("v_prediction", ["", "a"])]
)
async def test_the_composed_gradient_is_one_process_autograd(
    services: ModelServices, one_process: OneProcess, path: str, prediction_type: str, texts: list[str]
) -> None:
    """UNet, guidance, decoder, cutouts and CLIP over four services: relative error at most 1e-3."""
    at = point(prediction_type)
    options = clip_options(path=path, prompts=["a cat", "a red dog"], prompt_weights=[1.0, -0.4])
    embeds = one_process.texts.encode(texts)[0]
    targets = await embed_targets(options, services.gradients)
    denoiser, decoding = services.open_trajectory(Conditioning(embeds)), services.gradients.open_decoding()
    rows = await denoiser.noise_pred(at.index, at.model_input, at.timestep, keep_graph=True)
    composed = await image_gradient(
        at,
        rows,
        lambda r: classifier_free(r, 4.0, 0.3),
        lambda image: services.gradients.guide_image(image, targets, options, 77),
        decoding,
        denoiser,
        path,
    )
    await denoiser.close()
    await decoding.close()
    expected = one_process.gradient(at, embeds, 4.0, 0.3, options, 77)
    error = (composed.double() - expected).norm() / expected.norm()
    assert float(error) <= 1e-3


async def test_the_noised_clips_gradient_is_one_process_autograd(
    services: ModelServices, one_process: OneProcess, tiny_family: Path
) -> None:
    at, options = point("epsilon"), clip_options(prompts=["a cat", "a dog"], prompt_weights=[2.0, -1.0])
    targets = await embed_targets(options, services.gradients)
    got = await services.gradients.guide_latents(at.model_input, at.timestep, targets, 50.0)
    x = at.model_input.double().requires_grad_()
    encoder = load_noised_clip(tiny_family / "clip_noised").double()
    texts = one_process.joint.embed_texts(["a cat", "a dog"]).clone()
    similarities = encoder(x, torch.tensor([at.timestep])) @ texts.T
    expected = torch.autograd.grad(50.0 * (2 * similarities[0, 0] - similarities[0, 1]), x)[0]
    assert float((got.double() - expected).norm() / expected.norm()) <= 1e-3


async def test_a_denoiser_or_decoder_lost_between_step_and_gradient_changes_nothing(
    services: ModelServices, tiny_stack: Stack, one_process: OneProcess
) -> None:
    at, embeds = point("epsilon"), one_process.texts.encode([""])[0]
    vector, pixels = torch.ones(1, 4, 8, 8), torch.ones(1, 3, 64, 64)

    async def both(kill: bool) -> tuple[torch.Tensor, torch.Tensor]:
        denoiser, decoding = (
            services.open_trajectory(Conditioning(embeds)),
            services.gradients.open_decoding(),
        )
        await denoiser.noise_pred(at.index, at.model_input, at.timestep, keep_graph=True)
        await decoding.decode(at.model_input)
        if kill:
            lost = [next(s for s in tiny_stack.denoisers if s.target == denoiser._stream._replica.target)]
            lost.append(tiny_stack.decoder)
            for service in lost:
                service.process.kill()
            for service in lost:
                await asyncio.to_thread(bring_back, service)
        result = await denoiser.gradient(at.index, vector), await decoding.gradient(pixels)
        assert denoiser.num_replayed_steps == kill
        await denoiser.close()
        await decoding.close()
        return result

    undisturbed, disturbed = await both(False), await both(True)
    assert torch.equal(undisturbed[0], disturbed[0])
    assert torch.equal(undisturbed[1], disturbed[1])


async def test_a_denoiser_killed_in_a_clip_guided_image_changes_nothing(
    tiny: AsyncClient, tiny_stack: Stack
) -> None:
    request: dict[str, Any] = {
        "seed": 9, "num_inference_steps": 30, "scheduler": "ddpm", "guidance": "cfg+clip",
    }  # fmt: skip
    undisturbed = await tiny.generate("a fox", **request)
    killed, image, replayed = None, b"", 0
    async for event in tiny.generate_events("a fox", **request):
        if event.HasField("step") and event.step.step == 5 and killed is None:
            killed = busiest(tiny_stack.denoisers)
            killed.process.kill()
        if event.HasField("image"):
            image = event.image.data
        if event.HasField("done"):
            replayed = event.done.timings.num_replayed_steps
    assert killed is not None
    await asyncio.to_thread(bring_back, killed)
    assert replayed >= 1
    assert image == undisturbed.images[0].data


@pytest.mark.parametrize("kind", KINDS)
async def test_a_kinds_image_depends_on_the_request_alone(tiny: AsyncClient, kind: str) -> None:
    options: dict[str, Any] = {"seed": 3, "num_inference_steps": 4, "guidance": kind}
    alone = await tiny.generate("a cat", **options)
    again, *_ = await asyncio.gather(
        tiny.generate("a cat", **options), *(tiny.generate(f"a dog {i}", **options) for i in range(3))
    )
    assert again.images[0].data == alone.images[0].data
    assert alone.parameters.guidance.kind != guidance_pb2.GUIDANCE_KIND_UNSPECIFIED


async def test_the_kinds_start_from_one_noise_and_end_differently(tiny: AsyncClient) -> None:
    images = [
        (await tiny.generate("a cat", seed=3, num_inference_steps=4, guidance=kind)).images[0].data
        for kind in KINDS
    ]
    assert len(set(images)) == len(KINDS)


@pytest.mark.parametrize("kind", ["clip", "noised-clip"])
async def test_a_scale_of_nought_is_no_guidance(tiny: AsyncClient, kind: str) -> None:
    none = await tiny.generate("a cat", seed=3, num_inference_steps=4, guidance="none")
    made = await tiny.generate("a cat", seed=3, num_inference_steps=4, guidance=kind, clip_guidance_scale=0.0)
    assert made.images[0].data == none.images[0].data


@pytest.mark.parametrize("scheduler", SCHEDULERS)
async def test_every_sampler_takes_clip_guidance(tiny: AsyncClient, scheduler: str) -> None:
    """What it does to each is in tests/unit/test_guidance.py: here it goes through the services."""
    options: dict[str, Any] = {
        "seed": 3,
        "num_inference_steps": 4,
        "scheduler": scheduler,
        "guidance": "clip",
    }
    guided = await tiny.generate("a cat", **options)
    weaker = await tiny.generate("a cat", **options, clip_guidance_scale=1.0)
    assert guided.images[0].data != weaker.images[0].data


def png(image: Image.Image) -> bytes:
    """A file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
async def test_image_to_image_and_inpainting_take_every_kind(tiny: AsyncClient, kind: str) -> None:
    picture = png(Image.linear_gradient("L").resize((64, 64)).convert("RGB"))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    options: dict[str, Any] = {"seed": 3, "num_inference_steps": 5, "guidance": kind, "image": picture}
    whole = await tiny.generate("a cat", **options, strength=0.6)
    part = await tiny.generate("a cat", **options, mask=png(mask))
    assert Image.open(io.BytesIO(whole.images[0].data)).size == (64, 64)
    assert whole.images[0].data != part.images[0].data


async def test_image_prompts_steer(tiny: AsyncClient) -> None:
    options: dict[str, Any] = {"seed": 3, "num_inference_steps": 3, "guidance": "clip"}
    red, blue = (png(Image.new("RGB", (50, 40), colour)) for colour in ("red", "blue"))
    images = [
        (await tiny.generate("a cat", **options, **more)).images[0].data
        for more in ({}, {"image_prompts": [red]}, {"image_prompts": [blue]},
                     {"image_prompts": [red, blue], "image_prompt_weights": [1.0, -1.0]})
    ]  # fmt: skip
    assert len(set(images)) == 4


async def test_outside_of_the_interval_nothing_is_guided(tiny: AsyncClient) -> None:
    """An interval without a step gives the prompt's own prediction, as a scale of 1 does."""
    options: dict[str, Any] = {"seed": 3, "num_inference_steps": 5}
    plain = await tiny.generate("a cat", **options, guidance_scale=1.0)
    never = await tiny.generate("a cat", **options, guidance_scale=8.0, guidance_interval=(0.0, 0.0))
    always = await tiny.generate("a cat", **options, guidance_scale=8.0)
    late = await tiny.generate("a cat", **options, guidance_scale=8.0, guidance_interval=(0.5, 1.0))
    assert never.images[0].data == plain.images[0].data
    assert len({plain.images[0].data, always.images[0].data, late.images[0].data}) == 3


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("guidance.clip.prompt_weights", {"clip_prompts": ["a", "b"], "clip_prompt_weights": [1.0]}),
        ("guidance.clip.image_prompts[0]", {"image_prompts": [b"no image"]}),
        ("guidance.clip.num_cutouts", {"num_cutouts": 1000}),
        ("guidance.rescale", {"guidance_rescale": 0.5}),
        ("guidance_scale", {"guidance_scale": 3.0}),
    ],
)
async def test_bad_guidance_names_field_limit_and_value(
    tiny: AsyncClient, field: str, options: dict[str, Any]
) -> None:
    with pytest.raises(SfumatoError) as error:
        await tiny.generate("a cat", num_inference_steps=2, guidance="clip", **options)
    assert (error.value.code, error.value.field) == ("INVALID_ARGUMENT", field)
    assert error.value.limit
    assert error.value.value


async def test_a_gradient_without_its_step_is_refused(tiny_stack: Stack) -> None:
    tensor = to_message(torch.zeros(1, 4, 8, 8))
    async with grpc.aio.insecure_channel(tiny_stack.denoisers[0].target) as channel:
        stub: Any = denoiser_pb2_grpc.DenoiserServiceStub(channel)
        call = stub.Denoise()
        opened = denoiser_pb2.OpenTrajectory(prompt_embeds=to_message(torch.zeros(1, 4, 32)))
        step = denoiser_pb2.DenoiseStep(step=1, latents=tensor, timestep=3)
        gradient = denoiser_pb2.DenoiseGradient(step=1, noise_pred_gradient=tensor)
        await call.write(denoiser_pb2.DenoiseRequest(open=opened))
        await call.write(denoiser_pb2.DenoiseRequest(step=step))
        assert (await call.read()).step == 1
        await call.write(denoiser_pb2.DenoiseRequest(gradient=gradient))
        with pytest.raises(grpc.aio.AioRpcError, match="keep_graph"):
            await call.read()
    async with grpc.aio.insecure_channel(tiny_stack.decoder.target) as channel:
        decoder: Any = decoder_pb2_grpc.DecoderServiceStub(channel)
        call = decoder.DecodeGradient()
        await call.write(decoder_pb2.DecodeGradientRequest(image_gradient=tensor))
        with pytest.raises(grpc.aio.AioRpcError, match="`latents`"):
            await call.read()


async def test_a_comparison_makes_what_each_setting_makes_alone(tiny: AsyncClient) -> None:
    shared: dict[str, Any] = {"seed": 5, "num_images": 2, "num_inference_steps": 3}
    settings: dict[str, Any] = {
        "none": {"guidance": "none"},
        "clip": {"guidance": "clip", "clip_guidance_scale": 50.0},
        "cfg": {"guidance": "cfg", "guidance_scale": 4.0},
    }
    together = await tiny.compare("a cat", settings, **shared)
    assert list(together.generations) == list(settings)
    for label, setting in settings.items():
        alone = await tiny.generate("a cat", **shared, **setting)
        made = together.generations[label]
        assert [(i.seed, i.data) for i in made.images] == [(i.seed, i.data) for i in alone.images]


async def test_a_comparison_names_the_setting_that_is_wrong(tiny: AsyncClient) -> None:
    settings: dict[str, Any] = {"a": {"guidance": "none"}, "b": {"guidance": "clip", "num_cutouts": 0}}
    with pytest.raises(SfumatoError) as error:
        await tiny.compare("a cat", settings)
    assert error.value.field == "settings[1].guidance.clip.num_cutouts"
    with pytest.raises(SfumatoError, match="settings must be 1 to 16"):
        await tiny.compare("a cat", {})
