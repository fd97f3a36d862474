"""The families as ListFamilies shows them."""

from collections.abc import Sequence

from sfumato_protos.v1 import gateway_pb2

from sfumato.gateway.generate_messages import scheduler_value
from sfumato.gateway.guidance_messages import kind_value
from sfumato.gateway.model_replicas import Answer
from sfumato.gateway.parameters import FamilyInfo
from sfumato.gateway.sampling import SCHEDULERS
from sfumato.gateway.served_families import ServedFamilies

METHODS = ("text-to-image", "image-to-image", "inpainting")
ATTENTION_METHODS = ("attention-maps", "prompt-to-prompt")


def families_response(
    families: ServedFamilies, answers: Sequence[Answer], editing: Sequence[str], max_pixels: int
) -> gateway_pb2.ListFamiliesResponse:
    """Those that are served and could be, with memory as the replicas say.

    Args:
        families: of this gateway.
        answers: of the replicas.
        editing: methods of the editor, which has the default family.
        max_pixels: of an image that the gateway makes.
    """
    limits: dict[str, int] = {}
    loadable = frozenset.intersection(*(answer.loadable for answer in answers)) if answers else frozenset()
    for answer in answers:
        service = answer.replica.service
        limits[service] = min(answer.limit_bytes, limits.get(service, answer.limit_bytes))
    response = gateway_pb2.ListFamiliesResponse(
        loadable=sorted(loadable - {*families.names}), memory_limit_bytes=limits
    )
    for name in families.names:
        is_default = name == families.default
        family = family_message(families.info(name), editing if is_default else (), max_pixels)
        family.is_default = is_default
        for answer in answers:
            if answer.holds(name):
                family.memory_bytes[answer.replica.service] = answer.models[name].memory_bytes
        response.families.append(family)
    return response


def family_message(info: FamilyInfo, editing: Sequence[str], max_pixels: int) -> gateway_pb2.Family:
    """One family, and what it can do."""
    side = info.sample_size * info.vae_scale_factor
    attention = ATTENTION_METHODS if info.num_cross_attention_layers else ()
    return gateway_pb2.Family(
        name=info.name,
        methods=[*METHODS, *attention, *editing],
        schedulers=[scheduler_value(name) for name in SCHEDULERS],
        default_width=side,
        default_height=side,
        size_multiple=info.vae_scale_factor,
        max_pixels=min(max_pixels, info.max_pixels),
        max_tokens=info.max_tokens,
        guidance_kinds=[kind_value(kind) for kind in info.guidance_kinds],
        adapters=info.adapters,
    )
