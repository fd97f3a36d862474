"""The message of a run to its steps, checked."""

import math
from collections.abc import Iterable
from typing import Any

from sfumato_protos.v1 import denoiser_pb2

from sfumato.common.errors import InvalidArgument
from sfumato.common.linear_steps import MAX_STEPS, LinearRun, LinearStep, Sum
from sfumato.common.tensors import check_finite, from_message
from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.conditioning_messages import checked_rows

MAX_TENSORS = 64  # given, returned, or of a sum
MAX_SUMS = 2  # of a step


def run_of(
    request: denoiser_pb2.DenoiseRun, config: Any, conditioning: Conditioning, max_latent_area: int
) -> LinearRun:
    """The run.

    Args:
        request: the message.
        config: the UNet's.
        conditioning: of the stream.
        max_latent_area: latent height times width.

    Raises:
        InvalidArgument, ResourceExhausted: with field, limit and value.
    """
    if config.out_channels != config.in_channels:
        limit = f"left out for a UNet of {config.in_channels} channels that predicts {config.out_channels}"
        raise InvalidArgument("run", limit, "given")
    _check_count("run.steps", len(request.steps), 1, MAX_STEPS)
    _check_count("run.returned", len(request.returned), 0, MAX_TENSORS)
    shape = (None, config.in_channels, None, None)
    # The area before the product: tall tensors could hide in a short list.
    given = request.tensors.shape
    if len(given) == len(shape) and given[2] * given[3] > max_latent_area:
        raise InvalidArgument("run.tensors.shape", f"at most {max_latent_area} latent pixels", tuple(given))
    limit = MAX_TENSORS * config.in_channels * max_latent_area
    tensors = from_message(request.tensors, "run.tensors", shape, limit)
    _check_count("run.tensors", len(tensors), 1, MAX_TENSORS)
    check_finite(tensors, "run.tensors")
    steps, known = [], len(tensors)
    for index, step in enumerate(request.steps):
        field = f"run.steps[{index}]"
        rows = checked_rows(conditioning, step.rows, f"{field}.rows")
        if len(step.weights) != len(rows):
            raise InvalidArgument(f"{field}.weights", f"{len(rows)}, one a row", len(step.weights))
        _check_numbers(field, step.timestep, step.input_scale, *step.weights)
        _check_count(f"{field}.sums", len(step.sums), 1, MAX_SUMS)
        known += 1
        sums: list[Sum] = []
        for one in step.sums:
            sums.append(_sum(one, f"{field}.sums[{len(sums)}]", known))
            known += 1
        weights = tuple(step.weights)
        steps.append(LinearStep(step.timestep, step.input_scale, tuple(step.rows), weights, tuple(sums)))
    _check_places("run.returned", request.returned, known)
    return LinearRun(tensors, tuple(steps), tuple(request.returned))


def _sum(message: denoiser_pb2.LinearSum, field: str, known: int) -> Sum:
    _check_count(f"{field}.tensors", len(message.tensors), 1, MAX_TENSORS)
    if len(message.coefficients) != len(message.tensors):
        limit = f"{len(message.tensors)}, one a tensor"
        raise InvalidArgument(f"{field}.coefficients", limit, len(message.coefficients))
    _check_numbers(field, *message.coefficients)
    _check_places(f"{field}.tensors", message.tensors, known)
    return tuple(zip(message.tensors, message.coefficients, strict=True))


def _check_count(field: str, count: int, low: int, high: int) -> None:
    if not low <= count <= high:
        raise InvalidArgument(field, f"{low} to {high}", count)


def _check_places(field: str, numbers: Iterable[int], known: int) -> None:
    for number in numbers:
        if not 0 <= number < known:
            raise InvalidArgument(field, f"0 to {known - 1}, the tensors that there are by then", number)


def _check_numbers(field: str, *numbers: float) -> None:
    for number in numbers:
        if not math.isfinite(number):
            raise InvalidArgument(field, "finite numbers", number)
