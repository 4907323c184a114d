"""What a method's `prepare` may use: train a small module on the same data, embed the data, cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot.methods.method import Method
from eyespot.modality import image, moved
from eyespot.runs import RunFolder
from eyespot.train.fit import Listener, fit, silent
from eyespot.train.plan import Plan, steps_of
from eyespot.train.schedules import peak_lr

KMEANS_WHOLE = 20_000  # above this number of rows k-means works on mini-batches


@dataclasses.dataclass
class RunTools:
    """Tools on the data of a run; what they trained is kept in `prepare/` of the run folder and restarts from there."""

    data: Any
    plan: Plan
    image_size: int
    folder: RunFolder | None = None
    listener: Listener = silent
    clean: Callable[..., Any] = image.clean
    """What `embed` makes of a batch, see `eyespot.modality`."""

    def fit(self, method: Method, epochs: float, name: str) -> Method:
        """Train `method` on the run's data by its own recipe for `epochs`; continues where it was interrupted."""
        recipe = method.recipe
        batch = min(recipe.batch_size, len(self.data))
        per_epoch = len(self.data) / batch
        plan = Plan(
            recipe=recipe,
            lr=peak_lr(recipe, batch),
            batch_size=batch,
            steps_per_epoch=per_epoch,
            steps=steps_of(epochs, per_epoch),
            epochs=epochs,
            seed=self.plan.seed,
            device=self.plan.device,
            precision=self.plan.precision,
        )
        folder = RunFolder(self.folder / "prepare" / name) if self.folder is not None else None
        if folder is not None:
            folder.make()
        self.listener({"kind": "note", "text": f"preparing: training {name} for {epochs:g} epochs"})
        fit(method, self.data, plan, folder, resume=True, listener=self.listener)
        return method

    @torch.no_grad()
    def embed(self, module: Callable[[Any], Tensor], name: str) -> Tensor:
        """Features of all samples in data order, on clean pictures in [0, 1]: float32 [N, D] on CPU."""
        self.listener({"kind": "note", "text": f"preparing: embedding {len(self.data)} samples with {name}"})
        device = torch.device(self.plan.device)
        chunks = np.array_split(np.arange(len(self.data)), max(1, len(self.data) // 256))
        rows = []
        for batch in self.data.stream(chunks):
            inputs = moved(self.clean(batch, self.image_size), device, torch.float32)
            rows.append(module(inputs).float().cpu())
        return torch.cat(rows)

    def kmeans(self, x: Tensor, clusters: int, seed: int = 0) -> Tensor:
        """Cluster numbers int64 [N] by scikit-learn's k-means; mini-batches for many rows."""
        from sklearn.cluster import KMeans, MiniBatchKMeans

        make: Any = KMeans if len(x) <= KMEANS_WHOLE else MiniBatchKMeans
        found = make(n_clusters=min(clusters, len(x)), random_state=seed, n_init=1).fit_predict(x.double().numpy())
        return torch.from_numpy(found.astype(np.int64))
