"""GLIDE's noised CLIP, imported and served: a family whose latents are pixels, guided over real sockets."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
from sfumato_protos.v1 import encoder_pb2, encoder_pb2_grpc

from sfumato.common.tensors import from_message, to_message
from sfumato.importer.parts import import_noised_clip
from sfumato_client import Client, SfumatoError
from sfumato_client.stack import Stack, local_stack
from tests.glide import EMBED, Glide, save_published
from tests.tiny_variants import save_pixels

# What CLIP's vocabulary makes of these texts.
CAT = [49406, 320, 1125, 539, 320, 2368, 49407]
TEXTS = {"a photo of a cat": CAT, "cat " * 100: [49406, *[2368] * 75, 49407]}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Glide]]:
    """All services, without clip/: the noised CLIP brings its own texts."""
    folder = tmp_path_factory.mktemp("glide")
    family = save_pixels(folder / "pixels")
    glide = save_published(folder)
    for part in ("clip", "clip_noised"):
        shutil.rmtree(family / part)
    import_noised_clip(folder / "image.pt", folder / "text.pt", family)
    settings = {}
    for name in ("ENCODER", "DECODER", "DENOISER"):
        settings |= {f"SFUMATO_{name}_ENGINE": "torch", f"SFUMATO_{name}_NUM_THREADS": "1"}
    with local_stack(family, log_dir=folder, settings=settings) as stack:
        yield stack, glide


@pytest.fixture
def encoder(served: tuple[Stack, Glide]) -> Iterator["encoder_pb2_grpc.EncoderServiceStub"]:
    with grpc.insecure_channel(served[0].encoder.target) as channel:
        yield encoder_pb2_grpc.EncoderServiceStub(channel)


def expected_texts(glide: Glide) -> torch.Tensor:
    """g of TEXTS."""
    tokens = torch.zeros(len(TEXTS), 77, dtype=torch.long)
    for row, ids in zip(tokens, TEXTS.values(), strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return glide.text_embeddings(tokens, torch.tensor([len(ids) for ids in TEXTS.values()]))


def test_texts_are_glides_tokens_and_padding(
    served: tuple[Stack, Glide], encoder: "encoder_pb2_grpc.EncoderServiceStub"
) -> None:
    request = encoder_pb2.EmbedTextRequest(texts=list(TEXTS), noised_clip=True)
    got = from_message(encoder.EmbedText(request).embeddings, "embeddings", (2, EMBED), 1000)
    torch.testing.assert_close(got.double(), expected_texts(served[1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("timestep", "row"), [(0.0, 0), (417.3, 417), (5000.0, 999)])
def test_similarity_and_gradient_are_glides(
    served: tuple[Stack, Glide],
    encoder: "encoder_pb2_grpc.EncoderServiceStub",
    timestep: float,
    row: int,
) -> None:
    """GLIDE's guidance scale 3 times its exp(logit_scale) 100; the family's schedule is GLIDE's."""
    glide = served[1]
    texts = expected_texts(glide)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=generator).float().double()
    response = encoder.GuideLatents(
        encoder_pb2.GuideLatentsRequest(
            latents=to_message(x.float()), timestep=timestep, similarity_scale=300.0,
            targets=encoder_pb2.GuideTargets(embeddings=to_message(texts.float()), weights=[1.0, -0.5]),
        )
    )  # fmt: skip

    def objective(at: torch.Tensor) -> torch.Tensor:
        cosines = (glide.image_embeddings(at, torch.tensor([row])) @ texts.T)[0]
        return cosines[0] - 0.5 * cosines[1]

    got = from_message(response.latents_gradient, "latents_gradient", tuple(x.shape), 20_000).double()
    at = x.clone().requires_grad_()
    expected = torch.autograd.grad(3 * 100 * objective(at), at)[0]
    assert abs(response.similarity - float(objective(x))) < 1e-5
    assert float((got - expected).norm() / expected.norm()) < 1e-4
    direction = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    slope = 300 * (objective(x + 1e-5 * direction) - objective(x - 1e-5 * direction)) / 2e-5
    assert abs(float((got * direction).sum() - slope)) < 1e-3 * float(slope.abs())


def test_an_image_is_guided_by_it(served: tuple[Stack, Glide]) -> None:
    options = {"seed": 5, "num_inference_steps": 3, "scheduler": "ddim"}
    with Client(served[0].target, timeout=120) as client:
        (family,) = client.list_families()
        assert [*family.guidance_kinds] == [1, 2, 4, 6]
        plain = client.generate("a cat", guidance="none", **options).images[0].data
        guided = client.generate("a cat", guidance="noised-clip", clip_guidance_scale=300, **options)
        other = client.generate("a dog", guidance="noised-clip", clip_guidance_scale=300, **options)
        assert len({plain, guided.images[0].data, other.images[0].data}) == 3
        by_image = client.generate(
            "a cat", guidance="noised-clip", image_prompts=[guided.images[0].data], **options
        )
        assert by_image.images[0].data not in (plain, guided.images[0].data)


@pytest.mark.parametrize(("given", "field"), [({"width": 32}, "width"), ({"height": 96}, "height")])
def test_another_size_than_the_clips_is_refused(
    served: tuple[Stack, Glide], given: dict[str, int], field: str
) -> None:
    with Client(served[0].target, timeout=120) as client:
        assert client.generate("a cat", num_inference_steps=1, guidance="cfg", **given).images
        with pytest.raises(SfumatoError, match="noise-aware CLIP") as refused:
            client.generate("a cat", num_inference_steps=1, guidance="noised-clip", **given)
    assert (refused.value.code, refused.value.field) == ("INVALID_ARGUMENT", field)
    assert refused.value.limit.startswith("64")


def test_what_needs_clip_says_so(
    served: tuple[Stack, Glide], encoder: "encoder_pb2_grpc.EncoderServiceStub"
) -> None:
    with Client(served[0].target, timeout=120) as client, pytest.raises(SfumatoError, match="clip/"):
        client.generate("a cat", guidance="clip")
    with pytest.raises(grpc.RpcError, match="no clip/ folder"):
        encoder.EmbedText(encoder_pb2.EmbedTextRequest(texts=["a cat"]))


def test_the_folder_is_what_was_imported(served: tuple[Stack, Glide]) -> None:
    folder: Path = served[0].family / "clip_noised"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
