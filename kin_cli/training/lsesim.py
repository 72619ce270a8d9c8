"""LSeSim (Zheng et al., CVPR 2021): patches keep their self-similarity, in fixed (F-) or learned (L-) VGG16 features.

Both variants compare features by cosine. VGG16 itself is never trained, as in the authors' code, where its learning
rate is 0. The heads step after the generator instead of before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kin_cli.training.framework import (
    Framework,
    Objective,
    PatchBatch,
    Phase,
    adam,
    adversarial_loss,
    build_discriminators,
    build_generator,
)
from kin_cli.training.losses import LOCATIONS, correlation_map, map_contrast, spatial_correlation
from kin_cli.training.networks import VggFeatures, frozen, initialise, random_places
from kin_cli.training.settings import LsesimLosses, NetworkSettings
from kin_cli.training.smooth_norm import smoothed

_DISCRIMINATOR_RATE = 2.0  # the discriminator's learning rate, relative to the generator's; the authors'


def build_lsesim(network: NetworkSettings, losses: LsesimLosses) -> Framework:
    """Networks, optimizers and phases of F-LSeSim, or of L-LSeSim, which has one phase more."""
    generator = build_generator(network)
    discriminators = build_discriminators(network, ["target"], pool=losses.pool, rate=_DISCRIMINATOR_RATE)
    vgg = VggFeatures(losses.layers)
    if losses.vgg is not None:
        vgg.load(losses.vgg)
    maps = CorrelationMaps(vgg, losses)
    spatial = SpatialObjective(generator, maps, discriminator=discriminators.by_stain["target"], losses=losses)
    phases = [Phase("generator", spatial, adam(generator))]
    networks: dict[str, nn.Module] = {"generator": generator, **discriminators.networks}
    if losses.learned:
        initialise(maps.heads, kind="normal", gain=0.02)  # as the authors do, whatever ``network.init`` is
        phases.append(Phase("maps", MapObjective(maps), adam(maps.heads)))
        networks["maps"] = maps.heads
    return Framework(generator, networks, (*phases, discriminators.phase), discriminators.pools, fixed=(vgg,))


class CorrelationMaps:
    """Self-similarity maps of images, layer by layer; ``heads`` are the learned part, empty in F-LSeSim."""

    def __init__(self, vgg: VggFeatures, losses: LsesimLosses) -> None:
        self._vgg, self._window = vgg, losses.window
        self.heads = nn.ModuleList(_head(c) for c in vgg.channels) if losses.learned else nn.ModuleList()

    def features(self, images: Tensor) -> list[Tensor]:
        """Features (B, C, h, w) of images (B, 3, H, W) in [-1, 1], after the heads if there are any."""
        features: list[Tensor] = self._vgg(images)
        if not self.heads:
            return features
        return [head(layer) for head, layer in zip(self.heads, features, strict=True)]

    def maps(self, features: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor]:
        """One tensor of maps (B, N, M) per layer, at the same flat places (N,) of every image."""
        return [
            correlation_map(layer, place, window=self._window) for layer, place in zip(features, places, strict=True)
        ]


def _head(channels: int) -> nn.Module:
    narrow = max(32, channels // 4)
    return nn.Sequential(nn.Conv2d(channels, narrow, 1), nn.ReLU(), nn.Conv2d(narrow, narrow, 1))


class SpatialObjective(Objective):
    """Adversarial loss + λ · spatially-correlative loss between a patch and its translation."""

    def __init__(
        self, generator: nn.Module, maps: CorrelationMaps, *, discriminator: nn.Module, losses: LsesimLosses
    ) -> None:
        super().__init__()
        self.generator = generator
        self._maps, self._weight = maps, losses.spatial
        self._discriminators = (discriminator,)  # a tuple does not register it among the parameters

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:  # noqa: D102
        with smoothed(self.generator, len(batch.source)):
            fake = self.generator(batch.source)
        batch.fakes = {"target": fake.detach()}
        with frozen(self._maps.heads):
            translated = self._maps.features(fake)
            with torch.no_grad():
                source = self._maps.features(batch.source)
        places = random_places(source, LOCATIONS)
        pairs = zip(self._maps.maps(source, places), self._maps.maps(translated, places), strict=True)
        distance = torch.stack([spatial_correlation(a, b) for a, b in pairs]).mean()
        terms = {"gan": adversarial_loss(self._discriminators[0], fake), "spatial": self._weight * distance}
        return terms | self.guided(batch, fake)


class MapObjective(Objective):
    """Contrastive loss of the heads of L-LSeSim: a patch against its translation and against itself recoloured.

    Negatives come from patches of the target stain, rotated by 180° so that equal positions are no cue.
    """

    def __init__(self, maps: CorrelationMaps) -> None:
        super().__init__()
        self.heads = maps.heads
        self._maps = maps

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:  # noqa: D102
        first = torch.cat([batch.source, batch.source])
        second = torch.cat([batch.fakes["target"].to(batch.source), recoloured(batch.source)])
        other = torch.cat([batch.target, recoloured(batch.target)]).flip(2, 3)
        views = [self._maps.features(images) for images in (first, second, other)]
        places = random_places(views[0], LOCATIONS)
        a, b, c = (self._maps.maps(view, places) for view in views)
        contrasts = [map_contrast(*pair, other=negative) for *pair, negative in zip(a, b, c, strict=True)]
        return {"maps": torch.stack(contrasts).mean()}


def recoloured(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] with the same structure in other, random colours; same shape and range.

    Gain and gamma of each channel and a blend with grey are drawn per image from torch's CPU generator.
    """
    count = len(images)
    gain, gamma, mix = torch.rand(3, count, 3, 1, 1).to(images.device)
    unit = images.float() * 0.5 + 0.5
    varied = (0.6 + 0.4 * gain) * unit.clamp(1e-3, 1.0) ** (0.5 + gamma)
    blend = 0.8 * mix[:, :1]
    blended: Tensor = (1.0 - blend) * varied + blend * varied.mean(1, keepdim=True)
    return blended * 2.0 - 1.0
