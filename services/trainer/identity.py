"""The identity network: which smiley it is, by a softmax over cosines (Wang et al. 2018, NormFace)."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from sfumato.common.identity import IdentityNetwork, save_identity
from sfumato.trainer.batches import to_pixels
from sfumato.trainer.checkpoint import average_of
from sfumato.trainer.loop import Schedule, train
from sfumato.trainer.portraits import num_labels, portraits

SCALE = 16.0  # of the cosines


class Trained(nn.Module):
    """The network, and a unit vector for each smiley in each style."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.network = IdentityNetwork()
        self.centres = nn.Parameter(torch.randn(labels, int(self.network.config["num_features"])))  # type: ignore[call-overload]

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """[n, labels] for uint8 images."""
        return SCALE * self.network(to_pixels(images)) @ F.normalize(self.centres, dim=1).T


def train_identity(data: Path, path: Path, schedule: Schedule, seed: int, batch: int) -> None:
    """Trains, or goes on training, and prints the accuracy on new portraits at each checkpoint."""
    torch.manual_seed(seed)
    trained = Trained(num_labels(data, "faces"))
    images, labels = next(iter(portraits(data, "faces", (seed + 1,), 256, 0, 1, workers=0)))

    @torch.inference_mode()
    def report(step: int) -> str:
        accuracy = (trained.logits(images).argmax(1) == labels).float().mean()
        return f"identity step {step}: accuracy {float(accuracy):.3f} among {len(trained.centres)}"

    train(
        "identity", trained, path, schedule,
        lambda first, rank: portraits(data, "faces", (seed, rank), batch, first, schedule.num_steps),
        lambda item, step: F.cross_entropy(trained.logits(item[0]).float(), item[1]), report,
    )  # fmt: skip


def export_identity(path: Path, family: Path) -> None:
    """The averaged network, without the smileys' vectors."""
    weights = average_of(path)
    trained = Trained(len(weights["centres"]))
    trained.load_state_dict(weights)
    save_identity(trained.network, family / "identity")
