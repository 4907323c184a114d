"""Hallucinator: hallucination improves the performance of unsupervised visual representation learning (Wu, Hobbs,
Hovakimyan; ICCV 2023; arXiv 2307.12168).

A plug-in for methods that compare a query with a key. A small net invents one more positive for every query: the query
is moved away from its key, and the net makes a new feature of both. It is compared with the same key and the same
negatives, is trained by the method's own loss, and is thrown away afterwards.

    e = (1 + r) q - r k,  r uniform in (0, 0.1), one number a step and direction;    h = MLP([q ; e])
    L = the loss of the method over [q ; h] with the keys [k ; k], so the mean over both kinds of rows

The two views are made less alike too: the centre of view 1's crop lies near the edges of a box in the middle of the
picture (ContrastiveCrop with a fixed box); view 2 is the method's own.

    eyespot pretrain simclr --with hallucinator --set hallucinator.ratio=0.1
    eyespot pretrain moco_v2 --with hallucinator --set hallucinator.centre_box=none

k is what the method compares q with: the key encoder's output in MoCo, which gets no gradient, and view 2's embedding
in SimCLR, which does. Where both views predict (SimSiam, and BYOL, which the paper does not have) it is the prediction
from the other view, always the original one.

Paper and code: q is not brought to unit length first, as in the authors' code, though MoCo's k is: r then weighs two
scales. Their code draws r from (0, 0.1) and has a wider range commented out; see `ratio`. It fixes the widths of the
net by hand and leaves it out of SimSiam's optimizer, where it keeps its first weights; here the widths follow the query
and the net is trained with every method. It pushes every key into MoCo's queue twice, which halves what the queue
holds; see `enqueue`. In SimCLR the copy of a query's key stands among its negatives, as in their code: the loss cannot
fall below log 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eyespot.draws import Draws, ensure
from eyespot.errors import UserError
from eyespot.methods.common import in_first_epochs
from eyespot.methods.method import Method, MethodConfig, Plugin
from eyespot.methods.ranges import POSITIVE, SHARE, WIDTH, check_ranges
from eyespot.nets.heads import mlp
from eyespot.views.image import ViewSpec


@dataclass(frozen=True)
class HallucinatorConfig(MethodConfig):
    ratio: float = 0.1
    """Largest r: how far the query is moved away from its key."""
    hidden: int | None = None
    """Width of the net's two hidden layers; none is twice the width of the query."""
    positives: Literal["invented", "copied", "none"] = "invented"
    """What is added to the queries: what the net invents, the query once more (a control), or nothing."""
    enqueue: Literal["twice", "once"] = "twice"
    """How often a key enters the queue of a method that has one: as often as it is compared, or once."""
    centre_box: float | None = 0.5
    """Side of the box, as a share of the picture, for the centre of view 1's crop; none leaves the crop free (0.6 on
    ImageNet)."""
    centre_beta: float = 0.1
    """a of Beta(a, a), by which the centre is drawn in the box; small values keep to its edges (0.6 on ImageNet)."""
    centre_after: float = 1.0
    """First epochs with a free crop (20 on ImageNet); at most a tenth of the training."""


class Hallucinator(Plugin):
    """Appends as many rows to "query" and "key" as there are; other plug-ins may stand before or after it.

    Raises:
        UserError: an argument is out of range, or the host's config does not say the width of a query (`out`).
    """

    adds = ("view_pair", "positives")
    Config = HallucinatorConfig

    def __init__(self, host: Method, config: HallucinatorConfig = HallucinatorConfig()):
        super().__init__(host, config)
        c = config
        check_ranges(c, ratio=(0.0, None), hidden=WIDTH, centre_box=SHARE, centre_beta=POSITIVE)
        check_ranges(c, centre_after=(0.0, None))
        self.generator: Any = self._generator(host) if c.positives == "invented" else None

    def _generator(self, host: Method) -> nn.Module:
        width = getattr(host.config, "out", None)
        if not isinstance(width, int):
            raise UserError(f"{type(host).__name__} does not say the width of its queries; its Config needs 'out'.")
        hidden = self.config.hidden or 2 * width
        return mlp(2 * width, hidden, hidden, width, norm=None)

    def view_pair(self, first: ViewSpec, second: ViewSpec, host: Method) -> tuple[ViewSpec, ViewSpec]:
        c = self.config
        if c.centre_box is None or in_first_epochs(host, c.centre_after):
            return first, second
        return replace(first, centre_box=c.centre_box, centre_beta=c.centre_beta), second

    def between(self, encoded: dict[str, Tensor], draws: Draws | None, host: Method) -> dict[str, Tensor]:
        if self.config.positives == "none":
            return encoded
        query, key = encoded["query"], encoded["key"]
        added = query if self.generator is None else self.invented(query, key, draws, host.directions)
        whole = encoded | {"query": torch.cat([query, added]), "key": torch.cat([key, key])}
        if "extra_negatives" in encoded:  # the same negatives for both kinds of rows
            whole["extra_negatives"] = torch.cat([encoded["extra_negatives"]] * 2)
        if self.config.enqueue == "once":
            whole["new_keys"] = encoded.get("new_keys", key)
        return whole

    def invented(self, query: Tensor, key: Tensor, draws: Draws | None, directions: int) -> Tensor:
        """One more positive for each row of `query`: [rows, out].

        Args:
            query: [rows, out]; where there are two directions, blocks of view 1's and of view 2's rows in turn.
            key: [rows, out], what each is compared with.
        """
        draws = ensure(draws, len(query) // directions, query.device)
        blocks = query.view(-1, directions, len(draws), query.shape[1])
        away = blocks.flip(1).reshape(query.shape) if directions > 1 else key
        share = self.config.ratio * draws.scope("hallucinator").step_uniform("ratio", directions).to(query)
        share = share.view(1, -1, 1, 1).expand(*blocks.shape[:3], 1).reshape(-1, 1)
        return self.generator(torch.cat([query, (1 + share) * query - share * away], dim=1))

    def plateau(self, terms: dict[str, float], batch: int, host: Method) -> dict[str, float]:
        """What the host reads for twice as many rows."""
        if self.config.positives == "none":
            return terms
        one, two = host.plateau(batch), host.plateau(2 * batch)
        return {name: value + two.get(name, 0.0) - one.get(name, 0.0) for name, value in terms.items()}
