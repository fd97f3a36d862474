"""Emoji artwork from npm packages: fetched once, read as RGBA arrays."""

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from sfumato.trainer.vocabulary import EMOJI, Emoji
from sfumato.trainer.whole import whole

# Art: Apache-2.0, CC-BY 4.0, MIT. The packages' own files say so.
PACKAGES = {
    "noto": "emoji-datasource-google@16.0.0",
    "twemoji": "emoji-datasource-twitter@16.0.0",
    "fluent": "fluentui-emoji@1.3.0",
}
SIDE = 64


def fetch(folder: Path) -> None:
    """Downloads the packages with `npm pack`, those that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES.values():
        if not archive_of(folder, package).exists():
            with tempfile.TemporaryDirectory(dir=folder) as fresh:
                subprocess.run(["npm", "pack", "--silent", package], cwd=fresh, check=True)
                archive_of(Path(fresh), package).replace(archive_of(folder, package))


def archive_of(folder: Path, package: str) -> Path:
    """Where `npm pack` leaves a package."""
    return folder / f"{package.replace('@', '-')}.tgz"


def load(folder: Path, emoji: Sequence[Emoji] = EMOJI, name: str = "") -> np.ndarray:
    """Artwork, cached under a name as one array: uint8 [styles, emoji, SIDE, SIDE, 4], straight alpha."""
    cache = folder / f"artwork-{name}{len(emoji)}.npy"
    if not cache.exists():
        fetch(folder)
        with whole(cache) as fresh, fresh.open("wb") as file:
            np.save(file, np.stack([_read(folder, style, emoji) for style in PACKAGES]))
    art: np.ndarray = np.load(cache, allow_pickle=False)
    return art


def _read(folder: Path, style: str, entries: Sequence[Emoji]) -> np.ndarray:
    """uint8 [emoji, SIDE, SIDE, 4] of one style."""
    if style == "fluent":
        names = [f"package/icons/flat/{emoji.slug}.svg" for emoji in entries]
    else:
        vendor = {"noto": "google", "twemoji": "twitter"}[style]
        names = [f"package/img/{vendor}/64/{emoji.code}.png" for emoji in entries]
    wanted, found = set(names), {}
    with tarfile.open(archive_of(folder, PACKAGES[style])) as archive:
        for member in archive:
            if member.name in wanted and (file := archive.extractfile(member)):
                found[member.name] = file.read()
    missing = wanted - found.keys()
    if missing:
        raise FileNotFoundError(f"{PACKAGES[style]} lacks {sorted(missing)}")
    return np.stack([_rgba(found[name]) for name in names])


def _rgba(data: bytes) -> np.ndarray:
    if not data.startswith(b"\x89PNG"):
        data = bytes(resvg_py.svg_to_bytes(svg_string=data.decode(), width=SIDE, height=SIDE))
    image = Image.open(io.BytesIO(data)).convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)
