"""One request from parameters to images: text in, trajectories, images out."""

import asyncio
import functools
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from sfumato.common.errors import DeadlineExceeded
from sfumato.common.linear_steps import MAX_STEPS
from sfumato.gateway.attention_maps import AttentionWatch
from sfumato.gateway.clip_gradient import Targets, embed_targets
from sfumato.gateway.conditioning import EncodedTexts, conditioning_of
from sfumato.gateway.events import Attended, Event, Finished, Started, Stepped
from sfumato.gateway.masks import latent_mask
from sfumato.gateway.model_services import Services
from sfumato.gateway.pace import Pace
from sfumato.gateway.parameters import FamilyInfo, Parameters
from sfumato.gateway.row_steps import num_evaluations
from sfumato.gateway.schedules import Schedule, schedule_of
from sfumato.gateway.stages import IMAGES, Seconds, stage
from sfumato.gateway.steering import NoisePred, Steering, mix
from sfumato.gateway.trajectory import Source, Step, StepRuns, sample

MAX_RUN_SECONDS = 1.0  # of steps that go together, by the time of one: so much is lost with a denoiser
FIRST_RUN_STEPS = 2  # where it is not known


@dataclass
class Generation:
    """Runs one request."""

    parameters: Parameters
    family: FamilyInfo
    services: Services
    max_input_pixels: int
    pace: Pace = field(default_factory=Pace)
    row_steps: int = 0  # its cost
    deadline: float = math.inf  # by time.monotonic, before which what there is goes out as partial
    seconds: Seconds = field(default_factory=Seconds)

    async def events(self) -> AsyncIterator[Event]:
        """Started, then steps and images as they come, then the timings."""
        start = time.perf_counter()
        p = self.parameters
        num_steps = num_evaluations(p, self.family)
        with self.seconds.add_to("encode_text"):
            texts = p.conditioning_texts
            encoded = await self.services.encode_text(texts, p.adapter)
            clip = p.guidance.clip
            gradients = self.services.gradients
            targets = await embed_targets(clip, gradients, p.guidance.noised) if clip else None
        source = await self._source() if p.image else None
        schedule = await schedule_of(p, self.family.scheduler_config)
        yield Started(num_steps, cut_warnings(texts, encoded, self.family))
        # Bounded, so that a slow reader slows its own request and nothing piles up.
        queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue(maxsize=64)
        runs = asyncio.gather(
            *(self._image(i, schedule, encoded, targets, source, queue) for i in range(p.num_images))
        )
        feeder = asyncio.ensure_future(_end(runs, queue))
        try:
            while (event := await queue.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            runs.cancel()
            feeder.cancel()
            await asyncio.gather(runs, feeder, return_exceptions=True)
        self.seconds.total = time.perf_counter() - start
        yield self.seconds

    async def _source(self) -> Source:
        p = self.parameters
        mask = None
        if p.mask:
            factor = self.family.vae_scale_factor
            mask = await asyncio.to_thread(
                latent_mask, p.mask, p.image, p.width, p.height, factor, self.max_input_pixels
            )
        with self.seconds.add_to("encode_image"):
            mean, std = await self.services.encode_image(p.image, p.width, p.height)
        return Source(mean, std, mask)

    async def _image(
        self,
        index: int,
        schedule: Schedule,
        encoded: EncodedTexts,
        targets: Targets | None,
        source: Source | None,
        queue: "asyncio.Queue[Event | BaseException | None]",
    ) -> None:
        p = self.parameters
        seed = p.seed + index
        denoiser = self.services.open_trajectory(conditioning_of(encoded, p, self.family))
        watch: AttentionWatch | None = None
        noise_pred: NoisePred = denoiser.noise_pred
        if p.attention is not None:
            watch = AttentionWatch(
                denoiser, p.prompt_row, encoded.words[p.prompt_row], p.attention.aggregation
            )
            noise_pred = watch.noise_pred
        gradients = self.services.gradients
        decoding = gradients.open_decoding() if targets and not p.guidance.noised else None
        steering = Steering(p, seed, noise_pred, denoiser, targets, gradients, decoding)
        last: Step | None = None
        digests: list[bytes] = []
        runs = None if watch else StepRuns(self._unseen, functools.partial(mix, p), denoiser.run)
        steps = sample(p, seed, self.family, source, steering, schedule, runs)
        cost = self.row_steps / (p.num_images * num_evaluations(p, self.family))
        end = self.pace.last_moment(self.deadline, p.num_images)
        paced = self.pace.paced(steps, denoiser, pace_key(p, self.family), cost, end, num_steps_of)
        try:
            with self.seconds.add_to("denoise"):
                async for step in paced:
                    last = step
                    digests += step.latents_digests
                    done = step.index + 1
                    preview = b""
                    if p.preview_interval_steps and done % p.preview_interval_steps == 0:
                        preview = await self._preview(step)
                    if preview or p.shows_progress(done, step.num_steps):
                        await queue.put(Stepped(index, done, step.num_steps, preview))
                    if watch and p.attention and p.attention.is_due(done, step.num_steps):
                        words = [word.text for word in watch.words]
                        await queue.put(Attended(index, done, step.num_steps, words, watch.average()))
        finally:
            await paced.aclose()
            self.seconds.num_replayed_steps += denoiser.num_replayed_steps
            await denoiser.close()
            if decoding is not None:
                await decoding.close()
        if last is None:
            raise DeadlineExceeded("the deadline left no time for the first step; give more")
        done = last.index + 1
        latents = last.latents if done == last.num_steps else last.predicted_x0()
        start = time.perf_counter()
        with self.seconds.add_to("decode"):
            data = await self.services.decode(latents, p.image_format)
        self.pace.add_decode(time.perf_counter() - start)
        IMAGES.labels(p.guidance.kind, p.scheduler).inc()
        await queue.put(Finished(index, seed, data, done, last.num_steps, tuple(digests)))

    def _unseen(self, index: int, num_steps: int) -> int:
        """How many steps from `index` on may be one run: nobody looks, or acts, in between."""
        p = self.parameters
        if p.guidance.clip is not None or p.guidance.rescale or math.isfinite(self.deadline):
            return 1
        shown = (n for n in (p.preview_interval_steps, p.progress_interval_steps) if n)
        next_shown = min((n - index % n for n in shown), default=num_steps)
        seconds = self.pace.step_seconds(pace_key(p, self.family))
        allowed = max(1, int(MAX_RUN_SECONDS / seconds)) if seconds else FIRST_RUN_STEPS
        return min(next_shown, allowed, MAX_STEPS, num_steps - index)

    async def _preview(self, step: Step) -> bytes:
        x0, image_format = step.predicted_x0(), self.parameters.image_format
        projection = self.family.preview_projection
        if projection is None or self.parameters.preview_kind == "decoded":
            with stage("decode"):
                return await self.services.decode(x0, image_format)
        with stage("preview"):
            return await self.services.preview(x0, projection, image_format)


def pace_key(p: Parameters, family: FamilyInfo) -> tuple[str, int, int, str]:
    """What the time of a step depends on: family, latents' height and width, kind of guidance."""
    factor = family.vae_scale_factor
    return family.name, p.height // factor, p.width // factor, p.guidance.kind


def num_steps_of(step: Step) -> int:
    """How many steps are done with it."""
    return len(step.latents_digests)


def cut_warnings(texts: list[str], encoded: EncodedTexts, family: FamilyInfo) -> list[str]:
    """Says of each text whether it was cut."""
    return [
        f"{count} tokens beyond the family's {family.max_tokens} were cut from {text!r:.60}"
        for text, count in zip(texts, encoded.num_truncated, strict=True)
        if count
    ]


async def _end(
    runs: "asyncio.Future[list[None]]", queue: "asyncio.Queue[Event | BaseException | None]"
) -> None:
    """Puts the end, or the first failure, behind the last event."""
    try:
        await runs
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)
