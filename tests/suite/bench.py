"""Every registered method, small: what the suite and its two-process job build."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from eyespot.data.graph import adjacency, transitive_pairs
from eyespot.data.loader import Data
from eyespot.draws import Draws, bits_numpy
from eyespot.methods import catalog
from eyespot.methods.method import Info
from eyespot.nets.backbones import backbone
from eyespot.train.build import build_method
from eyespot.train.plan import Plan, epoch_steps
from eyespot.train.schedules import peak_lr

SIDE, CLASSES = 16, 4
SMALL = {"hidden": 32, "out": 16, "prototypes": 12, "queue": 32, "decoder_dim": 16, "decoder_depth": 1}
SMALL |= {"decoder_heads": 2, "bottleneck": 8, "local_crops": 2, "dim": 16, "predictor_dim": 16, "predictor_depth": 1}
SMALL_OF = {"w_mse": {"out": 2, "block": 4, "shrinkage": 0.01}}
SMALL_OF |= {"slot_attention": {"slots": 3, "decoder_width": 8, "decoder_start": 4}}
SMALL_OF |= {"monet": {"slots": 3, "latent": 4, "decoder_width": 8, "decoder_start": 4}}
"""What a method cannot share: two blocks of four rows whiten two dimensions."""
OWN_NETS = ("slot_conv_small", "monet_conv")
"""Nets of recipes that are small already, and needed."""
BY_PARTS = ("slot_attention", "monet")
"""What these learn is in the parts that they find and not in their encoder; their own tests measure it there."""


COMPOSITIONS = ("simclr+hallucinator", "simsiam+hallucinator", "moco_v2+mochi", "moco_v2+mochi+hallucinator")
"""Hosts with plug-ins, METHOD+PLUGIN."""
OF_PLUGINS = {
    "hallucinator": {"hallucinator.centre_after": 0.0},
    "mochi": {"mochi.hardest": 8, "mochi.pairs": 6, "mochi.queries": 4, "mochi.warmup_epochs": 0.0},
}
"""A plug-in acts from the first step."""


def split(name: str) -> tuple[str, list[str]]:
    """Method and plug-ins of a composition."""
    host, *plugins = name.split("+")
    return host, plugins


def plugin_settings(plugins: list[str]) -> dict:
    return {k: v for plugin in plugins for k, v in OF_PLUGINS[plugin].items()}


def names(kind: str | None = None) -> list[str]:
    """Methods and adapters that read pictures."""
    fitting = [e for e in catalog.entries().values() if set(e.needs) <= {"image", "label"} and e.kind != "plugin"]
    return [e.name for e in fitting if kind in (None, e.kind)]


class Stripes(torch.utils.data.Dataset):
    """Pictures whose class is the pattern (lines across, lines down, a grid of both, rings); brightness, tint, contrast
    and phase say nothing about it, and views are free to mirror and recolour them.

    Args:
        tint: how strong brightness and tint are.
        noise: range of the noise of single pixels.
    """

    classes = ("across", "down", "grid", "rings")

    def __init__(self, n: int = 64, seed: int = 0, side: int = SIDE, tint: float = 1.0, noise: float = 0.05):
        draws = Draws(seed, 0, 0, np.arange(n))
        self.targets = (np.arange(n) % CLASSES).astype(int).tolist()
        label = torch.tensor(self.targets)[:, None, None]
        y, x = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
        pitch, px, py = (draws.uniform(k)[:, None, None] for k in ("pitch", "x", "y"))
        pitch = 0.8 * (1 + 0.4 * pitch)
        down, across = torch.sin(x * pitch + 6.3 * px), torch.sin(y * pitch + 6.3 * py)
        rings = torch.sin(((x - side * px) ** 2 + (y - side * py) ** 2).sqrt() * pitch)
        wave = torch.stack([across, down, across * down, rings])[label[:, 0, 0], torch.arange(n)]
        tints = 0.3 * (draws.uniform("ground") - 0.5)[:, None] + 0.5 * (draws.uniform("tint", 3) - 0.5)
        strength = 0.12 + 0.18 * draws.uniform("strength")[:, None, None, None]
        grain = noise * (draws.noise("noise", 3, side, side) - 0.5)
        picture = 0.5 + tint * tints[:, :, None, None] + strength * wave[:, None] + grain
        self.pictures = (picture.clamp(0, 1) * 255).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int):
        return self.pictures[i], self.targets[i]


TOY = {"momentum": 0.9, "queue": 256, "queue_size": 256, "prototypes": 32, "local_crops": 2, "freeze_epochs": 0.0}
TOY |= {"blur": 0.0, "solarize": 0.0}

TOY_PICTURES = {"i_jepa": {"tint": 0.0, "noise": 0.8}, "simmim": {"noise": 0.2}}
TOY_PICTURES |= {"transitive_invariance": {"tint": 0.0, "noise": 0.2}}
"""More noise where random features of a transformer read the pattern too well to be beaten soon. Features of a moving
target keep what a context predicts best: that is the tint where there is one, as nothing recolours I-JEPA's views. The
tint also tells the two views of a track."""


def toy_settings(entry) -> dict:
    """For runs of a hundred steps: teachers that follow soon, a queue of half the pictures, few prototypes."""
    return {f.name: TOY[f.name] for f in entry.fields if f.name in TOY}


def stripes(n: int = 64, seed: int = 0, **pictures: float) -> Data:
    from eyespot.data.sources import open_source

    return Data(open_source(Stripes(n, seed, **pictures)))


def net_of(name: str) -> str:
    """A small net that the method takes: those whose recipe names a transformer need one."""
    usual = str(catalog.find(name).recipe["backbone"])
    return usual if usual in OWN_NETS else "vit_nano" if usual.startswith("vit") else "resnet8"


def make(name: str, data: Data, batch: int = 8, net: str = "", epochs: float = 5.0, small: bool = True, seed: int = 0):
    """A method with small heads on a small net."""
    name, plugins = split(name)
    entry = catalog.find(name)
    torch.manual_seed(seed)
    net = net or net_of(name)
    # widths of a few tens: the two-process job runs in float64
    options = {"width": 8} if net == "resnet8" and small else {}
    if name in ("slotcon", "obow"):  # a map of 4 x 4 cells: groups and words need places
        options |= {"stem_stride": 1}
    body = backbone(net, image_size=SIDE, **options)
    info = Info(samples=len(data), classes=CLASSES, class_names=Stripes.classes, batch_size=batch, epochs=epochs)
    fields = [f for f in entry.fields if f.name in SMALL and "tuple" not in f.annotation]
    own = SMALL_OF.get(name, {})
    given = {f.name: SMALL[f.name] for f in fields} | own if small else toy_settings(entry)
    given |= plugin_settings(plugins)
    method = build_method(name, entry.kind, body, given, info, SIDE, plugins)
    method.prepared = pair_graph(len(data)) if name == "transitive_invariance" and small else prepared(name, data)
    return method


def prepared(name: str, data: Data) -> dict[str, torch.Tensor]:
    """Stands for a preparation stage that has its own test: pseudo labels that depend on the sample alone."""
    if name != "g_simclr":
        return {}
    cluster = bits_numpy(0, "cluster", 0, np.arange(len(data)), 1)[:, 0] % np.uint64(8)
    return {"cluster": torch.from_numpy(cluster.astype(np.int64))}


def pair_graph(n: int) -> dict[str, torch.Tensor]:
    """Stands for mined pairs: picture i is linked with picture i + 10."""
    edges = np.stack([np.arange(n - 10), np.arange(10, n)], 1)
    nodes = np.arange(n)
    graph = {"pairs": transitive_pairs(edges, nodes + n, nodes), "object": nodes, "edges": edges}
    return {k: torch.from_numpy(v) for k, v in (graph | {"adjacent": adjacency(edges, n)}).items()}


def plan_of(method, data: Data, batch: int = 8, steps: int = 20, **changes) -> Plan:
    recipe = replace(method.recipe, warmup_epochs=1)
    per_epoch = epoch_steps(method, len(data), batch, 0)
    lr = peak_lr(recipe, batch)
    return replace(Plan(recipe, lr, batch, per_epoch, steps, steps / per_epoch, log_every=5), **changes)
