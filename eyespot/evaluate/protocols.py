"""The protocols by name: those of frozen features, which share one feature pass, and those that train on pictures."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from eyespot.evaluate import finetune, knn, linear, low_shot, retrieval

FEATURES: Mapping[str, ModuleType] = {m.NAME: m for m in (knn, linear, low_shot, retrieval)}
"""run(train [n, D], train_labels [n], test [m, D], test_labels [m], classes, *, seed, device) -> metrics, config"""
PICTURES: Mapping[str, ModuleType] = {finetune.NAME: finetune}
"""The same with pictures for features, and net, image_size, epochs and listener."""
ALL: Mapping[str, ModuleType] = {**FEATURES, **PICTURES}


def settings(name: str) -> tuple[str, ...]:
    """The keys of a result's config that two results must share to be compared, beyond protocol and version."""
    return tuple(getattr(ALL[name], "SETTINGS", ()))
