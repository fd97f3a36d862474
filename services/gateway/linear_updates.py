"""What a sampler's steps do, as numbers: read off diffusers' schedulers, not written down again.

A scheduler's step is linear in latents, predictions and noise unless it clips, thresholds or takes a variance
from the UNet, and it does the same at every element. So it is run once on unit vectors, one for each tensor
that it sees, and what comes out has the coefficients.
"""

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from sfumato.gateway.sampling import step_options

LATENTS, PREDICTION, NOISE, STATE = "latents", "prediction", "noise", "state"


class Key(NamedTuple):
    """A tensor of a trajectory: the latents before step i, step i's prediction, the i-th noise drawn, or what
    the sampler keeps for itself after step i.
    """

    kind: str
    number: int


Terms = tuple[tuple[Key, float], ...]  # tensors and their coefficients


@dataclass(frozen=True)
class Update:
    """One evaluation of the UNet, and what follows.

    Attributes:
        timestep: t.
        input_scale: what the latents are multiplied by for the UNet.
        num_draws: of standard normal noise that the scheduler makes in this step.
        sums: what is made of tensors that there are by then, in this order; the last is the next latents.
    """

    timestep: float
    input_scale: float
    num_draws: int
    sums: tuple[tuple[Key, Terms], ...]


def linear_updates(scheduler: Any, timesteps: torch.Tensor) -> tuple[Update, ...] | None:
    """What each of a scheduler's steps does; None where they are not linear.

    Args:
        scheduler: with its timesteps set; it is stepped through them.
        timesteps: those to run, the last of the scheduler's.
    """
    if not _is_linear(scheduler):
        return None
    options = step_options(scheduler, torch.Generator())
    units = _Units(4 * len(timesteps))
    updates = []
    for index, timestep in enumerate(timesteps):
        latents, prediction = units.make(Key(LATENTS, index)), units.make(Key(PREDICTION, index))
        input_scale = float(scheduler.scale_model_input(latents, timestep).sum())
        drawn = units.num_draws
        with units:
            after = scheduler.step(prediction, timestep, latents, **options, return_dict=False)[0]
        sums = [(Key(LATENTS, index + 1), units.terms(after))]
        # UniPC goes on from latents that it has corrected. Without a name they would be all tensors so far.
        kept = getattr(scheduler, "last_sample", None)
        if kept is not None:
            key = Key(STATE, index)
            sums.insert(0, (key, units.terms(kept)))
            scheduler.last_sample = units.make(key)
        updates.append(Update(float(timestep), input_scale, units.num_draws - drawn, tuple(sums)))
    return tuple(updates)


def _is_linear(scheduler: Any) -> bool:
    """Whether its steps neither clip nor threshold, nor take a variance from the UNet."""
    takes, config = inspect.signature(type(scheduler).__init__).parameters, scheduler.config
    clips = any(name in takes and config.get(name) for name in ("clip_sample", "thresholding"))
    return not clips and not str(config.get("variance_type", "")).startswith("learned")


class _Units(TorchFunctionMode):
    """Unit vectors [1, size, 1, 1]; as a context, noise that is drawn is the next one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_draws = 0
        self._size = size
        self._keys: list[Key] = []

    def make(self, key: Key) -> torch.Tensor:
        """The vector that stands for this tensor."""
        unit = torch.zeros(1, self._size, 1, 1, dtype=torch.float64)
        unit[0, len(self._keys)] = 1
        self._keys.append(key)
        return unit

    def terms(self, vector: torch.Tensor) -> Terms:
        """Which tensors it is made of."""
        values = vector.flatten()[: len(self._keys)].tolist()
        return tuple((key, value) for key, value in zip(self._keys, values, strict=True) if value)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.randn:
            return func(*args, **kwargs)
        self.num_draws += 1
        return self.make(Key(NOISE, self.num_draws - 1)).to(kwargs.get("dtype"))
