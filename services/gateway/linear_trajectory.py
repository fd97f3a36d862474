"""A trajectory whose sampler is linear: done step by step here, or in runs of steps by the denoiser."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import torch

from sfumato.common.linear_steps import LinearRun, LinearStep, RunResult, combined
from sfumato.gateway.linear_updates import LATENTS, NOISE, PREDICTION, Key, Update


@dataclass(frozen=True)
class Mix:
    """The prediction that the sampler takes: rows of the conditioning, none named: all, and their weights."""

    rows: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class RunEnd:
    """What a run left, beside the latents: of its last step what went into the UNet, and the prediction."""

    model_input: torch.Tensor
    prediction: torch.Tensor
    latents_digests: tuple[bytes, ...]  # after each step


class LinearTrajectory:
    """Holds the tensors that later steps are made of. The bits do not depend on how steps are put in runs.

    Attributes:
        latents: float32 [1, C, h, w], before the next step; may be replaced between steps.
    """

    def __init__(self, updates: Sequence[Update], latents: torch.Tensor, generator: torch.Generator) -> None:
        """generator: of the noise, which is drawn as diffusers does."""
        self.latents = latents
        self._updates = updates
        self._generator = generator
        self._num_draws = 0
        self._tensors: dict[Key, torch.Tensor] = {}  # latents of earlier steps, predictions, noise
        self._last_use: dict[Key, int] = {}
        for index, update in enumerate(updates):
            self._last_use.update((key, index) for _, terms in update.sums for key, _ in terms)

    def model_input(self, index: int) -> torch.Tensor:
        """What the UNet takes in step `index`, which is the next one."""
        return self.latents * self._updates[index].input_scale

    def step(self, index: int, prediction: torch.Tensor) -> None:
        """Does step `index` with the prediction [1, C, h, w] that the sampler is to take."""
        self._draw_noise(index)
        self._tensors |= {Key(LATENTS, index): self.latents, Key(PREDICTION, index): prediction}
        for made, terms in self._updates[index].sums:
            self._tensors[made] = combined((weight, self._tensors[key]) for key, weight in terms)
        self._go_on(index + 1)

    async def run(
        self, first: int, mixes: Sequence[Mix], denoise: Callable[[LinearRun], Awaitable[RunResult]]
    ) -> RunEnd:
        """Does as many steps as there are mixes at once, from step `first` on, which is the next one."""
        end, last = first + len(mixes), first + len(mixes) - 1
        for index in range(first, end):
            self._draw_noise(index)
        self._tensors = given = {Key(LATENTS, first): self.latents, **self._tensors}
        numbers = {key: number for number, key in enumerate(given)}
        steps = []
        for index, mix in enumerate(mixes, first):
            update = self._updates[index]
            numbers[Key(PREDICTION, index)] = len(numbers)
            sums = []
            for made, terms in update.sums:
                sums.append(tuple((numbers[key], weight) for key, weight in terms))
                numbers[made] = len(numbers)
            steps.append(LinearStep(update.timestep, update.input_scale, mix.rows, mix.weights, tuple(sums)))
        ends = (Key(LATENTS, last), Key(PREDICTION, last), Key(LATENTS, end))
        kept = [key for key in numbers if key not in given and self._last_use.get(key, -1) >= end]
        returned = list(dict.fromkeys((*ends, *kept)))
        tensors = torch.cat(list(given.values()))
        result = await denoise(LinearRun(tensors, tuple(steps), tuple(numbers[key] for key in returned)))
        self._tensors = {**given, **dict(zip(returned, result.tensors.split(1), strict=True))}
        model_input = self._tensors[ends[0]] * self._updates[last].input_scale
        prediction = self._tensors[ends[1]]
        self._go_on(end)
        return RunEnd(model_input, prediction, result.latents_digests)

    def _draw_noise(self, index: int) -> None:
        for _ in range(self._updates[index].num_draws):
            noise = torch.randn(self.latents.shape, generator=self._generator)
            self._tensors[Key(NOISE, self._num_draws)] = noise
            self._num_draws += 1

    def _go_on(self, index: int) -> None:
        """To before step `index`: what no later step takes is let go."""
        self.latents = self._tensors[Key(LATENTS, index)]
        self._tensors = {k: t for k, t in self._tensors.items() if self._last_use.get(k, -1) >= index}
        self._tensors.pop(Key(LATENTS, index), None)
