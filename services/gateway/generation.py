"""One request from parameters to images: text in, trajectories, images out."""

import asyncio
import functools
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from sfumato.common.errors import DeadlineExceeded
from sfumato.common.linear_steps import MAX_STEPS, LinearRun, RunResult
from sfumato.gateway.alignment import AttentionControl
from sfumato.gateway.attention_maps import AttentionWatch, AttentiveDenoiser
from sfumato.gateway.clip_gradient import ClipServices, DifferentiableDenoiser, Targets, embed_targets
from sfumato.gateway.conditioning import Conditioning, EncodedTexts, conditioning_of
from sfumato.gateway.masks import latent_mask
from sfumato.gateway.pace import Pace
from sfumato.gateway.parameters import FamilyInfo, Parameters
from sfumato.gateway.prompt_to_prompt import EditingDenoiser
from sfumato.gateway.row_steps import num_evaluations
from sfumato.gateway.schedules import Schedule, schedule_of
from sfumato.gateway.stages import IMAGES, Seconds, stage
from sfumato.gateway.steering import NoisePred, Steering, mix
from sfumato.gateway.trajectory import Source, Step, StepRuns, sample

MAX_RUN_SECONDS = 1.0  # of steps that go together, by the time of one: so much is lost with a denoiser
FIRST_RUN_STEPS = 2  # where it is not known


class Denoiser(AttentiveDenoiser, DifferentiableDenoiser, EditingDenoiser, Protocol):
    """An open trajectory at a denoiser."""

    num_replayed_steps: int

    async def noise_pred(
        self,
        step: int,
        latents: torch.Tensor,
        timestep: float,
        *,
        rows: Sequence[int] = (),
        keep_graph: bool = False,
    ) -> torch.Tensor:
        """[rows, C, h, w] for one latent [1, C, h, w]; rows: of the conditioning, none named: all."""

    async def run(self, step: int, run: LinearRun) -> RunResult:
        """Steps in a row, from `step` on."""

    async def close(self) -> None:
        """Frees what the stream holds."""


class Services(Protocol):
    """The model services as a generation sees them."""

    @property
    def gradients(self) -> ClipServices:
        """What CLIP guidance asks of encoder and decoder."""

    async def encode_text(self, texts: list[str], adapter: str = "") -> EncodedTexts:
        """The conditioning of each text, and its words; adapter: a LoRA adapter's name, or none."""

    async def encode_image(self, image: bytes, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the image's latents."""

    async def decode(self, latents: torch.Tensor, image_format: str) -> bytes:
        """The encoded image."""

    async def preview(self, latents: torch.Tensor, projection: torch.Tensor, image_format: str) -> bytes:
        """About the same, by the family's projection alone."""

    def open_trajectory(
        self, conditioning: Conditioning, control: AttentionControl | None = None
    ) -> Denoiser:
        """A stream for one trajectory; control: for an edit's."""


@dataclass(frozen=True)
class Started:
    """The request is accepted: so many steps an image, and what the user should know."""

    num_steps: int
    warnings: list[str]


@dataclass(frozen=True)
class Stepped:
    """A step of an image is done; preview is an encoded image or empty."""

    image_index: int
    step: int
    num_steps: int
    preview: bytes = b""


@dataclass(frozen=True)
class Attended:
    """The attention maps [words, h, w] of an image over the steps done so far."""

    image_index: int
    step: int
    num_steps: int
    words: list[str]
    maps: torch.Tensor


@dataclass(frozen=True)
class Finished:
    """An image is done; partial where `step` is below `num_steps`: the x0 that its last step predicted."""

    image_index: int
    seed: int
    data: bytes
    step: int = 0
    num_steps: int = 0
    latents_digests: tuple[bytes, ...] = ()  # after each step


Event = Started | Stepped | Attended | Finished | Seconds


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
        end = self._last_moment()
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

    def _last_moment(self) -> float:
        """When sampling has to stop, by time.monotonic."""
        if math.isinf(self.deadline):
            return math.inf
        left = self.deadline - time.monotonic()
        return self.deadline - self.pace.reserve_seconds(self.parameters.num_images, left)

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
