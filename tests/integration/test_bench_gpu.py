"""`make bench-gpu` where there is no GPU: it says so; and all of it runs, on a CPU with tiny weights."""

import contextlib
import json
from pathlib import Path

import pytest
import torch

from sfumato.decoder.config import DecoderSettings
from sfumato.denoiser.config import DenoiserSettings
from sfumato.encoder.config import EncoderSettings
from sfumato_client.stack import Stack
from tests.bench.gpu import main
from tests.bench.gpu_ways import environment

SERVED = [(name, count) for name in ("services", "services, bits may show company") for count in (1, 2)]
WAYS = [("diffusers, eager", 1), ("diffusers, eager", 2), *SERVED]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["--output", str(tmp_path)])
    assert isinstance(refused.value.code, str)  # on standard error, with exit code 1
    assert refused.value.code.startswith("no CUDA device here (torch ")
    assert "\n" not in refused.value.code
    assert not list(tmp_path.iterdir())


def test_the_services_get_the_device_and_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(torch.device("cuda:1"), torch.bfloat16, False).items():
        monkeypatch.setenv(name, value)
    denoiser = DenoiserSettings()
    assert (denoiser.device, denoiser.unet_engine, denoiser.dtype) == ("cuda:1", "torch", "bfloat16")
    assert not denoiser.batch_invariant
    for settings in (EncoderSettings(), DecoderSettings()):
        assert (settings.device, settings.engine) == ("cuda:1", "torch")


def test_every_figure_is_there_and_the_images_are_the_pipelines(
    tiny_stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--device cpu --dtype float32 --side 64 --steps 2 --images 2 --compile --batches 1 2 --clients 1 2"
    )
    given = [*options.split(), "--markdown", "--family", str(tiny_stack.family), "--output", str(tmp_path)]
    main(given, lambda family, settings: contextlib.nullcontext(tiny_stack))
    figures = json.loads((tmp_path / "gpu.json").read_text())
    ways = figures["ways"]
    assert [(way["way"], way["at_a_time"]) for way in ways] == WAYS
    assert ways[0]["over_eager"] == 1
    for way in ways:
        rate = way["images_per_second"] * figures["flops_of_an_image"] / figures["matrix_flops"]
        assert way["share_of_matrix_rate"] == pytest.approx(rate, abs=1e-4)
        assert way["over_eager"] > 0
    # Two steps of two rows; with one thread they are one forward, as on a GPU.
    assert figures["flops_of_an_image"] == 4 * figures["flops_of_a_row"] > 0
    assert all(way["rows_of_a_forward"] == 2 for way in ways[2:])
    assert [one["steps"] for one in figures["rows_together"]["steps"]] == [2, 4, 8]
    check = figures["check"]
    assert check["same"]
    assert check["services_off"] <= check["allowed"] < 0.2  # of the distance of another seed's image
    assert check["services_largest_difference"] <= 2
    printed = capsys.readouterr()
    assert printed.out.endswith((tmp_path / "gpu.md").read_text() + "\n")
    assert printed.out.count("| services | ") == 2
    assert "services, 2 clients" in printed.err
