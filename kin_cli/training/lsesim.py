"""LSeSim (Zheng et al., CVPR 2021): patches keep their self-similarity, in fixed (F-) or learned (L-) VGG16 features.

Features are compared as cosines in both variants. VGG16 itself is never trained, as in the authors' code, where its
learning rate is 0. The heads step after the generator instead of before it.
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
    build_discriminators,
    build_generator,
    fooled,
    warm_terms,
)
from kin_cli.training.losses import correlation_map, map_contrast, spatial_correlation
from kin_cli.training.networks import VggFeatures, frozen, initialise, random_places
from kin_cli.training.patches import recoloured
from kin_cli.training.settings import LsesimLosses, NetworkSettings


def build_lsesim(network: NetworkSettings, losses: LsesimLosses) -> Framework:
    """Networks, optimizers and phases of F-LSeSim, and of L-LSeSim with one phase more."""
    generator = build_generator(network)
    against = build_discriminators(network, ["target"], pool=losses.pool, rate=losses.disc_rate)
    vgg = VggFeatures(losses.layers)
    if losses.vgg is not None:
        vgg.load(losses.vgg)
    maps = CorrelationMaps(vgg, losses)
    spatial = SpatialObjective(generator, maps, discriminator=against.discriminators["target"], losses=losses)
    phases = [Phase("generator", spatial, adam(generator))]
    networks: dict[str, nn.Module] = {"generator": generator, **against.networks}
    if losses.learned:
        initialise(maps.heads, kind="normal", gain=0.02)  # whatever the other networks begin with, as the authors do
        phases.append(Phase("maps", MapObjective(maps, losses), adam(maps.heads)))
        networks["maps"] = maps.heads
    return Framework(generator, networks, (*phases, against.phase), against.pools, fixed=(vgg,))


class CorrelationMaps:
    """From images to self-similarity maps, layer by layer; ``heads`` are the learned part, empty in F-LSeSim."""

    def __init__(self, vgg: VggFeatures, losses: LsesimLosses) -> None:
        self._vgg, self._losses = vgg, losses
        self.heads = nn.ModuleList(_head(c) for c in vgg.channels) if losses.learned else nn.ModuleList()

    def features(self, images: Tensor) -> list[Tensor]:
        """Features (B, C, h, w) of images (B, 3, H, W) in [-1, 1], through the heads if there are any."""
        found: list[Tensor] = self._vgg(images)
        if not self.heads:
            return found
        return [head(layer) for head, layer in zip(self.heads, found, strict=True)]

    def maps(self, features: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, N, M) at the same places of every image."""
        return [
            correlation_map(layer, place, window=self._losses.window)
            for layer, place in zip(features, places, strict=True)
        ]


def _head(channels: int) -> nn.Module:
    narrow = max(32, channels // 4)
    return nn.Sequential(nn.Conv2d(channels, narrow, 1), nn.ReLU(), nn.Conv2d(narrow, narrow, 1))


class SpatialObjective(Objective):
    """LSGAN + λ · spatially-correlative loss between a patch and its translation."""

    def __init__(
        self, generator: nn.Module, maps: CorrelationMaps, *, discriminator: nn.Module, losses: LsesimLosses
    ) -> None:
        super().__init__()
        self.generator = generator
        self._maps, self._discriminators, self._losses = (
            maps,
            (discriminator,),
            losses,
        )  # a tuple: not among the parameters

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:  # noqa: D102
        if batch.warm:
            return warm_terms(self.generator, batch)
        made = self.generator(batch.source)
        batch.made = {"target": made.detach()}
        with frozen(self._maps.heads):
            translated = self._maps.features(made)
            with torch.no_grad():
                source = self._maps.features(batch.source)
        places = random_places(source, self._losses.locations)
        pairs = zip(self._maps.maps(source, places), self._maps.maps(translated, places), strict=True)
        distance = torch.stack([spatial_correlation(a, b) for a, b in pairs]).mean()
        return {"gan": fooled(self._discriminators[0], made), "spatial": self._losses.spatial * distance}


class MapObjective(Objective):
    """What trains the heads of L-LSeSim: a patch against its translation and against itself in other colours.

    Negatives come from patches of the target stain, turned by 180° so that a common layout is no cue.
    """

    def __init__(self, maps: CorrelationMaps, losses: LsesimLosses) -> None:
        super().__init__()
        self.heads = maps.heads
        self._maps, self._losses = maps, losses

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:  # noqa: D102
        first = torch.cat([batch.source, batch.source])
        second = torch.cat([batch.made["target"].to(batch.source), recoloured(batch.source)])
        other = torch.cat([batch.target, recoloured(batch.target)]).flip(2, 3)
        views = [self._maps.features(images) for images in (first, second, other)]
        places = random_places(views[0], self._losses.locations)
        a, b, c = (self._maps.maps(view, places) for view in views)
        contrasts = [
            map_contrast(*pair, other=negative, tau=self._losses.tau) for *pair, negative in zip(a, b, c, strict=True)
        ]
        return {"maps": torch.stack(contrasts).mean()}
