"""A toy method on toy data: fast enough to train in a test, with everything that a checkpoint must carry."""

import copy

import torch
from torch import nn

from eyespot.draws import ensure
from eyespot.methods.method import Method, MethodConfig, Recipe
from eyespot.process import all_mean, gather


class ToyData:
    """Pictures of two classes of brightness."""

    def __init__(self, n=40, size=8, poison=None):
        g = torch.Generator().manual_seed(0)
        self.pictures = torch.randint(0, 256, (n, 3, size, size), generator=g, dtype=torch.uint8)
        self.poison = poison

    def __len__(self):
        return len(self.pictures)

    def stream(self, batches):
        for request in batches:
            rows = torch.as_tensor(request.rows)
            yield {"image": self.pictures[rows], "index": rows, "key": request.keys}


class Toy(Method):
    """Two noisy copies agree; a teacher, a centre, batch norm and dropout make the state worth saving."""

    Config = MethodConfig
    recipe = Recipe(optimizer="adamw", lr=1e-2, lr_rule="none", batch_size=8, warmup_epochs=1)

    def __init__(self, dropout=0.0, poison_step=None, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(1)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(144, 6)
        )
        self.teacher = copy.deepcopy(self.backbone).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(6))
        self.poison_step, self.calls = poison_step, 0

    def views(self, batch, draws):
        x = batch["image"].float() / 255
        noise = draws.noise("noise", *x.shape[1:])
        return {"clean": x, "noisy": x + 0.1 * noise}

    def forward(self, views, draws=None):
        draws = ensure(draws, len(views["clean"]))
        with torch.no_grad():
            target = self.teacher(views["clean"])
            self.pending = all_mean(target.mean(0))
        z = gather(self.backbone(views["noisy"]))
        target = gather(target - self.centre)
        if draws.step == self.poison_step:
            z = z * float("nan")
        c = torch.cov(z.T)
        return {"agree": (z - target).square().mean(), "spread": (c - torch.eye(6, dtype=c.dtype)).square().mean()}

    def after_step(self):
        self.centre.lerp_(self.pending, 0.1)
        for t, s in zip(self.teacher.parameters(), self.backbone.parameters(), strict=True):
            t.data.lerp_(s.data, 0.05)

    def embed(self, inputs):
        return self.backbone(inputs)
