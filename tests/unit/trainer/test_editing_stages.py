"""The editing stages: a generator learns, a codebook stays in use, exports load."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel
from torch.distributions import Normal, kl_divergence

from sfumato.common.identity import load_identity
from sfumato.common.stylegan2 import load_stylegan2
from sfumato.trainer import artwork, stylegan2
from sfumato.trainer.characters import CHARACTERS
from sfumato.trainer.editing import export_editing, train_editing
from sfumato.trainer.loop import Schedule
from sfumato.trainer.portraits import num_labels, portraits
from sfumato.trainer.vqgan import NUM_CODES, Trained


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Made-up artwork where the fetched one would be cached: coloured discs."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64] - 31.5
    disc = (x**2 + y**2 < 28**2).astype(np.uint8) * 255
    for name, emoji in CHARACTERS.items():
        art = rng.integers(0, 256, (3, len(emoji), 1, 1, 4), dtype=np.uint8).repeat(64, 2).repeat(64, 3)
        art[..., 3] = disc
        np.save(folder / f"artwork-{name}-{len(emoji)}.npy", art)
    return folder


def some_images(seed: int, n: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 64, 64), generator=generator, dtype=torch.uint8)


def test_the_generator_learns_to_reconstruct() -> None:
    torch.manual_seed(0)
    trained, images = stylegan2.Trained(), some_images(0, 1).repeat(4, 1, 1, 1)
    images[..., 16:48, 16:48] = torch.tensor([250, 220, 80], dtype=torch.uint8)[:, None, None]
    optimizer = torch.optim.Adam(trained.parameters(), 8e-3, betas=(0.9, 0.99))
    before = stylegan2.psnr_of(trained, images)
    for _ in range(25):
        optimizer.zero_grad()
        trained.loss(images).backward()
        optimizer.step()
    assert stylegan2.psnr_of(trained, images) > before + 2


def test_the_divergence_is_that_of_two_normal_distributions(data: Path) -> None:
    torch.manual_seed(0)
    trained, images = stylegan2.Trained(), some_images(1)
    pixels = images.float() / 127.5 - 1
    with torch.no_grad():
        mean, log_std = trained.encoder(pixels)
        torch.manual_seed(1)
        loss = trained.loss(images)
        torch.manual_seed(1)
        error = trained.reconstruct(mean + log_std.exp() * torch.randn_like(mean)) - pixels
    posterior, prior = Normal(mean, log_std.exp()), Normal(0.0, 1.0)
    divergence = kl_divergence(posterior, prior).sum(1).mean()
    wanted = error.square().mean() + 0.1 * error.abs().mean() + stylegan2.KL * divergence
    assert float(loss) == pytest.approx(float(wanted), rel=1e-4)


def test_unused_codes_restart_where_latents_are() -> None:
    torch.manual_seed(0)
    trained = Trained()
    codebook = trained.model.quantize.embedding.weight
    codebook.fill_(100.0)[0] = 0
    rows = torch.randn(4096, codebook.shape[1])
    used = []
    for _ in range(150):
        codes = torch.cdist(rows, codebook).argmin(1)
        used.append(len(codes.unique()))
        trained.follow(rows, codes)
    assert used[0] == 1
    assert used[-1] > 0.7 * NUM_CODES


def test_portraits_show_the_character_they_name(data: Path) -> None:
    art = artwork.load(data, CHARACTERS["faces"], "faces-")
    images, labels = next(iter(portraits(data, "faces", (1,), 8, 0, 1, workers=0)))
    again, _ = next(iter(portraits(data, "faces", (1,), 8, 0, 1, workers=0)))
    assert torch.equal(images, again)
    assert num_labels(data, "faces") == 3 * len(CHARACTERS["faces"])
    for image, label in zip(images, labels, strict=True):
        colour = art[int(label) // art.shape[1], int(label) % art.shape[1], 32, 32, :3]
        assert (image[:, 32, 32].int() - torch.from_numpy(colour).int()).abs().max() <= 2


def test_stages_export_what_the_editor_loads(data: Path, tmp_path: Path) -> None:
    family = tmp_path / "family"
    for name in ("identity", "stylegan2-animals"):
        train_editing(name, data.parent, Schedule(1, 1e-3), 0, 4)
    vqgan = data.parent / "vqgan.safetensors"
    from safetensors.torch import save_file

    save_file({f"average.{k}": v.contiguous() for k, v in Trained().state_dict().items()}, vqgan)
    assert export_editing(data.parent, family) == ["vqgan", "identity", "stylegan2-animals"]
    stylegan = load_stylegan2(family / "stylegan2" / "animals")
    assert stylegan(stylegan.spread(torch.zeros(1, stylegan.d))).shape == (1, 3, 64, 64)
    assert load_identity(family / "identity")(torch.zeros(1, 3, 64, 64)).shape == (1, 64)
    model = VQModel.from_pretrained(family / "vqgan")
    assert model.config.num_vq_embeddings == NUM_CODES
    sizes = [path.stat().st_size for path in family.rglob("*") if path.is_file()]
    assert sum(sizes) < 12 * 2**20
