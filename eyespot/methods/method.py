"""The contract of a method: a plain `nn.Module` that turns a batch into views and views into named loss terms.

A method file holds what is particular to its paper. It can be trained in anybody's own loop:

    method = SimCLR(backbone("resnet18", image_size=32))
    views = method.views({"image": torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)}, Draws(index=range(8)))
    loss = sum(method(views).values())
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from eyespot.draws import Draws
from eyespot.errors import UserError


@dataclass(frozen=True)
class MethodConfig:
    """Arguments that every method has; a method's own dataclass adds its fields, one sentence under each."""

    image_size: int = 32
    """Side of the (largest) view in pixels; the engine sets it from --image-size."""


ViewHook = Callable[[Any, Any, "Method"], tuple[Any, Any]]


@dataclass(frozen=True)
class Recipe:
    """How a method is trained. `lr` follows the batch by `lr_rule` from `lr_batch`."""

    optimizer: str = "adamw"
    """adamw, adam, sgd or lars."""
    lr: float = 1e-3
    """Learning rate at a global batch of `lr_batch`."""
    lr_rule: str = "linear"
    """How the rate follows the global batch: linear, sqrt or none."""
    lr_batch: int = 256
    weight_decay: float = 1e-4
    weight_decay_end: float | None = None
    """When set, the decay moves to this value by a cosine."""
    momentum: float = 0.9
    """Momentum of sgd and lars."""
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    """Coefficients of adam and adamw."""
    eps: float = 1e-8
    batch_size: int = 256
    epochs: int = 100
    warmup_epochs: float = 10.0
    """Linear warm-up; never more than a tenth of the run."""
    schedule: str = "cosine"
    """cosine, constant, step or restarts."""
    min_lr: float = 0.0
    """Rate at the end, as a share of the peak."""
    clip: float | None = None
    """Largest norm of the gradient."""
    decay_norm_and_bias: bool = False
    """Whether 1-D parameters (norms, biases) are decayed and adapted by LARS too."""
    trust: float = 1e-3
    """LARS's trust coefficient."""
    backbone: str = "resnet18"
    image_size: int = 224
    expected: str = ""
    """What the recipe is expected to reach, with its source."""


@dataclass(frozen=True)
class Info:
    """What the data is, told to a method when it is built."""

    samples: int = 0
    """Number of training samples."""
    channels: int = 3
    classes: int = 0
    """Number of classes where labels are known, else 0."""
    class_names: tuple[str, ...] = ()
    batch_size: int = 256
    """Global batch."""
    epochs: float = 100.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What other modalities need: a tokenizer, an action space, a sampling rate."""


class Tools(Protocol):
    """What `prepare` may use: train a small module, embed the data, cluster. Given by the engine."""

    def fit(self, method: Method, epochs: float, name: str) -> Method: ...

    def embed(self, module: Callable[[Tensor], Tensor], name: str) -> Tensor: ...

    def kmeans(self, x: Tensor, clusters: int, seed: int = 0) -> Tensor: ...


class Method(nn.Module):
    """Base of all methods. A subclass gives `Config`, `recipe`, `__init__`, `views` and either `forward`, or
    `encode` and `loss` where plug-ins may stand between the two.

    Args:
        backbone: one backbone, a mapping of towers by name, or None.
        config: the method's own dataclass.
        info: what the data is.
    """

    needs: ClassVar[str | tuple[str, ...]] = "image"
    """The sample fields it reads: "image", ("image", "label"), ("video", "audio"), ..."""
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    recipe: ClassVar[Recipe] = Recipe()
    accepts: ClassVar[tuple[str, ...]] = ()
    """What a plug-in may do: change "views", or the specs of a "view_pair" before they are drawn; add "positives" (rows
    of "query" and "key") or "negatives" (the method has a `queue`) to what `encode` returns; add loss "terms"."""
    directions: ClassVar[int] = 1
    """How often the batch stands in "query": 2 where each view predicts the other, view 1's rows first."""
    guides: Mapping[str, nn.Module] = {}
    """Frozen named models, outside optimizer and checkpoint."""

    def __init__(self, backbone: Any = None, config: MethodConfig | None = None, info: Info | None = None):
        super().__init__()
        self.config: Any = config if config is not None else self.Config()
        self.info = info if info is not None else Info()
        self.backbone: Any = nn.ModuleDict(backbone) if isinstance(backbone, Mapping) else backbone
        self.progress: float = 0.0
        """Share of the training done, 0..1; the engine sets it before `views`."""
        self.prepared: dict[str, Tensor] = {}
        """What `prepare` returned; saved with the run."""
        self.watch: dict[str, Tensor] = {}
        """Detached numbers of the last step for the log and the verdict."""
        self.view_hooks: list[ViewHook] = []
        """Each is given the specs of view 1 and view 2 and the method, and returns the specs to draw by."""

    # --- what a method must say -------------------------------------------------------------------------------
    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        """The tensors (and geometry) that the loss needs, on the device of the draws; pixels in [0, 1]."""
        raise UserError(f"{type(self).__name__} does not say how it makes views.")

    def forward(self, views: dict[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        """Named, weighted loss terms; the total is their sum."""
        return self.loss(self.encode(views, draws), draws)

    def encode(self, views: dict[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        """What the loss compares; a plug-in may add to it before `loss` sees it."""
        raise UserError(f"{type(self).__name__} has no separate encode step, so no plug-in fits it.")

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        raise UserError(f"{type(self).__name__} has no separate loss step, so no plug-in fits it.")

    def embed(self, inputs: Any) -> Tensor:
        """Frozen features [B, D] of clean inputs (images in [0, 1], [B, C, H, W])."""
        out: Tensor = self.backbone(inputs)
        return out

    def dense(self, inputs: Any) -> Tensor:
        """Frozen feature map [B, D, H, W]."""
        out: Tensor = self.backbone.forward_dense(inputs)
        return out

    # --- optional; each default does nothing ------------------------------------------------------------------
    def read(self, meta: dict[str, Any], draws: Draws) -> dict[str, Any] | None:
        """What to decode of one sample; None decodes it whole."""
        return None

    def before_step(self) -> None:
        """Called before the optimizer's step, when all gradients are there."""

    def after_step(self) -> None:
        """Called after the optimizer's step: teachers, queues, centres, clamps."""

    def param_groups(self) -> Iterable[dict[str, Any]]:
        """Groups of parameters: {"params": [(name, parameter)], "lr_scale": 1.0, "weight_decay": None, "scheduled":
        True}; one with "scheduled": False keeps the peak rate from the first step to the last.
        """
        return [{"params": [(n, p) for n, p in self.named_parameters() if p.requires_grad]}]

    def plateau(self, batch: int) -> dict[str, float]:
        """What each loss term reads when nothing is learned, for a global batch: log K, log batch."""
        return {}

    def prepare(self, data: Any, tools: Tools) -> dict[str, Tensor]:
        """Work before training, on the main process: pseudo labels, vocabularies, graphs. Saved with the run."""
        return {}

    def batches(self, n: int, epoch: int, draws: Draws) -> np.ndarray | None:
        """The method's own order of an epoch: int64 [steps, global batch] of sample numbers below n, or None."""
        return None

    def pictures(self, batch: dict[str, Any], draws: Draws) -> dict[str, dict[str, Tensor]]:
        """What is worth looking at of a few samples: {picture: {column: pixels [B, C, h, w] in [0, 1]}}."""
        return {}

    def finished(self, step: int) -> None:
        """Called once, after the last step."""


class Adapter(Method):
    """A method that starts from a representation and uses labels, prompts or a language model."""

    needs: ClassVar[str | tuple[str, ...]] = ("image", "label")

    def predict(self, inputs: Any) -> Tensor:
        """Class scores [B, classes] of clean inputs."""
        raise UserError(f"{type(self).__name__} does not predict classes.")

    def sample(self, count: int, draws: Draws, **condition: Any) -> Tensor:
        """New samples [count, ...] of an adapter that generates."""
        raise UserError(f"{type(self).__name__} does not generate samples.")


class Plugin(nn.Module):
    """Stands between `encode` and `loss` of a host: changes views, adds positives, negatives or loss terms.

    Args:
        host: the method it serves; `adds` must be among what the host accepts.
    """

    adds: ClassVar[tuple[str, ...]] = ()
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, host: Method, config: MethodConfig | None = None):
        super().__init__()
        self.config: Any = config if config is not None else self.Config()
        self.watch: dict[str, Tensor] = {}
        """Detached numbers of the last step for the log and the verdict."""
        missing = [a for a in self.adds if a not in host.accepts]
        if missing:
            raise UserError(
                f"{type(self).__name__} adds {', '.join(missing)}, but {type(host).__name__} accepts "
                f"{', '.join(host.accepts) or 'nothing'}; use it with another method."
            )

    def view_pair(self, first: Any, second: Any, host: Method) -> tuple[Any, Any]:
        """Specs of the host's view 1 and view 2, changed before the views are drawn."""
        return first, second

    def views(self, views: dict[str, Any], batch: dict[str, Any], draws: Draws, host: Method) -> dict[str, Any]:
        """Views of the host, changed or added to."""
        return views

    def between(self, encoded: dict[str, Tensor], draws: Draws | None, host: Method) -> dict[str, Tensor]:
        """What the host encoded, changed or added to."""
        return encoded

    def terms(self, encoded: dict[str, Tensor], draws: Draws | None, host: Method) -> dict[str, Tensor]:
        """Further named, weighted loss terms."""
        return {}

    def plateau(self, terms: dict[str, float], batch: int, host: Method) -> dict[str, float]:
        """What the terms read when nothing is learned, given what they read without this plug-in."""
        return terms

    def before_step(self) -> None:
        """Called after the host's own."""

    def after_step(self) -> None:
        """Called after the host's own: queues, teachers of the plug-in."""


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The loss: the sum of the named terms."""
    return torch.stack([t if t.dim() == 0 else t.mean() for t in terms.values()]).sum()
