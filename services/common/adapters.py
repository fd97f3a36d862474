"""LoRA adapters (Hu et al. 2022): a family's adapters/NAME.safetensors, each a change of some layers.

    W' = W + (alpha / rank) B A

Here the change is folded into copies of those layers once, and all other weights are shared with the model:
a forward costs what it did, and a row's bits do not depend on which adapters its neighbours have. diffusers'
own reader knows the formats (its own, PEFT's, kohya's).
"""

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sfumato.common.checked_weights import WeightsError, read_header

FOLDER = "adapters"
_PAIR = re.compile(
    r"^(?P<module>.+?)(?:\.lora(?:_linear_layer)?|_lora|\.lora_linear_layer)?[._]"
    r"(?P<half>down|up|lora_A|lora_B)(?:\.default)?\.weight$"
)
_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

# A changed layer's name to alpha / rank, B and A.
Change = Mapping[str, tuple[float, torch.Tensor, torch.Tensor]]


def adapters_of(family: Path) -> dict[str, Path]:
    """The family's adapters by name."""
    return {file.stem: file for file in sorted((family / FOLDER).glob("*.safetensors"))}


def read_change(file: Path, part: str, unet_config: Any = None) -> Change:
    """What an adapter changes in a part; empty: nothing.

    Args:
        file: of an adapter.
        part: "unet", "text_encoder" or "text_encoder_2".
        unet_config: of the UNet, by which block numbers of SDXL's original names are read.

    Raises:
        WeightsError: it is no LoRA adapter.
    """
    from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin

    read_header(file)
    with safe_open(file, "pt") as opened:
        held = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118  (not a mapping)
        metadata = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    tensors, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(held, unet_config=unet_config)
    if not any(name.startswith(("unet.", "text_encoder")) for name in tensors):
        raise WeightsError(
            f"{file}: {next(iter(held), 'nothing')} is not of a LoRA adapter for this kind of model"
        )
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{part}."):
            module, half = _place(name.removeprefix(f"{part}."), file)
            halves.setdefault(module, {})[half] = tensor
    given = {_alpha_place(name, part): alpha for name, alpha in (alphas or {}).items()}
    change = {}
    for module, pair in halves.items():
        if pair.keys() != {"A", "B"}:
            raise WeightsError(f"{file}: {part}.{module} has one half of a LoRA pair")
        rank = pair["A"].shape[0]
        if not rank or pair["B"].shape[1] != rank:
            shapes = " and ".join(str(list(pair[half].shape)) for half in "AB")
            raise WeightsError(f"{file}: {part}.{module} has halves of shapes {shapes}, which are of no rank")
        alpha = float(given.get(module, metadata.get(f"{part}.lora_alpha", rank)))
        change[module] = (alpha / rank, pair["B"], pair["A"])
    return change


def adapted(model: Any, change: Change, where: str) -> Any:
    """A copy of the model with the change in it; shares the weights that do not change.

    Args:
        model: the part.
        change: of `read_change`.
        where: names the adapter in errors.

    Raises:
        WeightsError: a layer that the model does not have, or of another shape.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    changed = copy.deepcopy(model, shared)
    modules = dict(changed.named_modules())
    for name, (scale, b, a) in change.items():
        module = modules.get(name) or modules.get(name.removeprefix("text_model."))
        weight = getattr(module, "weight", None)
        if module is None or weight is None:
            raise WeightsError(f"{where}: the model has no layer {name}")
        delta = torch.einsum("or,r...->o...", b.flatten(1), a) if a.ndim == 4 else b.flatten(1) @ a.flatten(1)
        if delta.numel() != weight.numel() or delta.shape[0] != weight.shape[0]:
            raise WeightsError(
                f"{where}: {name} changes {list(delta.shape)}, the layer is {list(weight.shape)}"
            )
        new = weight.detach() + scale * delta.view(weight.shape).to(weight.device, weight.dtype)
        module.weight = torch.nn.Parameter(new, requires_grad=False)
    return changed


def _place(name: str, file: Path) -> tuple[str, str]:
    """The layer, and which half of the pair ("A": in, "B": out)."""
    found = _PAIR.match(name)
    if found is None:
        raise WeightsError(f"{file}: {name} is not a half of a LoRA pair")
    half = "A" if found["half"] in ("down", "lora_A") else "B"
    return _module(found["module"]), half


def _alpha_place(name: str, part: str) -> str:
    name = name.removeprefix(f"{part}.").removesuffix(".alpha")
    found = _PAIR.match(name)
    return _module(found["module"] if found else re.sub(r"(\.lora(_linear_layer)?|_lora)$", "", name))


def _module(name: str) -> str:
    """diffusers' older names of attention layers to the layers'."""
    name = re.sub(r"(\.lora(_linear_layer)?|_lora)$", "", name.replace(".processor.", "."))
    head, _, last = name.rpartition(".")
    if head.endswith("self_attn") and last in _ATTENTION:
        return f"{head}.{_ATTENTION[last]}"
    return f"{name}.0" if last == "to_out" else name
