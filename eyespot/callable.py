"""Packages that are also public functions: `eyespot.evaluate(...)` is a call, `eyespot.evaluate.knn` a module.

Importing a submodule sets it as an attribute of its parent, so `eyespot.evaluate` is the package as soon as anything in
it was imported. To mean the function too, the package itself is made callable.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package whose call goes to the function that `_target` names, imported at the first call."""

    _target: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, _, name = self._target.partition(":")
        return getattr(importlib.import_module(module), name)(*args, **kwargs)


def make_callable(package: str, target: str) -> None:
    """Let `package` be called as the function `target` ("module:name")."""
    module = sys.modules[package]
    module.__class__ = CallablePackage
    module.__dict__["_target"] = target
