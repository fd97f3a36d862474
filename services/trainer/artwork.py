"""Emoji artwork from npm packages: fetched once, read as RGBA arrays."""

import io
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from sfumato.trainer.vocabulary import EMOJI

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
            subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)


def archive_of(folder: Path, package: str) -> Path:
    """Where `npm pack` leaves a package."""
    return folder / f"{package.replace('@', '-')}.tgz"


def load(folder: Path) -> np.ndarray:
    """All artwork, cached as one array: uint8 [styles, emoji, SIDE, SIDE, 4], straight alpha."""
    cache = folder / f"artwork-{len(EMOJI)}.npy"
    if not cache.exists():
        fetch(folder)
        np.save(cache, np.stack([_read(folder, style) for style in PACKAGES]))
    art: np.ndarray = np.load(cache, allow_pickle=False)
    return art


def _read(folder: Path, style: str) -> np.ndarray:
    """uint8 [emoji, SIDE, SIDE, 4] of one style."""
    if style == "fluent":
        names = [f"package/icons/flat/{emoji.slug}.svg" for emoji in EMOJI]
    else:
        vendor = {"noto": "google", "twemoji": "twitter"}[style]
        names = [f"package/img/{vendor}/64/{emoji.code}.png" for emoji in EMOJI]
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
