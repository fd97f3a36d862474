"""Augmentations against what they say in closed form."""

import colorsys
import math

import torch

from sfumato.common import augmentations as augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_homographies_take_corners_where_they_shall() -> None:
    source = torch.rand(5, 4, 2, generator=generator(), dtype=torch.float64)
    target = source + 0.1 * torch.rand(5, 4, 2, generator=generator(1), dtype=torch.float64)
    matrices = augment.homography(source, target)
    points = torch.cat([source, torch.ones(5, 4, 1)], -1) @ matrices.mT
    assert torch.allclose(points[..., :2] / points[..., 2:], target)


def test_warping_by_known_matrices() -> None:
    images = torch.rand(2, 3, 8, 8, generator=generator())
    assert torch.allclose(augment.warp(images, torch.eye(3).expand(2, 3, 3)), images, atol=1e-6)
    mirrored = augment.warp(images, augment.flip(generator(), 2, p=1.0))
    assert torch.allclose(mirrored, images.flip(-1), atol=1e-6)
    shifted = torch.eye(3).repeat(2, 1, 1)
    shifted[:, 0, 2] = 2 / 8 * 2  # two pixels: the output shows what lies to the right
    moved = augment.warp(images, shifted, fill=1.0)
    assert torch.allclose(moved[..., :6], images[..., 2:], atol=1e-6)
    assert torch.allclose(moved[..., 6:], torch.ones(2, 3, 8, 2))


def test_affine_parameters_stay_in_their_ranges() -> None:
    matrices = augment.affine(generator(), 500, degrees=15, shift=0.1)
    angles = torch.rad2deg(torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert 14 < angles.abs().max() <= 15.001
    assert 0.19 < matrices[:, :2, 2].abs().max() <= 0.2
    determinants = torch.linalg.det(augment.affine(generator(), 500, 15, 0.1, scale=(0.8, 1.2)))
    assert determinants.sqrt().reciprocal().min() < 0.82
    assert torch.allclose(torch.linalg.det(matrices), torch.ones(500), atol=1e-5)


def test_a_probability_is_a_share() -> None:
    matrices = augment.perspective(generator(), 2000, 0.5, p=0.7)
    changed = (matrices != torch.eye(3)).flatten(1).any(1).float().mean()
    assert abs(float(changed) - 0.7) < 0.04
    erased = augment.random_erasing(torch.ones(2000, 1, 16, 16), generator(), p=0.7)
    shares = (erased == 0).float().mean((1, 2, 3))
    assert abs(float((shares > 0).float().mean()) - 0.7) < 0.04
    assert shares[shares > 0].min() > 0.05
    assert shares.max() < 0.5


def test_hue_turns_the_colour_circle_and_keeps_grey() -> None:
    turned = augment.grey_axis_rotation(torch.tensor([2 * math.pi / 3])) @ torch.tensor([1.0, 0.0, 0.0])
    hue, _, _ = colorsys.rgb_to_hsv(*turned[0].tolist())
    assert math.isclose(hue, 1 / 3, abs_tol=1e-5)
    grey = torch.full((4, 3, 2, 2), 0.4)
    assert torch.allclose(augment.colour_jitter(grey, generator(), 0, 0, 0, 0.5), grey, atol=1e-6)
    brighter = augment.colour_jitter(grey, generator(), 0.1, 0, 0, 0)
    assert ((brighter / grey - 1).abs() <= 0.1001).all()
    assert torch.allclose(
        augment.greyscale(torch.eye(3).view(1, 3, 3, 1))[0, 0, :, 0], torch.tensor(augment.LUMA)
    )


def test_crops_are_boxes_within_the_image() -> None:
    matrices = augment.crop(generator(), 300, 0.6, 0.9)
    corners = torch.tensor([[-1.0, -1, 1], [1, 1, 1]]) @ matrices.mT
    assert corners[..., :2].abs().max() <= 1.0001
    assert corners[..., :2].abs().max() > 0.95
    sides = (corners[:, 1, :2] - corners[:, 0, :2]) / 2
    assert 0.6 <= sides.min() < 0.62
    assert 0.88 < sides.max() <= 0.9
    half = torch.diag(torch.tensor([0.5, 0.5, 1.0]))[None]
    image = torch.rand(1, 3, 8, 8, generator=generator())
    assert torch.allclose(augment.warp(image, half, size=(4, 4)), image[..., 2:6, 2:6], atol=1e-6)
