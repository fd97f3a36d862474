"""The family's UNet and its variants: one for each LoRA adapter, made when it is first asked for."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sfumato.common.errors import NotFound
from sfumato.common.out_of_memory import within_memory
from sfumato.denoiser.attention import AttentionUNet, num_cross_attention_layers
from sfumato.denoiser.engine_torch import TorchUNet, Unet


@dataclass(frozen=True)
class Unets:
    """One UNet, as its uses need it.

    Attributes:
        unet: for forward passes, by the engine of the settings; an adapter's by torch.
        torch_unet: for gradients; the same object where torch is the engine.
        attention: its attention, seen and steered.
    """

    unet: Unet
    torch_unet: TorchUNet
    attention: AttentionUNet

    @property
    def num_cross_attention_layers(self) -> int:
        """Layers whose attention can be seen."""
        return num_cross_attention_layers(self.torch_unet.model)


class Adapters:
    """UNets with adapters, the ones last asked for kept."""

    def __init__(self, base: TorchUNet, files: Mapping[str, Path], max_kept: int) -> None:
        """files: of the adapters, by name; max_kept: each holds copies of the layers that it changes."""
        self._base, self._files, self._max_kept = base, files, max_kept
        self._kept: OrderedDict[str, Unets] = OrderedDict()
        self._lock = asyncio.Lock()

    @property
    def names(self) -> list[str]:
        """Of those that can be asked for."""
        return list(self._files)

    async def get(self, name: str) -> Unets:
        """The UNet with that adapter.

        Raises:
            NotFound: there is no such adapter.
            WeightsError: it is not an adapter of this UNet.
            OutOfMemory: there is none for the layers that it changes.
        """
        if name not in self._files:
            known = ", ".join(self._files) or "none"
            raise NotFound(f"no adapter {name!r:.60}; the family has {known}", field="adapter",
                           limit=known, value=name)  # fmt: skip
        async with self._lock:
            if name not in self._kept:
                changed = await asyncio.to_thread(
                    within_memory, "load_adapter", self._base.with_adapter, self._files[name]
                )
                attention = AttentionUNet(changed.model, changed.device)
                self._kept[name] = Unets(changed, changed, attention)
                if len(self._kept) > self._max_kept:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(name)
            return self._kept[name]
