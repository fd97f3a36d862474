"""Defaults and limits of a request."""

import math
from typing import Any

import pytest

from sfumato.common.errors import InvalidArgument, SfumatoError
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.parameters import FamilyInfo, resolve

FAMILY = FamilyInfo("families/f", 16, 8, 8, 1.0, 256 * 256, 40, {})
SETTINGS = GatewaySettings()


def test_defaults_are_the_documented_ones() -> None:
    p = resolve({"prompt": "a cat"}, FAMILY, SETTINGS)
    assert (p.width, p.height, p.num_inference_steps, p.guidance_scale) == (64, 64, 30, 5.0)
    assert (p.scheduler, p.num_images, p.image_format) == ("dpmpp_2m", 1, "PNG")


def test_two_requests_without_a_seed_get_different_ones() -> None:
    seeds = {resolve({"prompt": "a"}, FAMILY, SETTINGS).seed for _ in range(8)}
    assert len(seeds) > 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""), ("prompt", "  "), ("prompt", "x" * 1001), ("negative_prompt", "x" * 1001),
        ("num_inference_steps", 0), ("num_inference_steps", 10_000), ("num_images", 0), ("num_images", 9),
        ("guidance_scale", math.nan), ("guidance_scale", math.inf), ("guidance_scale", -1), ("seed", -1),
        ("width", 65), ("width", 0), ("height", -8), ("scheduler", "best"), ("preview_interval_steps", -1),
        ("progress_interval_steps", -1), ("progress_interval_steps", 1001),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as error:
        resolve({"prompt": "a cat", field: value}, FAMILY, SETTINGS)
    assert error.value.field == field
    assert error.value.limit
    assert error.value.value


@pytest.mark.parametrize("side", [4096, 2**31 - 8])
def test_an_area_beyond_the_limit_says_the_limit(side: int) -> None:
    with pytest.raises(InvalidArgument, match="65536 pixels"):
        resolve({"prompt": "a", "width": side, "height": side}, FAMILY, SETTINGS)


@pytest.mark.parametrize("given", [{"mask": b"x"}, {"strength": 0.5}, {"image": b"x", "strength": 0.0}])
def test_options_of_an_image_need_an_image(given: dict[str, Any]) -> None:
    with pytest.raises(SfumatoError):
        resolve({"prompt": "a", **given}, FAMILY, SETTINGS)


def test_attention_maps_of_a_family_without_cross_attention_are_refused() -> None:
    assert resolve({"prompt": "a"}, FAMILY, SETTINGS).attention is None
    with pytest.raises(InvalidArgument, match="no cross-attention") as error:
        resolve({"prompt": "a", "attention_maps": {}}, FAMILY, SETTINGS)
    assert error.value.field == "attention_maps"
