"""What a forward does with attention: look at it, keep it, or follow another's (Hertz et al. 2022)."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Control:
    """How the target's cross-attention follows the source's.

    Shapes: mapper [tokens, tokens], source tokens down, target tokens across; inject and weights [tokens].
    """

    mapper: torch.Tensor
    inject: torch.Tensor
    weights: torch.Tensor


@dataclass
class Probe:
    """What one forward of one row looks at: the cross-attention maps."""

    maps: list[torch.Tensor] = field(default_factory=list)  # per layer [tokens, pixels]

    steers = False

    def see(self, layer: str, cross: bool, probabilities: torch.Tensor) -> torch.Tensor:
        """Takes note of [heads, pixels, keys]; returns what the layer is to use."""
        if cross:
            self.maps.append(probabilities.mean(0).T)
        return probabilities


@dataclass
class SourceProbe(Probe):
    """Keeps the source's probabilities for the target."""

    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    steers = True

    def see(self, layer: str, cross: bool, probabilities: torch.Tensor) -> torch.Tensor:
        self.kept[layer] = probabilities
        return super().see(layer, cross, probabilities)


@dataclass
class TargetProbe(Probe):
    """Injects the source's: Hertz et al. 2022, section 3.2, `Edit(M_t, M*_t, t)`."""

    source: dict[str, torch.Tensor] = field(default_factory=dict)
    control: Control | None = None
    replace_cross: bool = False
    replace_self: bool = False

    steers = True

    def see(self, layer: str, cross: bool, probabilities: torch.Tensor) -> torch.Tensor:
        if not cross:
            return self.source[layer] if self.replace_self else probabilities
        assert self.control is not None
        if self.replace_cross:
            injected = self.source[layer] @ self.control.mapper
            probabilities = torch.where(self.control.inject > 0, injected, probabilities)
        return super().see(layer, cross, probabilities * self.control.weights)
