"""The editing stages: a GAN resumes bit for bit, a codebook stays in use, exports load."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel
from safetensors.torch import load_file

from sfumato.common.identity import load_identity
from sfumato.common.stylegan2 import load_stylegan2
from sfumato.trainer import artwork
from sfumato.trainer.adversarial import R1_GAMMA, Gan, discriminator_loss, train_gan
from sfumato.trainer.characters import CHARACTERS
from sfumato.trainer.discriminator import Discriminator, augmented
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


def run_gan(path: Path, last: int, num_steps: int = 4) -> dict[str, torch.Tensor]:
    def batches(first: int, rank: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index in range(first, last):
            yield some_images(index), torch.zeros(4)

    train_gan("test", path, Schedule(num_steps, 2e-3, warmup_steps=2), 0, batches)
    return load_file(path)


def test_a_resumed_gan_is_bit_equal_to_an_unbroken_one(tmp_path: Path) -> None:
    whole = run_gan(tmp_path / "whole.safetensors", 4)
    broken = run_gan(tmp_path / "broken.safetensors", 2)
    resumed = run_gan(tmp_path / "broken.safetensors", 4)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    for part in ("model.generator.conv1.conv.weight", "model.discriminator.head.1.weight"):
        assert not torch.equal(whole[part], broken[part])


def test_the_discriminator_tells_batches_apart_and_r1_counts() -> None:
    torch.manual_seed(0)
    gan, real = Gan(), some_images(1).float() / 127.5 - 1
    with_r1, without = (
        discriminator_loss(gan, real, step, torch.Generator().manual_seed(1)) for step in (0, 1)
    )
    logits = lambda x: gan.discriminator(x).sum()  # noqa: E731
    gradient = torch.autograd.functional.jacobian(logits, real)
    penalty = R1_GAMMA / 2 * 16 * gradient.square().sum((1, 2, 3)).mean()
    assert float(with_r1 - without) == pytest.approx(float(penalty), rel=1e-3)
    assert Discriminator((8, 8, 8))(torch.zeros(6, 3, 16, 16)).shape == (6,)


def test_augmentation_follows_p() -> None:
    images = some_images(0, 64).float() / 127.5 - 1
    assert torch.equal(augmented(images, 0.0, torch.Generator()), images)
    shares = []
    for p in (0.1, 0.8):
        changes = augmented(images, p, torch.Generator().manual_seed(0)) - images
        shares.append(float(changes.abs().mean((1, 2, 3)).gt(0.01).float().mean()))
    assert shares[0] < 0.5 < shares[1]


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
