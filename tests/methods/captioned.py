"""Toy pictures with captions, a colour and a pattern said in several ways: for tests of methods that read text."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from eyespot.data.dataset import DatasetSource
from eyespot.data.pairs import PairSource
from eyespot.data.records import RecordData
from eyespot.draws import Draws
from eyespot.methods import catalog
from eyespot.methods.method import Info
from eyespot.nets.backbones import backbone
from eyespot.train.build import build_method

SIDE = 16
COLOURS = {"red": (0.9, 0.2, 0.2), "green": (0.2, 0.8, 0.2), "blue": (0.2, 0.3, 0.9), "yellow": (0.9, 0.9, 0.2)}
PATTERNS = ("across", "down", "grid", "plain")
TEMPLATES = ("{} lines {}", "there are {} lines that go {}", "{} and {}")
SMALL = {
    "clip": {"out": 16, "text_width": 16, "text_layers": 1, "text_heads": 2, "vocab": 600, "context": 24},
    "grounded_sentences": {"text_width": 12, "letters": 6, "attention": 8, "context": 40},
}


def held_out(colour, pattern):
    """A quarter of the combinations; each word occurs in others."""
    return (colour - pattern) % 4 == 0


class Lines(torch.utils.data.Dataset):
    """Pictures [3, SIDE, SIDE] of coloured lines; `targets` are 4 * colour + pattern.

    Args:
        unseen: only the combinations held out, else only the others.
    """

    classes = tuple(f"{c} {p}" for c in COLOURS for p in PATTERNS)

    def __init__(self, n, seed=0, unseen=False):
        draws = Draws(seed, index=np.arange(n))
        kinds = [4 * c + p for c in range(4) for p in range(4) if held_out(c, p) == unseen]
        self.targets = [kinds[i % len(kinds)] for i in range(n)]
        y, x = torch.meshgrid(torch.arange(SIDE).float(), torch.arange(SIDE).float(), indexing="ij")
        px, py = (6.3 * draws.uniform(k)[:, None, None] for k in ("x", "y"))
        down, across = 0.5 + 0.5 * torch.sin(1.2 * x + px), 0.5 + 0.5 * torch.sin(1.2 * y + py)
        waves = torch.stack([across, down, across * down, torch.full_like(down, 0.5)])
        which = torch.tensor(self.targets)
        tint = torch.tensor(list(COLOURS.values()))[which // 4][:, :, None, None]
        grain = 0.2 * (draws.noise("grain", 3, SIDE, SIDE) - 0.5)
        pixels = waves[which % 4, torch.arange(n)][:, None] * tint + grain
        self.pictures = (pixels.clamp(0, 1) * 255).to(torch.uint8)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        return self.pictures[i], self.targets[i]

    def captions(self, i):
        return said(self.targets[i])


def said(kind):
    """The captions of a kind of picture."""
    return [t.format(*Lines.classes[kind].split()) for t in TEMPLATES]


def lines(n=48, seed=0, unseen=False):
    pictures = Lines(n, seed, unseen)
    source = PairSource(DatasetSource(pictures, name="lines"), [pictures.captions(i) for i in range(n)])
    return RecordData(source, workers=0)


def write_folder(root, n=36, seed=0, unseen=False):
    """The pictures as class folders of files with captions.tsv."""
    pictures, rows = Lines(n, seed, unseen), []
    for i in range(n):
        name = f"{Lines.classes[pictures.targets[i]].replace(' ', '_')}/{i:03}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures.pictures[i].permute(1, 2, 0).numpy()).save(root / name)
        rows += [f"{name}\t{caption}" for caption in pictures.captions(i)]
    (root / "captions.tsv").write_text("\n".join(["file\tcaption", *rows]) + "\n", encoding="utf-8")
    return root


def make(name, data=None, seed=0, batch=8, small=True, **given):
    """A method on a small net; what `prepare` learns is there when data are given."""
    torch.manual_seed(seed)
    net = backbone("resnet8", image_size=SIDE, **({"width": 8} if small else {}))
    info = Info(samples=len(data) if data is not None else 0, batch_size=batch, epochs=5)
    method = build_method(name, catalog.find(name).kind, net, SMALL[name] | given, info, SIDE)
    if data is not None:
        method.prepared = method.prepare(data, None)
    return method


def views_of(method, data, rows=range(8), epoch=0):
    batch = data.batch(np.array(rows))
    return method.views(batch, Draws(0, epoch, 0, batch["key"]))
