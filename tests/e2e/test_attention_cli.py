"""`sfumato attention` as a person runs it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sfumato_client.stack import Stack
from tests.e2e.test_cli import sfumato


def test_attention_draws_a_tile_per_word_and_prints_their_centres(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "maps.png"
    ran = sfumato(
        "attention", "a cat left of a star", "-o", file, "--steps", 4, "--seed", 3, "--json",
        target=stack.target,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert [entry["word"] for entry in answer["words"]] == ["a", "cat", "left", "of", "a", "star"]
    assert all(0 < place < 1 for entry in answer["words"] for place in entry["centre_of_mass"])
    assert Image.open(file).size == (6 * 192, 2 * (192 + 22))


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--layers", "some"], "largest, all"), (["-o", "x.txt"], ".webp")]
)
def test_a_mistake_is_said_before_anything_starts(tmp_path: Path, arguments: list[str], said: str) -> None:
    ran = sfumato("attention", "a cat", "-o", tmp_path / "x.png", *arguments)
    assert ran.returncode == 2
    assert said in ran.stderr
