"""The losses of layered neural atlases (Kasten et al. 2021, section 3.2), as pure functions.

Pixels are sampled in blocks of 2 x 2, the corner (y, x) first, then (y, x + 1), (y + 1, x), (y + 1, x + 1):
the finite differences of the gradient and of the rigidity are those within a block, so that no network is
evaluated for a difference alone.
"""

import torch
from torch.nn import functional as F

RIGIDITY_EPSILON = 0.001


def colour_loss(colours: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean of |c - c*|^2 over pixels [b, 4, 3] (equation 7)."""
    return (colours - truth).square().sum(-1).mean()


def differences(blocks: torch.Tensor) -> torch.Tensor:
    """[b, 4, d] to the differences along x, x, y, y within each block: [b, 4, d]."""
    along_x = blocks[:, [1, 3]] - blocks[:, [0, 2]]
    along_y = blocks[:, [2, 3]] - blocks[:, [0, 1]]
    return torch.cat([along_x, along_y], 1)


def gradient_loss(colours: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean over pixels of the squared difference of both derivatives [b, 4, 3] (equation 8)."""
    return 2 * colour_loss(differences(colours), differences(truth))


def rigidity(at: torch.Tensor, right: torch.Tensor, below: torch.Tensor, scale: float) -> torch.Tensor:
    """Mean of |J^T J| + |(J^T J)^-1| in Frobenius norms (equation 10), least for orthogonal J: 2 root 2.

    Args:
        at, right, below: uv [k, 2] of points, and of points moved along x and y.
        scale: makes J the identity where uv moves as wanted.
    """
    along_x, along_y = (right - at) * scale, (below - at) * scale
    a = along_x.square().sum(-1) + RIGIDITY_EPSILON
    d = along_y.square().sum(-1) + RIGIDITY_EPSILON
    b = (along_x * along_y).sum(-1)
    norm = (a.square() + 2 * b.square() + d.square()).sqrt()
    # The determinant is a d - b^2; so written, float32 has some of it left where J is large and singular.
    area = along_x[:, 0] * along_y[:, 1] - along_x[:, 1] * along_y[:, 0]
    determinant = area.square() + RIGIDITY_EPSILON * (a + d - RIGIDITY_EPSILON)
    return (norm + norm / determinant).mean()  # a symmetric 2 x 2 matrix's inverse has its norm / det


def flow_loss(uv: torch.Tensor, uv_there: torch.Tensor, weight: torch.Tensor, pixels: float) -> torch.Tensor:
    """Mean of weight |uv(p) - uv(p + flow)| in pixels (equation 11), over [k, 2]; 0 where k is 0."""
    distance = ((uv - uv_there).square().sum(-1) + 1e-12).sqrt() * pixels
    return (weight * distance).sum() / max(1, len(uv))


def alpha_flow_loss(alpha: torch.Tensor, alpha_there: torch.Tensor) -> torch.Tensor:
    """Mean of |alpha(p) - alpha(p + flow)| (equation 12)."""
    return (alpha - alpha_there).abs().sum() / max(1, len(alpha))


def sparsity_loss(foreground: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Mean of |c_f (1 - alpha)|^2 (equation 13): the foreground atlas is black where nothing needs it."""
    return (foreground * (1 - alpha)[..., None]).square().sum(-1).mean()


def bootstrap_loss(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of alpha with the mask in [0, 1] (equation 14).

    Of alpha's logits: an opacity that has become 0 or 1 where the mask says otherwise still has a gradient.
    """
    return F.binary_cross_entropy_with_logits(logits, mask)
