"""Prompt-to-prompt and DDIM inversion in one process, with the denoiser's own UNet."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.common.family import read_json
from sfumato.denoiser.attention import AttentionUNet
from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.engine_torch import TorchUNet
from sfumato.denoiser.probes import Control
from sfumato.encoder.engine_torch import TextEncoder
from sfumato.gateway.alignment import align, column_weights
from sfumato.gateway.attention_maps import LayerMaps, Word
from sfumato.gateway.inversion import invert
from sfumato.gateway.prompt_to_prompt import EditSchedule, LocalBlend, blend_level, keep_source, sample_edit
from sfumato.gateway.sampling import make_scheduler, set_timesteps

CPU = torch.device("cpu")
STEPS = 10


class Family:
    """A family's models, and an edit's denoiser without the services."""

    def __init__(self, folder: Path) -> None:
        self.config = read_json(folder, "scheduler", "scheduler_config.json")
        self.unet = TorchUNet(folder, CPU)
        self.attention = AttentionUNet(self.unet.model, CPU)
        self.text = TextEncoder(folder, CPU)
        self.channels = int(self.unet.config.in_channels)

    def latents(self) -> torch.Tensor:
        """Noise by a seed."""
        return torch.randn(1, self.channels, 8, 8, generator=torch.Generator().manual_seed(5))

    def scheduler(self, num_steps: int = STEPS) -> Any:
        """DDIM, ready."""
        scheduler = make_scheduler("ddim", self.config)
        set_timesteps(scheduler, num_steps, 1.0)
        return scheduler

    def words(self, text: str) -> list[Word]:
        """As the encoder says them."""
        return [Word(word.text, word.start_token, word.end_token) for word in self.text.words([text])[0]]

    async def edited(self, source: str, target: str, kind: str = "refine", **options: Any) -> torch.Tensor:
        """[2, C, 8, 8] after the last step."""
        weights = column_weights(options.pop("weights", {}), self.words(target), self.text.max_tokens)
        control = align(kind, self.words(source), self.words(target), weights)
        embeds = self.text.encode(["", source, target]).prompt_embeds
        blend = options.pop("blend", None)
        schedule = EditSchedule(3.0, options.pop("cross", 0.8), options.pop("own", 0.4))
        denoiser = InProcess(self, embeds, Control(control.mapper, control.inject, control.weights))
        async for step in sample_edit(schedule, self.scheduler(), self.latents(), denoiser, blend):
            result = step.latents
        return result


class InProcess:
    """prompt_to_prompt.EditingDenoiser on the models themselves."""

    def __init__(self, family: Family, embeds: torch.Tensor, control: Control) -> None:
        self.family, self.embeds, self.control = family, embeds, control

    async def edit(
        self, step: int, latents: torch.Tensor, timestep: float, cross: bool, own: bool, attention: bool
    ) -> tuple[torch.Tensor, list[list[LayerMaps]]]:
        """As the denoiser's servicer does it."""
        null = [
            self.family.unet.noise_pred(half, timestep, Conditioning(self.embeds[:1]))
            for half in latents.split(1)
        ]
        pair, maps = self.family.attention.edit(
            latents, timestep, Conditioning(self.embeds[1:]), self.control, cross, own
        )
        levels = [[LayerMaps(level.num_layers, level.maps) for level in row] for row in maps]
        return torch.cat([*null, pair]), levels


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the denoiser has it; more threads only wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tiny_family: Path) -> Family:
    """Random weights."""
    return Family(tiny_family)


@pytest.fixture(scope="module")
def emoji(emoji_family: Path) -> Family:
    """Trained weights."""
    return Family(emoji_family)


@pytest.mark.parametrize("kind", ["replace", "refine"])
async def test_the_same_prompt_gives_the_source_exactly(tiny: Family, kind: str) -> None:
    source, target = await tiny.edited("a cat", "a cat", kind)
    assert torch.equal(source, target)


async def test_weight_one_is_no_weight_and_others_are(tiny: Family) -> None:
    plain = await tiny.edited("a cat", "a red cat")
    assert torch.equal(plain, await tiny.edited("a cat", "a red cat", weights={"red": 1.0}))
    stronger = await tiny.edited("a cat", "a red cat", weights={"red": 2.0})
    assert torch.equal(plain[0], stronger[0])
    assert not torch.allclose(plain[1], stronger[1], atol=1e-3)


async def test_injected_attention_holds_the_target_nearer_to_the_source(emoji: Family) -> None:
    def distance(both: torch.Tensor) -> float:
        return float((both[0] - both[1]).square().mean().sqrt())

    prompts = "a cat on a blue background", "a dog on a blue background"
    free = await emoji.edited(*prompts, "replace", cross=0.0, own=0.0)
    held = await emoji.edited(*prompts, "replace", cross=1.0, own=1.0)
    assert 0 < distance(held) < distance(free)


async def test_the_source_of_an_edit_is_what_sampling_alone_gives(emoji: Family) -> None:
    both = await emoji.edited("a cat", "a dog", "replace")
    embeds = emoji.text.encode(["", "a cat"]).prompt_embeds
    scheduler, latents = emoji.scheduler(), emoji.latents()
    for timestep in scheduler.timesteps:
        null, text = emoji.unet.noise_pred(latents, float(timestep), Conditioning(embeds)).split(1)
        latents = scheduler.step(null + 3.0 * (text - null), timestep, latents).prev_sample
    assert torch.allclose(both[:1], latents, atol=1e-4)


@pytest.mark.parametrize("which", ["tiny", "emoji"])
async def test_an_inverted_latent_comes_back_at_guidance_one(
    which: str, request: pytest.FixtureRequest
) -> None:
    """Within 1 % of the latents' root mean square; without the fixed point it is 14 % on the emoji family."""
    family: Family = request.getfixturevalue(which)
    embeds = family.text.encode(["a cat"]).prompt_embeds
    image = 0.9 * family.latents()

    async def denoise(call: int, latents: torch.Tensor, timestep: float) -> torch.Tensor:
        return family.unet.noise_pred(latents, timestep, Conditioning(embeds))

    scheduler = family.scheduler()
    steps = [latents async for latents in invert(scheduler, image, denoise)]
    assert len(steps) == STEPS
    latents = steps[-1]
    for timestep in scheduler.timesteps:
        noise_pred = await denoise(0, latents, float(timestep))
        latents = scheduler.step(noise_pred, timestep, latents).prev_sample
    error = float((latents - image).square().mean().sqrt() / image.square().mean().sqrt())
    assert error < 0.01


def test_the_blend_keeps_the_source_where_no_word_is() -> None:
    maps = torch.zeros(6, 8, 8)
    maps[2, :, :2] = 1.0  # token 2, "cat", on the left
    blend = LocalBlend([Word("cat", 2, 3)], [])
    blend.see([[LayerMaps(1, maps)], [LayerMaps(1, maps)]])
    mask = blend.mask(8, 8)
    assert mask[0, 0, :, 0].all()
    assert not mask[0, 0, :, 5:].any()
    both = torch.stack([torch.zeros(4, 8, 8), torch.ones(4, 8, 8)])
    kept = keep_source(both, mask)
    assert torch.equal(kept[:1], both[:1])
    assert kept[1, :, :, 0].all()
    assert not kept[1, :, :, 5:].any()


async def test_a_blend_by_words_of_neither_prompt_leaves_the_source(tiny: Family) -> None:
    whole = await tiny.edited("a cat", "a dog")
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)
    kept = await tiny.edited("a cat", "a dog", blend=LocalBlend([], []))
    assert torch.equal(kept[0], kept[1])


def test_the_blend_reads_the_largest_level_of_at_most_sixteen() -> None:
    levels = [LayerMaps(1, torch.zeros(3, side, side)) for side in (32, 16, 8)]
    assert blend_level(levels).maps.shape[-1] == 16
    assert blend_level(levels[:1]).maps.shape[-1] == 32
