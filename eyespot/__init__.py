"""eyespot learns to see without labels: published self-supervised methods behind one interface.

    >>> import eyespot
    >>> run = eyespot.pretrain("simclr", data="photos/", out="runs/a")
    >>> run.verdict["state"]
    'learning'

Everything is imported when it is first used, so that `import eyespot` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from eyespot.data.tracks import tracks as tracks
    from eyespot.evaluate.compare import compare as compare
    from eyespot.evaluate.embed import embed as embed
    from eyespot.evaluate.evaluate import evaluate as evaluate
    from eyespot.export.export import export as export
    from eyespot.health import doctor as doctor
    from eyespot.methods.catalog import methods as methods
    from eyespot.nets.backbones import backbone as backbone
    from eyespot.reproduce.runner import reproduce as reproduce
    from eyespot.runs import Run as Run
    from eyespot.train.estimate import estimate as estimate
    from eyespot.train.pretrain import adapt as adapt
    from eyespot.train.pretrain import pretrain as pretrain

PUBLIC = {
    "pretrain": "eyespot.train.pretrain:pretrain",
    "adapt": "eyespot.adapt",
    "evaluate": "eyespot.evaluate",
    "compare": "eyespot.evaluate.compare:compare",
    "embed": "eyespot.evaluate.embed:embed",
    "export": "eyespot.export",
    "methods": "eyespot.methods",
    "reproduce": "eyespot.reproduce",
    "estimate": "eyespot.train.estimate:estimate",
    "doctor": "eyespot.health:doctor",
    "tracks": "eyespot.data.tracks:tracks",
    "backbone": "eyespot.nets.backbones:backbone",
    "Run": "eyespot.runs:Run",
}
"""Where each public name lives. Five are packages that can be called, see eyespot/callable.py."""

__all__ = [
    "Run",
    "__version__",
    "adapt",
    "backbone",
    "compare",
    "doctor",
    "embed",
    "estimate",
    "evaluate",
    "export",
    "methods",
    "pretrain",
    "reproduce",
    "tracks",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("eyespot")
    if name not in PUBLIC:
        raise AttributeError(f"module 'eyespot' has no attribute '{name}'")
    module, _, attribute = PUBLIC[name].partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def __dir__() -> list[str]:
    return sorted(__all__)
