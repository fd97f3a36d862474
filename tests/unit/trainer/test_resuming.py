"""Stages that are cut short: they go on to the same weights, and half a file is none."""

import dataclasses
import functools
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from sfumato.common.noised_clip import load_noised_clip
from sfumato.trainer import unet as unets
from sfumato.trainer.__main__ import STAGES as NAMES
from sfumato.trainer.__main__ import app
from sfumato.trainer.batches import stream
from sfumato.trainer.characters import CHARACTERS
from sfumato.trainer.checkpoint import Checkpoint, average_of
from sfumato.trainer.editing import train_editing
from sfumato.trainer.loop import Schedule, make_optimizer
from sfumato.trainer.noised_clip import train_noised_clip
from sfumato.trainer.restore import restore
from sfumato.trainer.tokens import train_tokenizer, vocabulary_size
from sfumato.trainer.unet import encode_latents
from sfumato.trainer.vocabulary import EMOJI

STEPS = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, emoji_family: Path) -> Path:
    """Checkpoints of the shipped family, latents of a few scenes of made-up artwork."""
    folder = tmp_path_factory.mktemp("train")
    data = folder / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    for name, emoji in {"": EMOJI, **{f"{name}-": kinds for name, kinds in CHARACTERS.items()}}.items():
        art = rng.integers(0, 256, (3, len(emoji), 8, 8, 4), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
        np.save(data / f"artwork-{name}{len(emoji)}.npy", art)
    restore(emoji_family, emoji_family.parent / "judge", folder)
    encode_latents(
        data, folder / "autoencoder.safetensors", folder / "tokenizer", folder / "latents.safetensors", 64, 5
    )
    return folder


def noised(made: Path, path: Path, schedule: Schedule) -> None:
    size = vocabulary_size(made / "tokenizer")
    train_noised_clip(made / "latents.safetensors", made / "clip.safetensors", size, path, schedule, 0, 4)


STAGES: dict[str, Callable[[Path, Path, Schedule], None]] = {
    "noised-clip": noised,
    "stylegan2-animals": lambda made, path, schedule: train_editing(path.stem, path.parent, schedule, 0, 4),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_was_interrupted_ends_with_the_weights_of_one_that_was_not(
    made: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (tmp_path / kind / f"{name}.safetensors" for kind in ("whole", "broken"))
    for path in (whole, broken):
        path.parent.mkdir()
        (path.parent / "data").symlink_to(made / "data")
    schedule = Schedule(STEPS, 1e-3, warmup_steps=2)
    STAGES[name](made, whole, schedule)
    save = Checkpoint.save

    def interrupted(checkpoint: Checkpoint) -> None:
        save(checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        STAGES[name](made, broken, dataclasses.replace(schedule, checkpoint_seconds=-1))
    monkeypatch.undo()
    STAGES[name](made, broken, schedule)
    first, second = load_file(whole), load_file(broken)
    assert first.keys() == second.keys()
    differing = [key for key in first if not torch.equal(first[key], second[key])]
    assert not differing


@contextmanager
def little_room(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond it, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_finds_no_room_is_not_there(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is taken for finished."""
    monkeypatch.setattr(unets, "stream", functools.partial(stream, workers=0))  # their memory is files, too
    latents = tmp_path / "latents.safetensors"
    with little_room(10_000), pytest.raises((OSError, SafetensorError)):
        encode_latents(made / "data", made / "autoencoder.safetensors", made / "tokenizer", latents, 64, 5)
    with little_room(10_000), pytest.raises(OSError, match="too large"):
        train_tokenizer(tmp_path / "tokenizer")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(tmp_path: Path) -> None:
    model = torch.nn.Linear(100, 100)
    checkpoint = Checkpoint(tmp_path / "x.safetensors", model, make_optimizer(model, 1e-3))
    checkpoint.save()
    before = checkpoint.path.read_bytes()
    with little_room(10_000), pytest.raises((OSError, SafetensorError)):
        checkpoint.save()
    assert checkpoint.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [checkpoint.path]


def test_a_stage_whose_time_is_over_is_left_as_it_is(made: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(made / "data")
    path = tmp_path / "identity.safetensors"
    short = Schedule(1000, 1e-3, max_seconds=0.01)
    for _ in range(2):
        train_editing("identity", tmp_path, short, 0, 4)
        first = load_file(path)
    train_editing("identity", tmp_path, Schedule(1, 1e-3), 0, 4)  # fewer steps than it has
    again = load_file(path)
    assert all(torch.equal(first[name], again[name]) for name in first)
    with safe_open(path, "pt") as file:
        assert file.metadata()["step"] == "1"


def test_the_noise_aware_clip_goes_on_from_the_familys(
    made: Path, tmp_path: Path, emoji_family: Path
) -> None:
    weights = average_of(made / "noised-clip.safetensors")
    shipped = load_noised_clip(emoji_family / "clip_noised").state_dict()
    assert all(torch.equal(weights[f"image.{name}"], tensor) for name, tensor in shipped.items())
    path = tmp_path / "noised-clip.safetensors"
    path.write_bytes((made / "noised-clip.safetensors").read_bytes())
    noised(made, path, Schedule(1, 1e-3))
    assert not torch.equal(average_of(path)["image.projection.weight"], weights["image.projection.weight"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("unet",), "run the stage clip first"),
        (("export",), "run the stage autoencoder first"),
        (("unets",), "must be one of data, autoencoder"),
        (("clip", "--steps", "-1"), "--steps"),
        (("clip", "--seed", "-1"), "--seed"),
        (("clip", "--max-seconds", "0"), "--max-seconds"),
        (("continue", "--family", "nowhere"), "continue: "),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    ran = CliRunner().invoke(app, [*arguments, "--checkpoints", str(tmp_path)])
    assert ran.exit_code
    assert message in ran.output + str(ran.exception)
    assert isinstance(ran.exception, SystemExit)
    assert not list(tmp_path.iterdir())


def test_help_says_what_each_stage_is_for() -> None:
    output = CliRunner().invoke(app, ["--help"], terminal_width=100).output
    for name in NAMES:
        assert any(line.strip(" │").startswith(f"{name} ") for line in output.splitlines()), name
