"""One prompt edit from parameters to its two images."""

import asyncio
import contextlib
import copy
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from sfumato.common.errors import DeadlineExceeded, InvalidArgument
from sfumato.gateway.alignment import AttentionControl, align, column_weights, places_of, resolve_kind
from sfumato.gateway.conditioning import EncodedTexts, conditioning_of
from sfumato.gateway.edit_parameters import EditParameters
from sfumato.gateway.events import Finished, Stepped
from sfumato.gateway.generation import cut_warnings, pace_key
from sfumato.gateway.inversion import invert
from sfumato.gateway.model_services import Denoiser, Services
from sfumato.gateway.pace import Key, Pace
from sfumato.gateway.parameters import FamilyInfo
from sfumato.gateway.prompt_to_prompt import EditStep, LocalBlend, sample_edit
from sfumato.gateway.row_steps import EDIT_ROWS, sized
from sfumato.gateway.schedules import schedule_of
from sfumato.gateway.stages import IMAGES, Seconds

T = TypeVar("T")
SOURCE, TARGET = 1, 2  # rows of the conditioning, behind the null text


@dataclass(frozen=True)
class EditStarted:
    """The edit is accepted, its kind resolved: so many steps, and what the user should know."""

    parameters: EditParameters
    num_steps: int
    warnings: list[str]


EDIT, INVERSION = "prompt_to_prompt", "inversion"  # kinds of steps, each with a pace of its own

EditEvent = EditStarted | Stepped | Finished | Seconds


@dataclass
class PromptEdit:
    """Runs one edit."""

    parameters: EditParameters
    family: FamilyInfo
    services: Services
    pace: Pace = field(default_factory=Pace)
    deadline: float = math.inf  # by time.monotonic, before which what there is goes out as partial
    seconds: Seconds = field(default_factory=Seconds)

    async def events(self) -> AsyncIterator[EditEvent]:
        """EditStarted, then the steps, both images, and the timings."""
        start = time.perf_counter()
        p = self.parameters
        # An edit's source starts from noise, or from the inverted image: never from part of the way.
        schedule = await schedule_of(replace(p.source, image=b""), self.family.scheduler_config)
        scheduler, timesteps = copy.deepcopy(schedule.scheduler), schedule.timesteps
        with self.seconds.add_to("encode_text"):
            texts = [p.null_text, p.source.prompt, p.target_prompt]
            encoded = await self.services.encode_text(texts, p.source.adapter)
        kind = resolve_kind(p.kind, encoded.words[SOURCE], encoded.words[TARGET])
        control, blend = self._control(kind, encoded), self._blend(encoded)
        num_steps = len(timesteps) * (2 if p.source.image else 1)
        yield EditStarted(replace(p, kind=kind), num_steps, cut_warnings(texts, encoded, self.family))
        done = 0
        end = self.pace.last_moment(self.deadline, 2)
        latents = self._noise(scheduler.init_noise_sigma)
        if p.source.image:
            async with contextlib.aclosing(self._inversion(scheduler, encoded, end)) as inversion:
                async for noisier in inversion:
                    latents = noisier
                    done += 1
                    if p.source.shows_progress(done, num_steps):
                        yield Stepped(1, done, num_steps)
        denoiser = self.services.open_trajectory(conditioning_of(encoded, p.source, self.family), control)
        last: EditStep | None = None
        try:
            with self.seconds.add_to("denoise"):
                steps = sample_edit(p.schedule, scheduler, latents, denoiser, blend)
                async with contextlib.aclosing(self._paced(steps, denoiser, EDIT, EDIT_ROWS, end)) as paced:
                    async for stepped in paced:
                        last = stepped
                        done += 1
                        if p.source.shows_progress(done, num_steps):
                            yield Stepped(1, done, num_steps)
        finally:
            self.seconds.num_replayed_steps += denoiser.num_replayed_steps
            await denoiser.close()
        if last is None:
            raise DeadlineExceeded("the deadline left no time for the first step of the edit; give more")
        both = last.latents if done == num_steps else last.predicted_x0
        start_of_decode = time.perf_counter()
        with self.seconds.add_to("decode"):
            images = await asyncio.gather(
                *(self.services.decode(half, p.source.image_format) for half in both.split(1))
            )
        self.pace.add_decode(time.perf_counter() - start_of_decode)
        for index, data in enumerate(images):
            IMAGES.labels("prompt_to_prompt", p.source.scheduler).inc()
            yield Finished(index, p.source.seed, data, done, num_steps)
        self.seconds.total = time.perf_counter() - start
        yield self.seconds

    def _control(self, kind: str, encoded: EncodedTexts) -> AttentionControl:
        source, target = encoded.words[SOURCE], encoded.words[TARGET]
        weights = column_weights(self.parameters.weights, target, encoded.prompt_embeds.shape[1])
        return align(kind, source, target, weights)

    def _blend(self, encoded: EncodedTexts) -> LocalBlend | None:
        phrases = self.parameters.blend_words
        if not phrases:
            return None
        prompts = encoded.words[SOURCE], encoded.words[TARGET]
        for phrase in phrases:
            if not any(places_of(phrase, words) for words in prompts):
                raise InvalidArgument("blend_words", "words of prompt or target_prompt", phrase)
        source, target = ([word for phrase in phrases for word in places_of(phrase, w)] for w in prompts)
        return LocalBlend(source, target)

    def _noise(self, sigma: float) -> torch.Tensor:
        """Where a source without an image starts: as trajectory.Start has it."""
        p, factor = self.parameters.source, self.family.vae_scale_factor
        shape = (1, self.family.latent_channels, p.height // factor, p.width // factor)
        return torch.randn(shape, generator=torch.Generator().manual_seed(p.seed)) * sigma

    async def _inversion(
        self, scheduler: object, encoded: EncodedTexts, end: float
    ) -> AsyncGenerator[torch.Tensor]:
        """The image's latents on their way to noise, as far as they come before `end`."""
        p = self.parameters.source
        with self.seconds.add_to("encode_image"):
            mean, _ = await self.services.encode_image(p.image, p.width, p.height)
        source = conditioning_of(encoded.select([SOURCE]), p, self.family)
        denoiser = self.services.open_trajectory(source)
        try:
            with self.seconds.add_to("denoise"):
                steps = invert(scheduler, mean * self.family.scaling_factor, denoiser.noise_pred)
                async with contextlib.aclosing(self._paced(steps, denoiser, INVERSION, 1, end)) as paced:
                    async for latents in paced:
                        yield latents
        finally:
            self.seconds.num_replayed_steps += denoiser.num_replayed_steps
            await denoiser.close()

    def _paced(
        self, steps: AsyncGenerator[T], denoiser: Denoiser, kind: str, rows: int, end: float
    ) -> AsyncGenerator[T]:
        """The steps of a kind, of so many rows each, that come before `end`, counted in the pace."""
        p = self.parameters
        cost = sized(rows, p.source, self.family)
        return self.pace.paced(steps, denoiser, edit_pace_key(p, self.family, kind), cost, end)


def edit_runs(p: EditParameters, family: FamilyInfo) -> list[tuple[Key, int]]:
    """What an edit's time depends on, for Pace.check."""
    kinds = [INVERSION, EDIT] if p.source.image else [EDIT]
    return [(edit_pace_key(p, family, kind), p.source.num_inference_steps) for kind in kinds]


def edit_pace_key(p: EditParameters, family: FamilyInfo, kind: str) -> Key:
    """As generation.pace_key."""
    name, height, width, _ = pace_key(p.source, family)
    return name, height, width, kind
