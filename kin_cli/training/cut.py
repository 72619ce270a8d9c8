"""CUT (Park et al., ECCV 2020): one generator, whose patches must stay recognisable to its own encoder.

Two liberties, neither of which changes an optimum: the generator steps before the discriminator instead of after it,
and the keys are the features of the translation's own forward pass instead of a second, equal one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kin_cli.models.resnet import ResidualBlock, ResnetGenerator
from kin_cli.training.counterstain import brown_nuclei
from kin_cli.training.framework import (
    Framework,
    Objective,
    PatchBatch,
    Phase,
    adam,
    build_discriminators,
    build_generator,
    distance_to_painting,
    fooled,
    warm_terms,
)
from kin_cli.training.guide import misplaced_brown
from kin_cli.training.losses import patch_nce
from kin_cli.training.networks import PatchProjection, encode, forward_with_features, initialise, random_places
from kin_cli.training.settings import CutLosses, NetworkSettings


def build_cut(network: NetworkSettings, losses: CutLosses) -> Framework:
    """Networks, optimizers and phases of CUT."""
    generator, against = build_generator(network), build_discriminators(network, ["target"], pool=losses.pool)
    layers = losses.layers or official_layers(generator)
    projection = PatchProjection(feature_channels(generator, layers), dim=losses.projection)
    initialise(projection, kind=network.init, gain=network.init_gain)
    contrast = ContrastObjective(
        generator, projection, discriminator=against.discriminators["target"], layers=layers, losses=losses
    )
    return Framework(
        generator=generator,
        networks={"generator": generator, "projection": projection, **against.networks},
        phases=(Phase("generator", contrast, adam(contrast)), against.phase),
        pools=against.pools,
    )


def official_layers(generator: ResnetGenerator) -> tuple[int, ...]:
    """CUT's five, as indices into ``generator.model``: the padded input, both downsampling convolutions, the first and
    the fifth residual block (the last where there are fewer); 0, 4, 8, 12, 16 in the anti-aliased layout."""
    first = next(i for i, layer in enumerate(generator.model) if isinstance(layer, ResidualBlock))
    down = [i for i, layer in enumerate(list(generator.model)[:first]) if isinstance(layer, nn.Conv2d)][1:]
    last = first + min(5, generator.spec.blocks) - 1
    return tuple(sorted({0, *down, first, last}))


def feature_channels(generator: ResnetGenerator, layers: tuple[int, ...]) -> list[int]:
    """Channels of what these layers return."""
    with torch.no_grad():
        return [features.shape[1] for features in encode(generator.model, torch.zeros(1, 3, 32, 32), layers=layers)]


class ContrastObjective(Objective):
    """LSGAN + λ · PatchNCE, where PatchNCE is the mean of translation and identity if both are asked for."""

    def __init__(
        self,
        generator: ResnetGenerator,
        projection: PatchProjection,
        *,
        discriminator: nn.Module,
        layers: tuple[int, ...],
        losses: CutLosses,
    ) -> None:
        super().__init__()
        self.generator, self.projection = generator, projection
        self._discriminators, self._layers, self._losses = (
            (discriminator,),
            layers,
            losses,
        )  # a tuple: not among the parameters

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:  # noqa: D102
        if batch.warm:
            return warm_terms(self.generator, batch)
        losses, count = self._losses, len(batch.source)
        real = torch.cat([batch.source, batch.target]) if losses.identity else batch.source
        made, key_features = forward_with_features(self.generator.model, real, layers=self._layers)
        batch.made = {"target": made[:count].detach()}
        query_features = encode(self.generator.model, made, layers=self._layers)
        places = random_places(key_features, losses.locations)
        with torch.no_grad():
            keys = self.projection(key_features, places)
        queries = self.projection(query_features, places)
        weight = losses.nce * (0.5 if losses.identity else 1.0)

        def nce(part: slice) -> Tensor:
            return weight * patch_nce([q[part] for q in queries], [k[part] for k in keys], tau=losses.tau)

        terms = {"gan": losses.gan * fooled(self._discriminators[0], made[:count]), "nce": nce(slice(count))}
        if losses.identity:
            terms["nce_identity"] = nce(slice(count, None))
        if losses.nuclei > 0:
            terms["nuclei"] = losses.nuclei * brown_nuclei(batch.source, made[:count])
        if losses.painted > 0:
            terms["painted"] = losses.painted * distance_to_painting(made[:count], batch)
        if batch.guide is not None:
            terms["guided"] = losses.guided * misplaced_brown(made[:count], batch.guide)
        return terms
