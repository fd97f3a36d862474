"""ArcFace's IR-SE50 under its published names against a forward from the paper's equations."""

from pathlib import Path

import torch
from torch.nn import functional as F

from sfumato.common.arcface import STAGES, ArcFace
from sfumato.common.identity import load_identity
from sfumato.importer.parts import import_identity

Keys = dict[str, torch.Tensor]


def published() -> Keys:
    """Random weights under the names of model_ir_se50.pth, written out from the paper's table."""
    generator = torch.Generator().manual_seed(0)
    keys: Keys = {}

    def put(name: str, *shape: int) -> None:
        fan_in = max(1, torch.Size(shape[1:]).numel())
        keys[name] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5

    def norm(name: str, channels: int) -> None:
        keys[f"{name}.weight"] = torch.rand(channels, generator=generator) * 0.4 + 0.4
        keys[f"{name}.bias"] = torch.randn(channels, generator=generator) * 0.1
        keys[f"{name}.running_mean"] = torch.randn(channels, generator=generator) * 0.1
        keys[f"{name}.running_var"] = torch.rand(channels, generator=generator) + 0.5
        keys[f"{name}.num_batches_tracked"] = torch.tensor(7)

    put("input_layer.0.weight", 64, 3, 3, 3)
    norm("input_layer.1", 64)
    keys["input_layer.2.weight"] = torch.full((64,), 0.25)
    block, before = 0, 64
    for width, count in STAGES:
        for _ in range(count):
            name = f"body.{block}"
            if before != width:
                put(f"{name}.shortcut_layer.0.weight", width, before, 1, 1)
                norm(f"{name}.shortcut_layer.1", width)
            norm(f"{name}.res_layer.0", before)
            put(f"{name}.res_layer.1.weight", width, before, 3, 3)
            keys[f"{name}.res_layer.2.weight"] = torch.rand(width, generator=generator)
            put(f"{name}.res_layer.3.weight", width, width, 3, 3)
            norm(f"{name}.res_layer.4", width)
            put(f"{name}.res_layer.5.fc1.weight", width // 16, width, 1, 1)
            put(f"{name}.res_layer.5.fc2.weight", width, width // 16, 1, 1)
            block, before = block + 1, width
    norm("output_layer.0", 512)
    put("output_layer.3.weight", 512, 512 * 7 * 7)
    put("output_layer.3.bias", 512)
    norm("output_layer.4", 512)
    return keys


def paper(keys: Keys, face: torch.Tensor) -> torch.Tensor:
    """Features of 112-pixel faces."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, *([1] * (x.ndim - 2)))
        mean, var, weight, bias = (
            keys[f"{name}.{part}"].view(shape) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def prelu(name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, x * keys[f"{name}.weight"].view(1, -1, 1, 1))

    x = prelu("input_layer.2", norm("input_layer.1", F.conv2d(face, keys["input_layer.0.weight"], padding=1)))
    block = 0
    for _, count in STAGES:
        for index in range(count):
            name, stride = f"body.{block}", 2 if index == 0 else 1
            short = x[:, :, ::stride, ::stride]
            if f"{name}.shortcut_layer.0.weight" in keys:
                short = norm(
                    f"{name}.shortcut_layer.1", F.conv2d(short, keys[f"{name}.shortcut_layer.0.weight"])
                )
            y = F.conv2d(norm(f"{name}.res_layer.0", x), keys[f"{name}.res_layer.1.weight"], padding=1)
            y = prelu(f"{name}.res_layer.2", y)
            y = F.conv2d(y, keys[f"{name}.res_layer.3.weight"], stride=stride, padding=1)
            y = norm(f"{name}.res_layer.4", y)
            squeezed = y.mean((2, 3), keepdim=True)
            excited = F.conv2d(
                F.conv2d(squeezed, keys[f"{name}.res_layer.5.fc1.weight"]).clamp(min=0),
                keys[f"{name}.res_layer.5.fc2.weight"],
            )
            x, block = y * torch.sigmoid(excited) + short, block + 1
    flat = norm("output_layer.0", x).flatten(1)
    features = norm("output_layer.4", flat @ keys["output_layer.3.weight"].T + keys["output_layer.3.bias"])
    return features / features.norm(dim=1, keepdim=True)


def test_the_published_file_becomes_the_familys_identity_network(tmp_path: Path) -> None:
    keys, file = published(), tmp_path / "model_ir_se50.pth"
    torch.save(keys, file)
    network = load_identity(import_identity(file, tmp_path / "family"))
    assert isinstance(network, ArcFace)
    network.double()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(1, 3, 256, 256, dtype=torch.float64, generator=generator) * 2 - 1
    face = F.adaptive_avg_pool2d(images[:, :, 35:223, 32:220], 112)
    with torch.no_grad():
        expected = paper({name: t.double() for name, t in keys.items()}, face)
        torch.testing.assert_close(network(images), expected, rtol=1e-9, atol=1e-9)
        larger = F.interpolate(images, scale_factor=2, mode="nearest")
        torch.testing.assert_close(network(larger), expected, rtol=1e-9, atol=1e-9)
