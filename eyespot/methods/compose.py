"""A host method with plug-ins between its `encode` and its `loss`, itself a method.

    >>> method = Composed(host, [Hallucinator(host)])
    >>> loss = sum(method(method.views(batch, draws), draws).values())

The backbone stays the host's and appears once in the state, as `host.backbone`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from eyespot.draws import Draws
from eyespot.methods.method import Method, Plugin, Tools

SHARED = ("backbone", "progress", "prepared")  # set on either, they are the host's


def _of_host(name: str) -> Any:
    return property(lambda self: getattr(self.host, name), doc=f"The host's `{name}`.")


class Composed(Method):
    """What is not said here is the host's.

    Args:
        host: a method with `encode` and `loss`.
        plugins: built on that host; they act in this order.
    """

    needs = _of_host("needs")
    Config = _of_host("Config")
    recipe = _of_host("recipe")
    accepts = _of_host("accepts")
    guides = _of_host("guides")
    backbone = _of_host("backbone")
    progress = _of_host("progress")
    prepared = _of_host("prepared")

    def __init__(self, host: Method, plugins: Sequence[Plugin]):
        super().__init__(None, host.config, host.info)
        self.host = host
        self.plugins = nn.ModuleList(plugins)
        host.view_hooks = [p.view_pair for p in plugins if type(p).view_pair is not Plugin.view_pair]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "watch" or (name in SHARED and "host" not in self._modules):
            return  # the base class sets its own while it is built
        if name in SHARED:
            setattr(self.host, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def watch(self) -> dict[str, Tensor]:
        """What the host and the plug-ins watch."""
        merged = dict(self.host.watch)
        for plugin in self._parts():
            merged |= plugin.watch
        return merged

    def _parts(self) -> list[Plugin]:
        return list(self.plugins)  # type: ignore[arg-type]

    # --- where the plug-ins act -----------------------------------------------------------------------------------
    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        views = self.host.views(batch, draws)
        for plugin in self._parts():
            views = plugin.views(views, batch, draws, self.host)
        return views

    def encode(self, views: dict[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        encoded = self.host.encode(views, draws)
        for plugin in self._parts():
            encoded = plugin.between(encoded, draws, self.host)
        return encoded

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        terms = dict(self.host.loss(encoded, draws))
        for plugin in self._parts():
            terms |= plugin.terms(encoded, draws, self.host)
        return terms

    def plateau(self, batch: int) -> dict[str, float]:
        terms = dict(self.host.plateau(batch))
        for plugin in self._parts():
            terms = plugin.plateau(terms, batch, self.host)
        return terms

    def before_step(self) -> None:
        self.host.before_step()
        for plugin in self._parts():
            plugin.before_step()

    def after_step(self) -> None:
        self.host.after_step()
        for plugin in self._parts():
            plugin.after_step()

    def param_groups(self) -> Iterable[dict[str, Any]]:
        """The host's groups and one for the plug-ins, under the names that the state has."""
        groups = [{**g, "params": [(f"host.{n}", p) for n, p in g["params"]]} for g in self.host.param_groups()]
        own = [(n, p) for n, p in self.named_parameters() if n.startswith("plugins.") and p.requires_grad]
        return [*groups, {"params": own}] if own else groups

    # --- the rest is the host's -----------------------------------------------------------------------------------
    def embed(self, inputs: Any) -> Tensor:
        return self.host.embed(inputs)

    def dense(self, inputs: Any) -> Tensor:
        return self.host.dense(inputs)

    def read(self, meta: dict[str, Any], draws: Draws) -> dict[str, Any] | None:
        return self.host.read(meta, draws)

    def prepare(self, data: Any, tools: Tools) -> dict[str, Tensor]:
        return self.host.prepare(data, tools)

    def batches(self, n: int, epoch: int, draws: Draws) -> np.ndarray | None:
        return self.host.batches(n, epoch, draws)

    def pictures(self, batch: dict[str, Any], draws: Draws) -> dict[str, dict[str, Tensor]]:
        return self.host.pictures(batch, draws)

    def finished(self, step: int) -> None:
        self.host.finished(step)
