"""A gateway with a list of concepts, before the same services as one without."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.encoder.engine_torch import JointEncoder
from sfumato_client import Client, SfumatoError
from sfumato_client.stack import Service, Stack, free_port
from tests.editor_process import running

CAT, PIZZA = "a cat on a blue background", "a pizza on a green background"


def made(client: Client, prompt: str) -> Image.Image:
    result = client.generate(prompt, seed=1, num_inference_steps=8)
    return Image.open(io.BytesIO(result.images[0].data))


@pytest.fixture
def careful(stack: Stack, emoji_family: Path, tmp_path: Path) -> Iterator[Client]:
    """Its list has cats, with a threshold between the similarities of a cat and of a pizza."""
    with Client(stack.target, timeout=120) as client:
        images = [made(client, prompt) for prompt in (CAT, PIZZA)]
    joint = JointEncoder(f"local-dir:{emoji_family / 'clip'}", torch.device("cpu"))
    cat, pizza = (joint.embed_images(images) @ joint.embed_texts(["a cat"])[0]).tolist()
    assert cat > pizza
    path = tmp_path / "concepts.json"
    concept = {"name": "cats", "text": "a cat", "threshold": (cat + pizza) / 2}
    path.write_text(json.dumps({"concepts": [concept]}))
    port = free_port()
    environment = {
        **stack.gateway.environment,
        "SFUMATO_GATEWAY_PORT": str(port),
        "SFUMATO_GATEWAY_METRICS_PORT": "0",
        "SFUMATO_GATEWAY_SAFETY_CONCEPTS_FILE": str(path),
    }
    gateway = Service("gateway", port, environment, tmp_path / "gateway.log")
    with running(gateway), Client(gateway.target, timeout=120) as client:
        yield client


def test_an_image_near_a_listed_concept_is_withheld_and_no_other(stack: Stack, careful: Client) -> None:
    with Client(stack.target, timeout=120) as client:
        assert made(careful, PIZZA).tobytes() == made(client, PIZZA).tobytes()
    with pytest.raises(SfumatoError, match="near cats, which this service does not show") as error:
        made(careful, CAT)
    assert (error.value.code, error.value.reason, error.value.value) == (
        "FAILED_PRECONDITION", "IMAGE_WITHHELD", "cats",
    )  # fmt: skip
    with pytest.raises(SfumatoError, match="withheld"):  # what a prompt edit makes of an image, too
        careful.edit_prompt(PIZZA, CAT, seed=1, num_inference_steps=8)


def test_a_list_that_is_none_keeps_the_gateway_from_starting(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "concepts.json"
    path.write_text('{"concepts": []}')
    setting = {"SFUMATO_GATEWAY_SAFETY_CONCEPTS_FILE": str(path)}
    gateway = Service("gateway", 0, {**stack.gateway.environment, **setting}, tmp_path / "gateway.log")
    gateway.start()
    assert gateway.process.wait(60) != 0
    assert "no valid list of concepts: concepts: " in gateway.last_lines()
