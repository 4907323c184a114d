"""The protocols by name, in four kinds: those of one kind share their pass over the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from eyespot.evaluate import (
    few_shot,
    finetune,
    image_text,
    knn,
    linear,
    low_shot,
    patch_knn,
    pixel_linear,
    pose,
    purity,
    recalls,
    representation,
    retrieval,
    scenes,
    segmentation,
    slots,
    sts,
    svm,
    zero_shot,
)

FEATURES: Mapping[str, ModuleType] = {
    m.NAME: m for m in (knn, linear, low_shot, few_shot, svm, retrieval, purity, recalls)
}
"""run(train [n, D], train_labels [n], test [m, D], test_labels [m], classes, *, seed, device) -> metrics, config"""
PICTURES: Mapping[str, ModuleType] = {finetune.NAME: finetune}
"""The same with pictures for features, and net, image_size, epochs and listener."""
MASKED: Mapping[str, ModuleType] = {m.NAME: m for m in (pixel_linear, patch_knn, segmentation, slots)}
"""fit(drawn, *, seed, device) -> what labels the pixels of test pictures, see `eyespot.evaluate.dense`"""
UNLABELLED: Mapping[str, ModuleType] = {m.NAME: m for m in (representation, image_text, zero_shot, sts, pose, scenes)}
"""measure(options, floor_seeds, device) -> Measured"""
ALL: Mapping[str, ModuleType] = {**FEATURES, **PICTURES, **MASKED, **UNLABELLED}


def settings(name: str) -> tuple[str, ...]:
    """The keys of a result's config that two results must share to be compared, beyond protocol and version."""
    return tuple(getattr(ALL[name], "SETTINGS", ()))
