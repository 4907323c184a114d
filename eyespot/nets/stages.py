"""Feature maps of the last stages of a residual net, for methods that look at several depths."""

from __future__ import annotations

from torch import Tensor, nn

from eyespot.errors import UserError
from eyespot.nets.backbones import Backbone
from eyespot.nets.small import SmallResNet


def stage_maps(backbone: Backbone, x: Tensor, count: int) -> list[Tensor]:
    """The maps [B, C, h, w] of the last `count` stages of pixels [B, C, H, W] in [0, 1], the deepest first.

    Raises:
        UserError: more than one is asked of a net whose stages are not known, or more than it has.
    """
    if count == 1:
        return [backbone.forward_dense(x)]
    kept: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda *call: kept.append(call[2])) for m in _stages(backbone, count)]
    try:
        backbone.features(x)
    finally:
        for hook in hooks:
            hook.remove()
    return kept[::-1]


def _stages(backbone: Backbone, count: int) -> list[nn.Module]:
    """The modules whose outputs end the last `count` stages, in order."""
    net = backbone.net
    if isinstance(net, SmallResNet):
        blocks = list(net.blocks)
        starts = [i for i, block in enumerate(blocks) if block.conv1.stride != (1, 1)]  # type: ignore[union-attr]
        found = [blocks[i - 1] for i in (*starts, len(blocks))]
    else:
        found = [getattr(net, f"layer{i}") for i in range(1, 5) if hasattr(net, f"layer{i}")]
    if count > len(found):
        has = f"has {len(found)}" if found else "has none that are known"
        raise UserError(f"The last {count} stages of {backbone.name} are wanted and it {has}; ask for fewer.")
    return found[-count:]
