"""MoCHi: hard negative mixing for contrastive learning (Kalantidis, Sariyildiz, Pion, Weinzaepfel, Larlus; NeurIPS
2020; arXiv 2010.01028).

A plug-in for methods with a queue. Most of the queue soon is easy, so harder negatives are made for every query and for
this step only, from the N keys that are most like it: mixtures of two of them, and mixtures of one of them with the
query itself, which are harder still.

    h  = a n_i + (1 - a) n_j,  a in (0, 1);    h' = b q + (1 - b) n_j,  b in (0, 1/2);  of unit length  (eq. 2, 3)
    L  = -log( exp(q k / T) / (exp(q k / T) + sum of exp(q x / T) over the queue, s mixtures h and s' mixtures h') )

The mixtures are constants: the query inside h' carries no gradient, or the loss could fall by moving it alone. They
never enter the queue. The paper writes MoCHi(N, s, s'); here that is hardest, pairs and queries:

    eyespot pretrain moco_v2 --with mochi --set mochi.hardest=64 mochi.pairs=32 mochi.queries=16

Paper and code: no code of the authors is public. An unofficial one agrees with the equations; its README puts b on the
negative, while its code and the paper put it on the query, as here. It switches the mixtures on by a number of steps,
the paper (and this file) by epochs. It also leaves out keys of the query's own picture, which the paper does not. The
paper does not say whether n_i and n_j may be the same key; see `distinct`.

Losses with and without mixtures are not comparable: compare `proxy_accuracy` in metrics.jsonl, which counts real keys
only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.draws import Draws, ensure
from eyespot.errors import UserError
from eyespot.losses.hard_negatives import hardest, mix_negatives, mix_query
from eyespot.losses.precision import full_precision
from eyespot.methods.common import in_first_epochs
from eyespot.methods.method import Method, MethodConfig, Plugin
from eyespot.methods.ranges import WIDTH, check_ranges
from eyespot.nets.queue import Queue


@dataclass(frozen=True)
class MochiConfig(MethodConfig):
    hardest: int = 64
    """Number N of keys, the most like each query, that mixtures are made of (256 to 1024 of 65536 in the paper)."""
    pairs: int = 32
    """Number s of mixtures of two hard keys for each query (128 to 1024 in the paper)."""
    queries: int = 16
    """Number s' of mixtures of a hard key with the query (128 to 512 in the paper); needs most care."""
    query_share: float = 0.5
    """Largest share of the query in such a mixture."""
    distinct: bool = False
    """Whether the two keys of a mixture are always different ones; if not, some mixtures repeat a real key."""
    warmup_epochs: float = 10.0
    """First epochs without mixtures, while the queue says little; at most a tenth of the training."""


class Mochi(Plugin):
    """Adds "extra_negatives" [rows of query, s + s', D] to what a method with a queue encodes.

    Raises:
        UserError: an argument is out of range, or `hardest` is more than the host's queue holds.
    """

    adds = ("negatives",)
    Config = MochiConfig

    def __init__(self, host: Method, config: MochiConfig = MochiConfig()):
        super().__init__(host, config)
        c = config
        check_ranges(c, hardest=WIDTH, pairs=(0, None), queries=(0, None), query_share=(0.0, 1.0))
        check_ranges(c, warmup_epochs=(0.0, None))
        size = len(_queue(host))
        if c.hardest > size:
            raise UserError(f"hardest={c.hardest} is more than the queue of {size} keys; lower mochi.hardest.")

    def between(self, encoded: dict[str, Tensor], draws: Draws | None, host: Method) -> dict[str, Tensor]:
        c, query, queue = self.config, encoded["query"].detach(), _queue(host).columns
        self.watch = {"proxy_accuracy": proxy_accuracy(query, encoded["key"], queue)}
        if c.pairs + c.queries == 0 or in_first_epochs(host, c.warmup_epochs):
            return encoded
        made = torch.cat(self._mixtures(query, queue, ensure(draws, len(query), query.device)), dim=1)
        if "extra_negatives" in encoded:
            made = torch.cat([encoded["extra_negatives"], made], dim=1)
        return encoded | {"extra_negatives": made}

    def _mixtures(self, query: Tensor, queue: Tensor, draws: Draws) -> list[Tensor]:
        """Of two keys [B, s, D] and with the query [B, s', D]."""
        c, n = self.config, self.config.hardest
        hard, rows = hardest(query, queue, n), len(query)

        def keys(place: Tensor) -> Tensor:
            return queue.T[hard.gather(1, place.long().to(hard.device))]

        first = (uniform(draws, "first", rows, c.pairs) * n).long()
        second = uniform(draws, "second", rows, c.pairs)
        second = (first + 1 + (second * (n - 1)).long()) % n if c.distinct else second * n
        share = uniform(draws, "pair_share", rows, c.pairs).to(query)
        mine = c.query_share * uniform(draws, "query_share", rows, c.queries).to(query)
        other = keys(uniform(draws, "other", rows, c.queries) * n)
        return [mix_negatives(keys(first), keys(second), share), mix_query(query, other, mine)]

    def plateau(self, terms: dict[str, float], batch: int, host: Method) -> dict[str, float]:
        """log(1 + K) becomes log(1 + K + s + s')."""
        extra = self.config.pairs + self.config.queries
        return {name: math.log(math.exp(value) + extra) for name, value in terms.items()}


def _queue(host: Method) -> Queue:
    queue = getattr(host, "queue", None)
    if not isinstance(queue, Queue):
        raise UserError(f"{type(host).__name__} has no queue of keys to mix; use MoCHi with a method that has one.")
    return queue


def uniform(draws: Draws, name: str, rows: int, columns: int) -> Tensor:
    """float32 [rows, columns] in [0, 1), a function of the sample; rows beyond the batch, which another plug-in added,
    draw for themselves."""
    return torch.cat([draws.scope(f"mochi/rows{i}").noise(name, columns) for i in range(rows // len(draws))])


@torch.no_grad()
@full_precision
def proxy_accuracy(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    """Share of queries, in percent, that are more like their own key than like any key of the queue: a scalar.

    Args:
        query, key: [B, D] of any length.
        queue: [D, K] unit columns.
    """
    q = F.normalize(query, dim=1)
    own = (q * F.normalize(key, dim=1)).sum(dim=1)
    return 100 * (own > (q @ queue).amax(dim=1)).to(q.dtype).mean()
