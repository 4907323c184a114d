"""Contract: a plug-in on any host that contrasts queries with keys (a thin Hallucinator, arXiv 2307.12168)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eyespot.draws import Draws, ensure
from eyespot.errors import UserError
from eyespot.methods.compose import Composed
from eyespot.methods.image.byol import BYOL, BYOLConfig
from eyespot.methods.image.moco_v2 import MoCoV2, MoCoV2Config
from eyespot.methods.image.simclr import SimCLR, SimCLRConfig
from eyespot.methods.image.slotcon import SlotCon
from eyespot.methods.method import Method, Plugin, Recipe, total
from eyespot.nets.backbones import backbone
from eyespot.nets.heads import mlp

OUT, B = 8, 6
HOSTS = {
    "moco_v2": (MoCoV2, MoCoV2Config(image_size=16, hidden=16, out=OUT, queue=24)),
    "simclr": (SimCLR, SimCLRConfig(image_size=16, hidden=16, out=OUT)),
    "byol": (BYOL, BYOLConfig(image_size=16, hidden=16, out=OUT)),
}


class HallucinatorStub(Plugin):
    """Invents a further positive of every query: extrapolated away from the key, then passed through an MLP."""

    adds = ("positives",)

    def __init__(self, host, config=None):
        super().__init__(host, config)
        width = host.config.out
        self.generator = mlp(2 * width, 2 * width, 2 * width, width, norm=None)

    def between(self, encoded, draws, host):
        query, key = encoded["query"], encoded["key"]
        share = 0.1 * ensure(draws, len(query)).step_uniform("share").to(query)
        away = (1 + share) * query - share * key
        invented = self.generator(torch.cat([query, away], 1))
        return encoded | {"query": torch.cat([query, invented]), "key": torch.cat([key, key])}


class KeepFirst(nn.Module):
    """Stands for a generator that returns the query."""

    def forward(self, x):
        return x[:, :OUT]


def composed(name):
    torch.manual_seed(0)
    cls, config = HOSTS[name]
    host = cls(backbone("resnet8", image_size=16, width=8), config)
    return Composed(host, [HallucinatorStub(host)])


def pictures(n=B):
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator)}


def views_of(method, n=B):
    draws = Draws(index=range(n))
    return method.views(pictures(n), draws), draws


@pytest.mark.parametrize("name", HOSTS)
def test_rows_double_and_the_first_are_untouched(name):
    method = composed(name).eval()
    views, draws = views_of(method)
    host, both = method.host.encode(views, draws), method.encode(views, draws)
    rows = len(host["query"])
    assert len(both["query"]) == len(both["key"]) == 2 * rows
    assert torch.equal(both["query"][:rows], host["query"])


@pytest.mark.parametrize("name", HOSTS)
def test_gradient_reaches_generator_and_encoder_but_no_teacher(name):
    method = composed(name)
    views, draws = views_of(method)
    total(method(views, draws)).backward()
    for key, parameter in method.named_parameters():
        if "teacher" in key:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, key
    assert all(p.grad.any() for p in method.plugins.parameters())


@pytest.mark.parametrize("name", ["moco_v2", "byol"])
def test_a_generator_that_returns_the_query_leaves_the_loss(name):
    method = composed(name).eval()
    views, draws = views_of(method)
    method.plugins[0].generator = KeepFirst()
    torch.testing.assert_close(total(method(views, draws)), total(method.host(views, draws)))


def test_loss_is_the_mean_over_both_kinds_of_rows():
    method = composed("moco_v2").eval()
    views, draws = views_of(method)
    encoded = method.encode(views, draws)
    halves = [total(method.host.loss({k: v[rows] for k, v in encoded.items()})) for rows in (slice(B), slice(B, None))]
    torch.testing.assert_close(total(method(views, draws)), (halves[0] + halves[1]) / 2)


def test_the_queue_takes_what_the_loss_saw(loop):
    method = composed("moco_v2")
    loop(method, [pictures() | {"index": torch.arange(B)}], steps=1)
    assert int(method.host.queue.filled) == 2 * B


@pytest.mark.parametrize("name", HOSTS)
def test_state_holds_the_backbone_once_and_loads(name):
    method, other = composed(name), composed(name)
    stems = [k for k in method.state_dict() if k.endswith("net.conv.weight") and "teacher" not in k]
    assert stems == ["host.backbone.net.conv.weight"]
    assert method.backbone is method.host.backbone
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.5)
    other.load_state_dict(method.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(method.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", HOSTS)
def test_groups_hold_every_trained_parameter_once_by_its_name_in_the_state(name):
    method = composed(name)
    named = [pair for group in method.param_groups() for pair in group["params"]]
    wanted = {n: id(p) for n, p in method.named_parameters() if p.requires_grad}
    assert {n: id(p) for n, p in named} == wanted
    assert len(named) == len(dict(named))


def test_what_the_engine_sets_reaches_the_host():
    method = composed("byol")
    method.progress, method.prepared = 0.7, {"cluster": torch.arange(3)}
    assert method.host.progress == method.progress == 0.7
    assert method.host.prepared["cluster"].tolist() == method.prepared["cluster"].tolist() == [0, 1, 2]
    assert method.recipe is BYOL.recipe and method.needs == "image" and method.plateau(4) == method.host.plateau(4)
    x = torch.rand(2, 3, 16, 16)
    method.eval()
    torch.testing.assert_close(method.embed(x), method.host.backbone(x))
    assert method.dense(x).shape[0] == 2


def test_a_host_that_accepts_no_positives_is_refused():
    host = SlotCon(backbone("resnet8", image_size=16, width=8))
    with pytest.raises(UserError, match="HallucinatorStub adds positives, but SlotCon accepts nothing"):
        HallucinatorStub(host)


def test_learns_with_the_plugin(loop):
    method = composed("simclr")
    before = [p.clone() for p in method.plugins.parameters()]
    history = loop(method, [pictures(12) | {"index": torch.arange(12)}] * 40, steps=40, lr=0.05)
    first, last = (sum(h["nt_xent"] for h in part) / 8 for part in (history[:8], history[-8:]))
    assert last < 0.97 * first
    assert all(not torch.equal(p, old) for p, old in zip(method.plugins.parameters(), before, strict=True))


class Everything(Plugin):
    """Uses every place where a plug-in may act."""

    adds = ("views", "terms")

    def __init__(self, host, config=None):
        super().__init__(host, config)
        self.calls = []

    def views(self, views, batch, draws, host):
        return views | {"extra": batch["image"].float().mean((1, 2, 3))}

    def between(self, encoded, draws, host):
        self.watch = {"extra": torch.tensor(1.0)}
        return encoded | {"seen": torch.ones(())}

    def terms(self, encoded, draws, host):
        return {"extra": 2 * encoded["seen"] * host.progress}

    def before_step(self):
        self.calls.append("before")

    def after_step(self):
        self.calls.append("after")


class Host(Method):
    """Keeps its own order of batches and its own calls."""

    accepts = ("views", "terms")
    recipe = Recipe(lr=0.5)

    def __init__(self):
        super().__init__(nn.Linear(1, 1))
        self.calls = []

    def views(self, batch, draws):
        return {"x": batch["image"].float().mean((1, 2, 3))[:, None]}

    def encode(self, views, draws=None):
        self.watch = {"extra_seen": views["extra"].mean()}
        return {"y": self.backbone(views["x"])}

    def loss(self, encoded, draws=None):
        return {"square": encoded["y"].square().mean()}

    def read(self, meta, draws):
        return {"plan": meta["width"]}

    def batches(self, n, epoch, draws):
        return [[epoch, n]]

    def prepare(self, data, tools):
        return {"order": torch.tensor([len(data)])}

    def before_step(self):
        self.calls.append("before")

    def after_step(self):
        self.calls.append("after")

    def finished(self, step):
        self.calls.append(step)


def test_every_hook_of_host_and_plugin_acts(loop):
    host = Host()
    method = Composed(host, [Everything(host)])
    history = loop(method, [pictures() | {"index": torch.arange(B)}] * 2, steps=2, lr=1e-6)
    assert [h["extra"] for h in history] == [0.0, 1.0] and set(history[0]) == {"square", "extra"}
    assert host.calls == ["before", "after", "before", "after", 2]
    assert method.plugins[0].calls == ["before", "after"] * 2
    assert set(method.watch) == {"extra", "extra_seen"}
    assert method.read({"width": 3}, Draws()) == {"plan": 3} and method.batches(7, 1, Draws()) == [[1, 7]]
    assert method.prepare(range(4), None)["order"].tolist() == [4] and method.recipe.lr == 0.5
