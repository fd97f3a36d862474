"""Messages that are accepted, or nearly, to mutate: random ones seldom get behind the first check."""

import io
from functools import cache
from typing import Any

import numpy as np
from google.longrunning import operations_pb2
from google.protobuf import message_factory
from google.protobuf.message import Message
from PIL import Image
from sfumato_protos.v1 import (
    decoder_pb2,
    denoiser_pb2,
    editor_pb2,
    encoder_pb2,
    gateway_pb2,
    guidance_pb2,
    model_pb2,
    tensor_pb2,
)
from tritonclient.grpc import service_pb2

from tests.clips import moving_disc, video_file
from tests.tiny_family import CONTEXT, WIDTH

LATENTS = (1, 4, 8, 8)
NAMES = ("operations/fuzz-0", "operations/fuzz-1", "operations/none", "operations/..", "operations/", "x/y")


@cache
def png(side: int = 32, mode: str = "RGB") -> bytes:
    """A small picture with noise."""
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, len(mode)), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode).save(buffer, "PNG")
    return buffer.getvalue()


@cache
def jpeg() -> bytes:
    """The same as a JPEG."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png())).save(buffer, "JPEG")
    return buffer.getvalue()


@cache
def clip(kind: str = "mp4") -> bytes:
    """Four frames."""
    return video_file(moving_disc(4, 32, 32)[0], kind)


def tensor(*shape: int, dtype: Any = np.float32) -> tensor_pb2.Tensor:
    """Small random numbers, or small whole ones."""
    values = np.random.default_rng(len(shape)).normal(0, 0.3, shape)
    data = np.abs(values * 9).astype(dtype) if dtype == np.int64 else values.astype(dtype)
    kind = tensor_pb2.DATA_TYPE_INT64 if dtype == np.int64 else tensor_pb2.DATA_TYPE_FLOAT32
    return tensor_pb2.Tensor(dtype=kind, shape=shape, data=data.tobytes())


def samples(path: str, request: type[Message]) -> list[list[Message]]:
    """Lists of messages that a call sends; the empty message where nothing is written down here."""
    return [*_samples().get(path, []), [request()]]


@cache
def _samples() -> dict[str, list[list[Message]]]:
    behind = {**_encoder(), **_decoder(), **_denoiser(), **_models(), **_open_inference()}
    return {**_gateway(), **_editor(), **behind}


def _gateway() -> dict[str, list[list[Message]]]:
    request = gateway_pb2.GenerateRequest
    few: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 2, "seed": 1}
    clip = guidance_pb2.ClipGuidance(
        prompts=["blurry"], prompt_weights=[-0.5], image_prompts=[png()], image_prompt_weights=[0.5],
        num_cutouts=2,
    )  # fmt: skip
    kinds = [guidance_pb2.Guidance(kind=kind, clip=clip) for kind in (3, 4, 5)]
    generate: list[Message] = [
        request(**few),
        request(**few, image=png(64), mask=png(64), strength=0.5, scheduler=6, image_format=2),
        request(**few, num_images=2, width=32, height=48, negative_prompt="dog", preview_interval_steps=1),
        request(**few, attention_maps=gateway_pb2.AttentionMapOptions(interval_steps=1, aggregation=2)),
        *(request(**few, guidance=guidance) for guidance in kinds),
    ]
    edit: list[Message] = [
        gateway_pb2.EditPromptRequest(
            prompt="a cat", target_prompt=target, num_inference_steps=2, seed=1, image=image,
            weights=[{"word": "cat", "scale": 2.0}], blend_words=["cat"],
        )
        for target, image in (("a dog", b""), ("a big cat", b""), ("a cat", png(64)))
    ]  # fmt: skip
    settings = [
        gateway_pb2.CompareSetting(label="a", guidance=guidance_pb2.Guidance(kind=2)),
        gateway_pb2.CompareSetting(label="b", guidance=kinds[0], guidance_scale=3),
    ]
    compare = gateway_pb2.CompareRequest(request=request(**few), settings=settings)
    families = gateway_pb2.ListFamiliesRequest(page_size=10, page_token="")
    prefix = "/sfumato.v1.GatewayService/"
    return {
        f"{prefix}Generate": [[message] for message in generate],
        f"{prefix}EditPrompt": [[message] for message in edit],
        f"{prefix}Compare": [[compare]],
        f"{prefix}ListFamilies": [[families]],
        f"{prefix}LoadFamily": [[gateway_pb2.LoadFamilyRequest(name="families/tiny")]],
        f"{prefix}UnloadFamily": [[gateway_pb2.UnloadFamilyRequest(name="families/tiny")]],
    }


def _editor() -> dict[str, list[list[Message]]]:
    edit = editor_pb2.EditRequest
    prompts = [editor_pb2.Prompt(text="a cat", weight=1.0), editor_pb2.Prompt(text="blurry", weight=-0.5)]
    few = {"num_iterations": 1, "num_cutouts": 1}
    small: dict[str, Any] = {"size": 32, "channels": 8, "num_scales": 2}
    prior = editor_pb2.DeepImagePrior(prompts=prompts, **few, **small)
    edits: list[Message] = [
        edit(image=png(), request_id="fuzz-0", seed=1, deep_image_prior=prior),
        edit(image=png(), mask=png(), preview_interval_iterations=1, deep_image_prior=prior),
        edit(image=png(), vqgan_clip=editor_pb2.VqganClip(
            prompts=prompts, image_prompts=[editor_pb2.ImagePrompt(image=jpeg())], size=32, **few)),
        edit(image=png(), text2live=editor_pb2.Text2Live(
            prompt="a cat", num_iterations=1, num_views=1, channels=8, num_scales=2)),
        edit(image=png(), styleclip_optimization=editor_pb2.StyleClipOptimization(
            prompt="a cat", num_inversion_iterations=1, **few)),
        edit(request_id="fuzz-1", styleclip_mapper_training=editor_pb2.StyleClipMapperTraining(
            prompt="a cat", num_iterations=1)),
        edit(image=png(), styleclip_mapper=editor_pb2.StyleClipMapper(
            mapper="operations/fuzz-1", num_inversion_iterations=1)),
        edit(styleclip_direction=editor_pb2.StyleClipDirection(
            prompt="a cat", neutral_prompt="a dog", num_relevance_images=2)),
        edit(request_id="fuzz-2", video=clip(), layered_atlas=editor_pb2.LayeredAtlas(
            num_iterations=1, num_pretraining_iterations=1, width=8, batch_size=16)),
        edit(video=clip("gif"), mask=png(), layered_atlas=editor_pb2.LayeredAtlas(
            num_iterations=1, num_pretraining_iterations=1, width=8, batch_size=16)),
        edit(image=png(), atlas_render=editor_pb2.AtlasRender(decomposition="operations/fuzz-2", layer=2)),
        edit(text2live_video=editor_pb2.Text2LiveVideo(
            decomposition="operations/fuzz-2", prompt="a cat", num_iterations=1, num_views=1, num_frames=1,
            channels=8)),
    ]  # fmt: skip
    prefix = "/sfumato.v1.EditorService/"
    operations = "/google.longrunning.Operations/"
    found: dict[str, list[list[Message]]] = {
        f"{prefix}Edit": [[message] for message in edits],
        f"{prefix}WatchEdit": [
            [editor_pb2.WatchEditRequest(name=name, after_iteration=index)]
            for index, name in enumerate(NAMES)
        ],
    }
    named: dict[str, Any] = {
        "GetOperation": operations_pb2.GetOperationRequest,
        "CancelOperation": operations_pb2.CancelOperationRequest,
        "DeleteOperation": operations_pb2.DeleteOperationRequest,
    }
    for method, request in named.items():
        found[f"{operations}{method}"] = [[request(name=name)] for name in NAMES]
    wait = operations_pb2.WaitOperationRequest
    found[f"{operations}WaitOperation"] = [[wait(name=name, timeout={"seconds": 1})] for name in NAMES]
    listed = operations_pb2.ListOperationsRequest(name="operations", page_size=5, page_token="1-fuzz-0")
    found[f"{operations}ListOperations"] = [[listed]]
    return found


def _encoder() -> dict[str, list[list[Message]]]:
    targets = encoder_pb2.GuideTargets(embeddings=tensor(2, WIDTH), weights=[1.0, -0.5])
    scales: dict[str, Any] = {"similarity_scale": 100, "tv_scale": 1, "range_scale": 1}
    image = encoder_pb2.GuideImageRequest(
        image=tensor(1, 3, 64, 64), targets=targets, num_cutouts=2, cut_power=1, seed=1, **scales
    )
    latents = encoder_pb2.GuideLatentsRequest(
        latents=tensor(*LATENTS), timestep=500, targets=targets, similarity_scale=100
    )
    prefix = "/sfumato.v1.EncoderService/"
    return {
        f"{prefix}EncodeText": [[encoder_pb2.EncodeTextRequest(texts=["a cat", ""])]],
        f"{prefix}EmbedText": [[encoder_pb2.EmbedTextRequest(texts=["a cat"])]],
        f"{prefix}EmbedImage": [[encoder_pb2.EmbedImageRequest(images=[png(), jpeg(), png(32, "RGBA")])]],
        f"{prefix}GuideImage": [[image]],
        f"{prefix}GuideLatents": [[latents]],
    }


def _decoder() -> dict[str, list[list[Message]]]:
    gradient = decoder_pb2.DecodeGradientRequest
    prefix = "/sfumato.v1.DecoderService/"
    return {
        f"{prefix}Decode": [[decoder_pb2.DecodeRequest(latents=tensor(*LATENTS), image_format=1)]],
        f"{prefix}Encode": [[decoder_pb2.EncodeRequest(image=png(), width=64, height=64)]],
        f"{prefix}DecodeGradient": [
            [gradient(latents=tensor(*LATENTS)), gradient(image_gradient=tensor(1, 3, 64, 64))]
        ],
    }


def _denoiser() -> dict[str, list[list[Message]]]:
    message = denoiser_pb2.DenoiseRequest
    control = denoiser_pb2.AttentionControl(
        mapper=tensor(CONTEXT, CONTEXT), inject=tensor(CONTEXT), weights=tensor(CONTEXT)
    )
    step = denoiser_pb2.DenoiseStep(step=0, latents=tensor(*LATENTS), timestep=500)
    kept = denoiser_pb2.DenoiseStep(step=0, latents=tensor(*LATENTS), timestep=500, keep_graph=True)
    shown = denoiser_pb2.DenoiseStep(
        step=1, latents=tensor(*LATENTS), timestep=400, rows=[0, 1], attention_rows=[1]
    )
    opened = message(open=denoiser_pb2.OpenTrajectory(prompt_embeds=tensor(2, CONTEXT, WIDTH)))
    edited = message(
        open=denoiser_pb2.OpenTrajectory(prompt_embeds=tensor(3, CONTEXT, WIDTH), attention_control=control)
    )
    edit = denoiser_pb2.EditStep(
        latents=tensor(2, 4, 8, 8), timestep=500, replace_cross_attention=True, replace_self_attention=True,
        attention=True,
    )  # fmt: skip
    total = denoiser_pb2.LinearSum(tensors=[0, 2, 1], coefficients=[0.9, 0.1, 0.2])
    step_of_run = denoiser_pb2.LinearStep(timestep=500, input_scale=1, weights=[-2, 3], sums=[total])
    run = denoiser_pb2.DenoiseRun(
        step=0, tensors=tensor(2, *LATENTS[1:]), steps=[step_of_run, step_of_run], returned=[3, 5]
    )
    gradient = denoiser_pb2.DenoiseGradient(noise_pred_gradient=tensor(2, 4, 8, 8))
    return {
        "/sfumato.v1.DenoiserService/Denoise": [
            [opened, message(step=step), message(step=shown)],
            [opened, message(step=kept), message(gradient=gradient)],
            [edited, message(edit=edit)],
            [opened, message(run=run), message(step=step)],
        ]
    }


def _models() -> dict[str, list[list[Message]]]:
    named: dict[str, Any] = {"family": "families/none", "revision": 1}
    prefix = "/sfumato.v1.ModelService/"
    infos: dict[str, Message] = {
        "Encoder": encoder_pb2.GetEncoderInfoRequest(family="families/tiny"),
        "Decoder": decoder_pb2.GetDecoderInfoRequest(family="families/tiny"),
        "Denoiser": denoiser_pb2.GetDenoiserInfoRequest(family="families/tiny"),
    }
    return {
        **{f"/sfumato.v1.{name}Service/Get{name}Info": [[info]] for name, info in infos.items()},
        f"{prefix}LoadModel": [[model_pb2.LoadModelRequest(**named)]],
        f"{prefix}UnloadModel": [[model_pb2.UnloadModelRequest(**named)]],
    }


def _open_inference() -> dict[str, list[list[Message]]]:
    raw, contents = _inference("unet", True), _inference("unet", False)
    texts = service_pb2.ModelInferRequest(model_name="clip_text", raw_input_contents=[b"\x01\0\0\0a" * 2])
    texts.inputs.add(name="texts", datatype="BYTES", shape=[2])
    images = service_pb2.ModelInferRequest(model_name="vae_encode", raw_input_contents=[bytes(3 * 64 * 64)])
    images.inputs.add(name="images", datatype="UINT8", shape=[1, 64, 64, 3])
    prefix = "/inference.GRPCInferenceService/"
    found: dict[str, list[list[Message]]] = {
        f"{prefix}ModelInfer": [[raw], [contents], [texts], [images]],
        f"{prefix}ModelStreamInfer": [[raw, contents], [texts, texts]],
    }
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for method in service.methods:
        if f"{prefix}{method.name}" not in found:
            request: Any = message_factory.GetMessageClass(method.input_type)
            texts_of = [f.name for f in method.input_type.fields if f.type == f.TYPE_STRING]
            found[f"{prefix}{method.name}"] = [
                [request(**dict.fromkeys(texts_of, name))] for name in ("unet", "clip_text", "x")
            ]
    return found


def _inference(model: str, raw: bool) -> service_pb2.ModelInferRequest:
    """Of the UNet, one row, with raw contents or without."""
    request = service_pb2.ModelInferRequest(model_name=model, id="a")
    for name, shape in (("latents", LATENTS), ("timestep", (1, 1)), ("prompt_embeds", (1, CONTEXT, WIDTH))):
        given = request.inputs.add(name=name, datatype="FP32", shape=shape)
        data = tensor(*shape).data
        if raw:
            request.raw_input_contents.append(data)
        else:
            given.contents.fp32_contents.extend(np.frombuffer(data, np.float32).tolist())
    request.outputs.add(name="noise_pred")
    return request
