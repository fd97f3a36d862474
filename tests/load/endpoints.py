"""What a user asks of each endpoint; all is seeded, so that the same bytes must come back each time."""

import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from PIL import Image

from sfumato_client import Client
from sfumato_client.edit_requests import artifacts_of
from sfumato_client.requests import GenerateOptions

# Times the block as a call of that endpoint; what the block hands over is compared with that of the same key.
Measure = Callable[[str], AbstractContextManager[Callable[[str, bytes], None]]]

GENERATIONS: tuple[tuple[str, GenerateOptions], ...] = (
    ("a cat", {"num_inference_steps": 10, "seed": 1}),
    ("a dog on white", {"num_inference_steps": 20, "scheduler": "euler_a", "seed": 2}),
    ("two stars", {"num_inference_steps": 6, "num_images": 2, "seed": 3}),
    ("a fox", {"num_inference_steps": 8, "preview_interval_steps": 2, "guidance_scale": 7.5, "seed": 4}),
    ("a tree", {"num_inference_steps": 12, "guidance": "none", "width": 96, "height": 64, "seed": 5}),
)
COMPARED: dict[str, GenerateOptions] = {"none": {"guidance": "none"}, "cfg": {"guidance_scale": 5.0}}
EDIT: dict[str, Any] = {"num_iterations": 5, "seed": 5, "channels": 8, "num_scales": 2, "size": 32}
METHOD = "deep-image-prior"
PAGE = 20


def image() -> bytes:
    """A small PNG, always the same."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def generate(client: Client, measure: Measure, number: int) -> None:
    prompt, options = GENERATIONS[number % len(GENERATIONS)]
    with measure("Generate") as same:
        result = client.generate(prompt, **options)
        assert len(result.images) == options.get("num_images", 1)
        same(f"generate {prompt}", b"".join(made.data for made in result.images))


def compare(client: Client, measure: Measure, number: int) -> None:
    with measure("Compare") as same:
        result = client.compare("a heart", COMPARED, num_inference_steps=6, seed=number % 2)
        made = [result.generations[label].images[0].data for label in COMPARED]
        same(f"compare {number % 2}", b"".join(made))


def edit_prompt(client: Client, measure: Measure, number: int) -> None:
    with measure("EditPrompt") as same:
        result = client.edit_prompt("a cat", "a dog", num_inference_steps=6, seed=number % 2)
        source, target = result.images
        same(f"edit prompt {number % 2}", source.data + target.data)


def edit(client: Client, measure: Measure, number: int) -> None:
    """An edit from its start to its files, watched; every other is cancelled; all are deleted."""
    with measure("Edit"):
        name = client.start_edit(METHOD, image=image(), **EDIT).name
    if number % 2 == 0:
        with measure("CancelOperation"):
            client.cancel_operation(name)
    else:
        with measure("WatchEdit"):
            iterations = [event.iteration for event in client.watch_edit(name)]
            assert iterations == sorted(set(iterations))
    with measure("WaitOperation") as same:
        operation = client.wait_operation(name)
        if number % 2:
            same("edit", artifacts_of(operation)[0].data)
    with measure("DeleteOperation"):
        client.delete_operation(name)


def operations(client: Client, measure: Measure, number: int) -> None:
    with measure("ListOperations"):
        list(itertools.islice(client.list_operations(PAGE), PAGE))


def families(client: Client, measure: Measure, number: int) -> None:
    with measure("ListFamilies"):
        assert client.list_families()


# What one asks, again and again.
ROUND = (
    families, generate, edit, generate, compare, generate, operations, edit_prompt, generate, families,
    generate, edit, generate, operations, generate,
)  # fmt: skip
NAMES = (
    "Generate", "Compare", "EditPrompt", "Edit", "CancelOperation", "WatchEdit", "WaitOperation",
    "DeleteOperation", "ListOperations", "ListFamilies",
)  # fmt: skip


def slow_events(client: Client) -> Iterator[Any]:
    """A generation with a preview at each step, for someone who reads it slowly."""
    return client.generate_events("a slow reader", num_inference_steps=10, preview_interval_steps=1, seed=6)
