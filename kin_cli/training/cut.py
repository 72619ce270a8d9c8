"""CUT (Park et al., ECCV 2020): the features of a patch and of its translation must match, place by place.

Two deviations from the authors' code, neither of which moves an optimum: the generator steps before the discriminator
instead of after it, and the keys are features of the translation's own forward pass instead of a second, identical one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kin_cli.models.resnet import ResidualBlock, ResnetGenerator
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
from kin_cli.training.losses import LOCATIONS, patch_nce
from kin_cli.training.networks import PatchProjection, encode, forward_with_features, initialise, random_places
from kin_cli.training.settings import CutLosses, NetworkSettings
from kin_cli.training.smooth_norm import smoothed


def build_cut(network: NetworkSettings, losses: CutLosses) -> Framework:
    """Networks, optimizers and phases of CUT. What has a weight of 0 is not built."""
    generator = build_generator(network)
    adversary = build_discriminators(network, ["target"]) if losses.gan else None
    networks: dict[str, nn.Module] = {"generator": generator}
    layers, projection = losses.layers or official_layers(generator), None
    if losses.nce:
        projection = PatchProjection(feature_channels(generator, layers))
        initialise(projection, kind=network.init, gain=network.init_gain)
        networks["projection"] = projection
    discriminator = None if adversary is None else adversary.by_stain["target"]
    objective = ContrastObjective(generator, projection, discriminator=discriminator, layers=layers, losses=losses)
    phase = Phase("generator", objective, adam(objective))
    if adversary is None:
        return Framework(generator, networks, (phase,))
    return Framework(generator, {**networks, **adversary.networks}, (phase, adversary.phase), adversary.pools)


def official_layers(generator: ResnetGenerator) -> tuple[int, ...]:
    """The authors' five layers, as indices into ``generator.model``.

    These are the padded input, both downsampling convolutions, the first and the fifth residual block (the last, if
    there are fewer): 0, 4, 8, 12, 16 in the anti-aliased architecture.
    """
    first = next(i for i, layer in enumerate(generator.model) if isinstance(layer, ResidualBlock))
    down = [i for i, layer in enumerate(list(generator.model)[:first]) if isinstance(layer, nn.Conv2d)][1:]
    last = first + min(5, generator.spec.blocks) - 1
    return tuple(sorted({0, *down, first, last}))


def feature_channels(generator: ResnetGenerator, layers: tuple[int, ...]) -> list[int]:
    """Number of output channels of each of the layers."""
    with torch.no_grad():
        return [features.shape[1] for features in encode(generator.model, torch.zeros(1, 3, 32, 32), layers=layers)]


class ContrastObjective(Objective):
    """Adversarial loss + λ · PatchNCE; with ``identity`` PatchNCE is the mean of translation and identity."""

    def __init__(
        self,
        generator: ResnetGenerator,
        projection: PatchProjection | None,
        *,
        discriminator: nn.Module | None,
        layers: tuple[int, ...],
        losses: CutLosses,
    ) -> None:
        super().__init__()
        self.generator, self.projection = generator, projection
        self._layers, self._losses = layers, losses
        self._discriminators = (discriminator,)  # a tuple does not register it among the parameters

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:  # noqa: D102
        if self.projection is None:
            with smoothed(self.generator, len(batch.source)):
                fake = self.generator(batch.source)
            return self._common(batch, fake)
        losses, count = self._losses, len(batch.source)
        real = torch.cat([batch.source, batch.target]) if losses.identity else batch.source
        with smoothed(self.generator, count):
            fake, key_features = forward_with_features(self.generator.model, real, layers=self._layers)
        query_features = encode(self.generator.model, fake, layers=self._layers)
        places = random_places(key_features, LOCATIONS)
        with torch.no_grad():
            keys = self.projection(key_features, places)
        queries = self.projection(query_features, places)
        weight = losses.nce * (0.5 if losses.identity else 1.0)

        def nce(images: slice) -> Tensor:
            return weight * patch_nce([q[images] for q in queries], [k[images] for k in keys])

        terms = self._common(batch, fake[:count]) | {"nce": nce(slice(count))}
        if losses.identity:
            terms["nce_identity"] = nce(slice(count, None))
        return terms

    def _common(self, batch: PatchBatch, fake: Tensor) -> dict[str, Tensor]:
        """The terms without contrast; ``fake`` is the translation of the source."""
        batch.fakes = {"target": fake.detach()}
        discriminator = self._discriminators[0]
        gan = {} if discriminator is None else {"gan": self._losses.gan * adversarial_loss(discriminator, fake)}
        return gan | self.guided(batch, fake)
