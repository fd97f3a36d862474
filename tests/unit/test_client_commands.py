"""What the commands say where something is wrong, without any gateway."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sfumato_client.cli import app

NOBODY = ("--target", "127.0.0.1:1")


@pytest.fixture
def taken(tmp_path: Path) -> Path:
    """A file where a folder is wanted."""
    (tmp_path / "taken").write_bytes(b"mine")
    return tmp_path / "taken"


def said(*arguments: object) -> str:
    """One readable line of a command that fails."""
    ran = CliRunner().invoke(app, [*map(str, arguments), *NOBODY])
    assert ran.exit_code == 1
    assert isinstance(ran.exception, SystemExit), ran.exception
    return ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "a", "-o", "{}/x.png"),
        ("generate", "a", "-o", "x.png", "--manifest", "{}/x.json"),
        ("generate", "a", "-o", "x.png", "--frames", "{}"),
        ("compare", "a", "-o", "{}/x.png"),
        ("attention", "a", "-o", "{}/x.png"),
        ("edit-prompt", "a", "--to", "b", "-o", "{}/x.png"),
        ("edit", "vqgan-clip", "--prompt", "a", "-o", "{}/x.png"),
        ("edit", "vqgan-clip", "--prompt", "a", "-o", "x.png", "--film", "{}/x.gif"),
        ("atlas", "{}", "-o", "{}"),
    ],
)
def test_a_place_that_cannot_be_written_is_said_before_any_work(
    taken: Path, arguments: tuple[str, ...]
) -> None:
    message = said(*(argument.format(taken) for argument in arguments))
    assert str(taken) in message
    assert "unavailable" not in message  # nobody was asked
    assert list(taken.parent.iterdir()) == [taken]


@pytest.mark.parametrize("text", ["[/red]", "[bold]", ":cat:"])
def test_what_looks_like_markup_is_shown_as_it_is(tmp_path: Path, text: str) -> None:
    file = tmp_path / text / "manifest.json"
    file.parent.mkdir(parents=True)
    file.touch()
    assert str(file) in said("replay", file)
