"""Loss functions of the three frameworks. Losses are float32 scalars."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LOCATIONS = 256
"""Random places per layer and image at which features are compared: Park et al., 2020; Zheng et al., 2021."""

_TEMPERATURE = 0.07  # τ of both papers


def lsgan_generator(scores: Tensor) -> Tensor:
    """Least squares (Mao et al., ICCV 2017): mean (D(fake) - 1)²."""
    return (scores.float() - 1.0).square().mean()


def lsgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Half of mean (D(real) - 1)² + mean D(fake)²."""
    return 0.5 * ((real.float() - 1.0).square().mean() + fake.float().square().mean())


def patch_nce(queries: Sequence[Tensor], keys: Sequence[Tensor], *, tau: float = _TEMPERATURE) -> Tensor:
    """PatchNCE (Park et al., ECCV 2020, Eq. 3), mean over layers, images and places.

    ``queries`` and ``keys`` hold one tensor (B, N, C) of unit vectors per layer. The positive of a query is the key at
    the same place; its negatives are the other keys of the same image. No gradient flows into the keys.
    """
    per_layer = []
    for query, key in zip(queries, keys, strict=True):
        logits = query.float() @ key.detach().float().transpose(1, 2) / tau  # (B, N, N)
        labels = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[0], -1)
        per_layer.append(F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    return torch.stack(per_layer).mean()


def correlation_map(features: Tensor, places: Tensor, *, window: int) -> Tensor:
    """Self-similarity of features (B, C, h, w) at flat places (N,): (B, N, M), cosines in [-1, 1].

    Each place is compared with the M = window² positions of the square around it (Zheng et al., CVPR 2021, Eq. 1). The
    square is shifted to stay inside the feature map; a map not larger than the square is compared as a whole, M = h·w.
    Features are centred over the image first.
    """
    height, width = features.shape[-2:]
    centred = features.float() - features.float().mean((2, 3), keepdim=True)
    unit = F.normalize(centred, dim=1).flatten(2)  # (B, C, hw)
    similarity = unit[:, :, places].transpose(1, 2) @ unit  # (B, N, hw)
    if window >= min(height, width):
        return similarity
    index = _window_index(places, (height, width), window)
    return similarity.gather(2, index.expand(similarity.shape[0], -1, -1))


def _window_index(places: Tensor, size: tuple[int, int], window: int) -> Tensor:
    """Flat indices (N, window²) of the square around each place, shifted to stay inside ``size``."""
    height, width = size
    top = (places // width - window // 2).clamp(0, height - window)
    left = (places % width - window // 2).clamp(0, width - window)
    steps = torch.arange(window, device=places.device)
    rows = (top[:, None] + steps)[:, :, None]  # (N, window, 1)
    cols = (left[:, None] + steps)[:, None, :]
    return (rows * width + cols).flatten(1)


def spatial_correlation(source: Tensor, translated: Tensor, *, strongest: float = 0.5) -> Tensor:
    """Mean of 1 - cos between the maps (B, N, M) of a patch and of its translation (Zheng et al., Eq. 2-3).

    As in the authors' code, only the ``strongest`` fraction of each source map's entries is compared; 1 compares all.
    """
    size = source.shape[-1]
    kept = max(1, round(strongest * size))
    threshold = source.topk(kept, dim=-1).values[..., -1:]
    mask = source >= threshold
    return (1.0 - F.cosine_similarity(source * mask, translated * mask, dim=-1)).mean()


def map_contrast(first: Tensor, second: Tensor, *, other: Tensor, tau: float = _TEMPERATURE) -> Tensor:
    """Contrastive loss of the learned maps (Zheng et al., Eq. 4): two views of one structure agree at equal places.

    All maps are (B, N, M). The negatives of a place are the other places of the second view, and all places of
    ``other`` compared with either view.
    """
    a, b, c = (F.normalize(maps.float(), dim=-1) for maps in (first, second, other))
    logits = torch.cat([a @ b.transpose(1, 2), a @ c.transpose(1, 2), b @ c.transpose(1, 2)], dim=-1) / tau
    labels = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[0], -1)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
