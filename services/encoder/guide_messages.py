"""GuideImage and GuideLatents requests to domain values, and the answers back."""

import math

import torch
from sfumato_protos.v1 import encoder_pb2

from sfumato.common.errors import InvalidArgument, ResourceExhausted
from sfumato.common.tensors import check_finite, from_message, to_message
from sfumato.encoder.guide import Guided, ImageObjective, Targets

MAX_CUTOUTS = 128
MAX_CUT_POWER = 16.0


def targets_of(message: encoder_pb2.GuideTargets, embedding_size: int, max_targets: int) -> Targets:
    """Checked targets.

    Raises:
        InvalidArgument, ResourceExhausted: with field, limit and value.
    """
    field, limit = "targets.embeddings", max_targets * embedding_size
    embeddings = from_message(message.embeddings, field, (None, embedding_size), limit)
    check_finite(embeddings, field)
    if len(message.weights) != len(embeddings):
        limit_text = f"as many as targets, {len(embeddings)}"
        raise InvalidArgument("targets.weights", limit_text, len(message.weights))
    for index, weight in enumerate(message.weights):
        finite(weight, f"targets.weights[{index}]")
    return Targets(embeddings, torch.tensor(list(message.weights), dtype=torch.float64))


def image_of(request: encoder_pb2.GuideImageRequest, max_pixels: int) -> torch.Tensor:
    """The checked image [1, 3, height, width]."""
    image = from_message(request.image, "image", (1, 3, None, None), 3 * max_pixels)
    check_finite(image, "image")
    return image


def objective_of(request: encoder_pb2.GuideImageRequest) -> ImageObjective:
    """The checked options."""
    if request.num_cutouts < 1:
        raise InvalidArgument("num_cutouts", "at least 1", request.num_cutouts)
    if request.num_cutouts > MAX_CUTOUTS:
        raise ResourceExhausted("num_cutouts", f"at most {MAX_CUTOUTS}", request.num_cutouts)
    if not 0 < request.cut_power <= MAX_CUT_POWER:
        raise InvalidArgument("cut_power", f"above 0, up to {MAX_CUT_POWER:g}", request.cut_power)
    return ImageObjective(
        num_cutouts=request.num_cutouts,
        cut_power=request.cut_power,
        seed=request.seed,
        similarity_scale=finite(request.similarity_scale, "similarity_scale"),
        tv_scale=finite(request.tv_scale, "tv_scale"),
        range_scale=finite(request.range_scale, "range_scale"),
    )


def finite(value: float, field: str) -> float:
    """The value, or InvalidArgument where it is NaN or infinite."""
    if not math.isfinite(value):
        raise InvalidArgument(field, "finite", value)
    return value


def image_response(guided: Guided) -> encoder_pb2.GuideImageResponse:
    """The answer to GuideImage."""
    return encoder_pb2.GuideImageResponse(
        similarity=guided.similarity,
        total_variation=guided.total_variation,
        range=guided.range,
        image_gradient=to_message(guided.gradient),
    )


def latents_response(guided: Guided) -> encoder_pb2.GuideLatentsResponse:
    """The answer to GuideLatents."""
    return encoder_pb2.GuideLatentsResponse(
        similarity=guided.similarity, latents_gradient=to_message(guided.gradient)
    )
