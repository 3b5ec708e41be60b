"""The order of a network's layers, for learning rates that differ by layer."""

from typing import Any

from torch import nn

from data_pipeline.errors import UserError


def layer_depths(network: nn.Module) -> dict[nn.Parameter, int]:
    """Depth of each weight's layer: 0 for the last layer, 1 for the stage before it, and so on to the stem.

    Stages are timm's own: `group_matcher(coarse=True)`, which the networks here have too. What is in no stage has
    depth 0. A transformer's stages are its blocks. UserError for a network without it.
    """
    for module in (network, *network.children()):  # the network may be wrapped in an adapter
        matcher: Any = getattr(module, "group_matcher", None)
        if matcher is None:
            continue
        # Imported only if needed: timm takes seconds to load.
        from timm.models import group_parameters

        stages: dict[str, int] = group_parameters(module, matcher(coarse=True), reverse=True)
        last = max(stages.values())
        if last > 0:
            weights = dict(module.named_parameters())
            return {weight: last - stages[name] for name, weight in weights.items()}
    raise UserError(
        "layer_decay below 1 and frozen_epochs need a network whose layers have an order, and this one names none "
        "(timm's group_matcher): leave them out, or take another model"
    )
