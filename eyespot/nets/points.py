"""Networks of point clouds: hierarchies of groups with a transformer on each level.

    points_nano     levels of 32 / 16 / 8 tokens, widths 16 / 24 / 32, one block a level
    points_micro    levels of 64 / 32 / 16 tokens, widths 32 / 64 / 96, two blocks a level
    point_m2ae      levels of 512 / 256 / 64 tokens, widths 96 / 192 / 384, five blocks a level (Zhang et al., NeurIPS
                    2022, arXiv 2205.14401), for clouds of 1,024 points and more

A token stands for a group: a centre and its nearest neighbours in the level below, by a small PointNet (Qi et al., CVPR
2017). Positions are added before every block. Features are the largest values over the tokens of the last level, or
these and their means (`pooling="max_mean"`).
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from eyespot.errors import UserError, nearest
from eyespot.nets.backbones import Backbone
from eyespot.nets.point_ops import Level, gathered, hierarchy, interpolated

POOLINGS = ("max", "max_mean")


class Rows(nn.Sequential):
    """Layers on the last dimension, whatever stands before it: batch norms see [rows, C]."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(0, -2)).unflatten(0, input.shape[:-1])


class GroupEmbed(nn.Module):
    """A small PointNet: a group [M, k, C] -> [M, D], twice a shared perceptron and the largest value over the group.

    Args:
        width_in: C.
        width: D.
        hidden: width of the first perceptron, its output is twice as wide; 0: C for both, as where tokens are merged.
    """

    def __init__(self, width_in: int, width: int, hidden: int = 0):
        super().__init__()
        inner, middle = (hidden, 2 * hidden) if hidden else (width_in, width_in)
        last = 2 * middle if hidden else width
        # no bias before a batch norm, which takes it off: its gradient would be rounding alone
        self.first = Rows(
            nn.Linear(width_in, inner, bias=False),
            nn.BatchNorm1d(inner),
            nn.ReLU(inplace=True),
            nn.Linear(inner, middle, bias=False),
        )
        self.second = Rows(
            nn.Linear(2 * middle, last, bias=False), nn.BatchNorm1d(last), nn.ReLU(inplace=True), nn.Linear(last, width)
        )

    def forward(self, groups: Tensor) -> Tensor:
        x = self.first(groups)
        whole = x.amax(1, keepdim=True).expand_as(x)
        return self.second(torch.cat([whole, x], -1)).amax(1)


class Stage(nn.Module):
    """Transformer blocks on the tokens of one level, with positions before every block.

    Args:
        width: of the tokens.
        depth, heads: of the blocks.
        drop_path: share of the samples that skip a block, for each block.
    """

    def __init__(self, width: int, depth: int, heads: int, drop_path: list[float]):
        super().__init__()
        self.position = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=False, drop_path=drop_path[i]) for i in range(depth))

    def forward(self, x: Tensor, centres: Tensor, visible: Tensor | None = None) -> Tensor:
        """Tokens [B, G, D] after the blocks; of those not `visible` (bool [B, G]) none is seen, and 0 is returned."""
        if visible is None:
            return self._blocks(x, centres, None)
        # the tokens that some cloud of the batch shows, those of each cloud first
        most = int(visible.sum(1).amax())
        order = (~visible).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        seen = visible.gather(1, order)
        y = self._blocks(gathered(x, order), gathered(centres, order), seen[:, None, None])
        y = y * seen.unsqueeze(-1)
        return torch.zeros_like(x).scatter(1, order.unsqueeze(-1).expand_as(y), y)

    def _blocks(self, x: Tensor, centres: Tensor, mask: Tensor | None) -> Tensor:
        position = self.position(centres)
        for block in self.blocks:
            x = block(x + position, attn_mask=mask)
        return x


class PointEncoder(nn.Module):
    """Tokens of every level of a cloud (Point-M2AE's encoder).

    Args:
        channels: numbers of a point: its place, and features such as colours.
        groups, neighbours: tokens of each level, and members of each group.
        widths, depths: of the blocks of each level.
        heads: attention heads.
        hidden: width of the first level's PointNet.
        drop_path: largest share of the samples that skip a block; it grows from 0 with the blocks.
    """

    def __init__(
        self,
        channels: int = 3,
        groups: tuple[int, ...] = (64, 32, 16),
        neighbours: tuple[int, ...] = (8, 4, 4),
        widths: tuple[int, ...] = (32, 64, 96),
        depths: tuple[int, ...] = (2, 2, 2),
        heads: int = 4,
        hidden: int = 32,
        drop_path: float = 0.0,
    ):
        super().__init__()
        groups, neighbours, widths, depths = map(tuple, (groups, neighbours, widths, depths))
        _check_levels(groups, neighbours, widths, depths, heads)
        self.groups, self.neighbours, self.widths, self.heads = groups, neighbours, widths, heads
        self.embeds = nn.ModuleList(
            GroupEmbed(channels if k == 0 else widths[k - 1], width, hidden if k == 0 else 0)
            for k, width in enumerate(widths)
        )
        rates = torch.linspace(0, drop_path, sum(depths)).split(list(depths))
        self.stages = nn.ModuleList(
            Stage(w, d, heads, r.tolist()) for w, d, r in zip(widths, depths, rates, strict=True)
        )
        # of finer levels only the next level makes use: a norm there would never be trained
        lowest = max(0, len(widths) - 2)
        self.norms = nn.ModuleList(nn.LayerNorm(w) if k >= lowest else nn.Identity() for k, w in enumerate(widths))
        self.apply(_init)

    def levels(self, points: Tensor) -> list[Level]:
        """The groups of clouds [B, N, C]."""
        return hierarchy(points[..., :3], self.groups, self.neighbours)

    def run(self, points: Tensor, levels: list[Level], visible: list[Tensor] | None = None) -> list[Tensor]:
        """Tokens [B, G, D] of every level, fine to coarse, the two coarsest normed; 0 where a token is not visible.

        Args:
            points: [B, N, C].
            levels: from `levels`.
            visible: bool [B, G] of each level, see `eyespot.nets.point_ops.pass_down`; None: all.
        """
        out, x = [], None
        for k, level in enumerate(levels):
            seen = None if visible is None else visible[k]
            x = self._embedded(k, points if x is None else x, level, seen)
            x = self.stages[k](x, level.centres, seen)
            normed = self.norms[k](x)
            out.append(normed if seen is None else normed * seen.unsqueeze(-1))
        return out

    def _embedded(self, k: int, below: Tensor, level: Level, seen: Tensor | None) -> Tensor:
        """Tokens of a level made of what is below; only the groups that are seen go through the perceptrons, so that
        what is hidden is in no statistic either."""
        groups = gathered(below, level.index)
        if k == 0:
            groups = torch.cat([groups[..., :3] - level.centres.unsqueeze(2), groups[..., 3:]], -1)
        if seen is None:
            return self.embeds[k](groups.flatten(0, 1)).unflatten(0, groups.shape[:2])
        tokens = self.embeds[k](groups[seen])
        blank = tokens.new_zeros(*seen.shape, tokens.shape[-1])
        return blank.masked_scatter(seen.unsqueeze(-1), tokens)

    def forward(self, points: Tensor) -> Tensor:
        """Tokens [B, G, D] of the last level of clouds [B, N, C]."""
        return self.run(points, self.levels(points))[-1]


class Propagation(nn.Module):
    """Features of a coarse level at the places of a finer one, joined with what the encoder knew there."""

    def __init__(self, width_in: int, skip: int, width: int):
        super().__init__()
        self.join = Rows(nn.Linear(width_in + skip, width, bias=False), nn.BatchNorm1d(width), nn.GELU())
        self.refine = Rows(
            nn.Linear(width, width, bias=False),
            nn.BatchNorm1d(width),
            nn.GELU(),
            nn.Linear(width, width, bias=False),
            nn.BatchNorm1d(width),
        )

    def forward(self, fine: Tensor, coarse: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        x = self.join(torch.cat([skip, interpolated(fine, coarse, x)], -1))
        return nn.functional.gelu(x + self.refine(x))


class PointDecoder(nn.Module):
    """From the visible tokens back to a token at every centre of a finer level (Point-M2AE's decoder).

    Args:
        encoder: whose tokens are decoded; the widths are its own.
        stop: the level that is decoded to, 0 is the finest.
        depth: blocks a level.
    """

    def __init__(self, encoder: PointEncoder, stop: int = 1, depth: int = 1):
        super().__init__()
        widths, heads, top = encoder.widths, encoder.heads, len(encoder.widths) - 1
        if not 0 <= stop < top:
            raise UserError(f"stop={stop} is no level below the top of {top + 1} levels; give 0 to {top - 1}.")
        self.stop = stop
        self.mask_token = nn.Parameter(torch.zeros(1, 1, widths[top]))
        self.stages = nn.ModuleList(Stage(widths[k], depth, heads, [0.0] * depth) for k in range(top, stop - 1, -1))
        self.propagations = nn.ModuleList(
            Propagation(widths[k + 1], widths[k], widths[k]) for k in range(top - 1, stop - 1, -1)
        )
        self.norm = nn.LayerNorm(widths[stop])
        self.apply(_init)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, tokens: list[Tensor], levels: list[Level], visible: list[Tensor]) -> Tensor:
        """[B, G, D] at the centres of level `stop`, of the encoder's tokens of every level, 0 where hidden."""
        x = torch.where(visible[-1].unsqueeze(-1), tokens[-1], self.mask_token.to(tokens[-1].dtype))
        x = self.stages[0](x, levels[-1].centres)
        down = range(len(levels) - 2, self.stop - 1, -1)
        for k, propagate, stage in zip(down, self.propagations, list(self.stages)[1:], strict=True):
            x = propagate(levels[k].centres, levels[k + 1].centres, tokens[k], x)
            x = stage(x, levels[k].centres)
        return self.norm(x)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5 * 0.8)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_levels(
    groups: tuple[int, ...], neighbours: tuple[int, ...], widths: tuple[int, ...], depths: tuple[int, ...], heads: int
) -> None:
    if not len(groups) == len(neighbours) == len(widths) == len(depths) or len(groups) < 2:
        raise UserError(
            f"groups={groups}, neighbours={neighbours}, widths={widths} and depths={depths} must name as many levels, "
            "at least two."
        )
    if any(width % heads for width in widths):
        raise UserError(f"heads={heads} does not divide every width of {widths}; choose heads that do.")
    if any(k > n for k, n in zip(neighbours[1:], groups[:-1], strict=True)):
        raise UserError(f"neighbours={neighbours} are more than the tokens of the level below, groups={groups}.")


class PointBackbone(Backbone):
    """An encoder of clouds [B, N, C], C = 3 or more, in the unit sphere; `image_size` is N. Any N is taken that is not
    less than the number of groups of the finest level."""

    modality: ClassVar[str] = "points"

    def __init__(self, net: PointEncoder, *, pooling: str = "max", **common: Any):
        if pooling not in POOLINGS:
            raise UserError(f"pooling='{pooling}' is not known; {nearest(pooling, POOLINGS)}")
        self.pooling = pooling
        super().__init__(net, **common)

    def normalize(self, x: Tensor) -> Tensor:
        """Clouds as the net takes them: the mean and deviation of each number of a point are the backbone's."""
        if x.shape[-1] != self.channels:
            raise UserError(
                f"The points have {x.shape[-1]} numbers but the backbone {self.name} takes {self.channels}; build it "
                f"with channels={x.shape[-1]}."
            )
        if not x.is_floating_point():
            raise UserError(f"The points are {x.dtype}; a backbone takes floating point numbers.")
        if x.shape[1] < self.net.groups[0]:
            raise UserError(
                f"Clouds of {x.shape[1]} points are too small for the {self.net.groups[0]} groups of {self.name}; give "
                f"at least {self.net.groups[0]} (--image-size)."
            )
        return ((x - self.mean.flatten()) / self.std.flatten()).to(x.dtype)

    def features(self, x: Tensor) -> Tensor:
        """Tokens [B, G, D] of the last level."""
        return self.net(self.normalize(x))

    def pool(self, features: Tensor) -> Tensor:
        largest = features.amax(1)
        return largest if self.pooling == "max" else torch.cat([largest, features.mean(1)], 1)

    def feature_map(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        raise UserError(f"{self.name} gives tokens of groups of points and no feature map; use its features.")

    def _probe(self) -> tuple[int, int]:
        width = self.net.widths[-1] * (1 if self.pooling == "max" else 2)
        if self.image_size < self.net.groups[0]:
            raise UserError(
                f"Clouds of {self.image_size} points are too small for the {self.net.groups[0]} groups of {self.name}; "
                f"give at least {self.net.groups[0]} (--image-size), or a smaller net such as points_nano."
            )
        return width, 0


MODALITY = "points"
NETS: dict[str, dict[str, Any]] = {
    "points_nano": {
        "groups": (32, 16, 8),
        "neighbours": (8, 4, 4),
        "widths": (16, 24, 32),
        "depths": (1, 1, 1),
        "heads": 2,
        "hidden": 16,
    },
    "points_micro": {},
    "point_m2ae": {
        "groups": (512, 256, 64),
        "neighbours": (16, 8, 8),
        "widths": (96, 192, 384),
        "depths": (5, 5, 5),
        "heads": 6,
        "hidden": 128,
        "drop_path": 0.1,
    },
}


def build(name: str, pretrained: bool, options: dict[str, Any], common: dict[str, Any]) -> PointBackbone:
    """One of `NETS`; `options` change its defaults, also `pooling` ("max" or "max_mean")."""
    if pretrained:
        raise UserError(f"There are no pretrained weights of '{name}'; train it.")
    valid = [p for p in inspect.signature(PointEncoder).parameters if p != "channels"] + ["pooling"]
    for option in options:
        if option not in valid:
            raise UserError(f"{name} has no option '{option}'; {nearest(option, valid)}")
    channels = common["channels"]
    if channels < 3:
        raise UserError(f"channels={channels}: a point has at least three numbers.")
    given = {k: v for k, v in options.items() if k != "pooling"}
    net = PointEncoder(channels, **(NETS[name] | given))
    # places are in the unit sphere already
    plain = {"mean": common["mean"] or (0.0,) * channels, "std": common["std"] or (1.0,) * channels}
    return PointBackbone(
        net, name=name, options=options, pooling=str(options.get("pooling", "max")), **(common | plain)
    )
