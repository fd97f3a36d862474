"""What requests cost, against counts by hand."""

from typing import Any

import pytest

from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.edit_parameters import resolve_edit
from sfumato.gateway.parameters import resolve
from sfumato.gateway.row_steps import edit_row_steps, row_steps
from tests.unit.test_gateway_start import family


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_inference_steps": 10}, 20),  # the null text and the prompt
        ({"num_inference_steps": 10, "guidance_scale": 1.0}, 10),
        ({"num_inference_steps": 10, "num_images": 3}, 60),
        ({"num_inference_steps": 10, "scheduler": "heun"}, 38),  # two evaluations a step but the last
        ({"num_inference_steps": 10, "image": b"x", "strength": 0.5}, 10),
        ({"num_inference_steps": 10, "width": 32}, 10),  # half the family's area
        ({"num_inference_steps": 10, "guidance": {"kind": "clip"}}, 10 * (1 + 4 + 2)),
        ({"num_inference_steps": 10, "guidance": {"kind": "cfg_clip"}}, 10 * (2 + 4 + 4)),
        ({"num_inference_steps": 10, "guidance": {"kind": "clip", "interval_end": 0.5}}, 10 + 5 * 6),
    ],
)
def test_images_times_steps_times_rows(given: dict[str, Any], expected: int) -> None:
    parameters = resolve({"prompt": "a cat", **given}, family(), GatewaySettings())
    assert row_steps(parameters, family()) == expected


@pytest.mark.parametrize(("given", "expected"), [({}, 40), ({"image": b"x"}, 50)])
def test_an_edit_has_four_rows_and_its_inversion_one(given: dict[str, Any], expected: int) -> None:
    given = {"prompt": "a cat", "target_prompt": "a dog", "num_inference_steps": 10, **given}
    assert edit_row_steps(resolve_edit(given, family(), GatewaySettings()), family()) == expected
