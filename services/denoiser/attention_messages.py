"""Attention's part of the denoiser's messages."""

from collections.abc import Sequence

import torch
from sfumato_protos.v1 import denoiser_pb2

from sfumato.common.errors import InvalidArgument
from sfumato.common.tensors import check_finite, from_message, to_message
from sfumato.denoiser.attention import LayerMaps
from sfumato.denoiser.probes import Control

MAX_WEIGHT = 2.0


def control_of(message: denoiser_pb2.AttentionControl, tokens: int) -> Control:
    """The control's tensors, checked."""
    shapes = {"mapper": (tokens, tokens), "inject": (tokens,), "weights": (tokens,)}
    tensors = {}
    for name, shape in shapes.items():
        field = f"open.attention_control.{name}"
        tensors[name] = from_message(getattr(message, name), field, shape, tokens * tokens)
        check_finite(tensors[name], field)
    largest = float(tensors["weights"].abs().max())
    if largest > MAX_WEIGHT:
        raise InvalidArgument("open.attention_control.weights", f"-{MAX_WEIGHT:g} to {MAX_WEIGHT:g}", largest)
    return Control(**tensors)


def places_of(rows: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Where among the step's rows those are whose attention is wanted."""
    if not set(wanted) <= set(rows):
        raise InvalidArgument("step.attention_rows", f"some of the step's rows {list(rows)}", list(wanted))
    return [list(rows).index(row) for row in wanted]


def attention_messages(maps: list[list[LayerMaps]]) -> list[denoiser_pb2.CrossAttention]:
    """The rows' maps, by resolution."""
    return [
        denoiser_pb2.CrossAttention(
            num_layers=level[0].num_layers, maps=to_message(torch.stack([row.maps for row in level]))
        )
        for level in zip(*maps, strict=True)
    ]
