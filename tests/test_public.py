"""The public functions, and packages that are also functions."""

from __future__ import annotations

import importlib
import inspect

import pytest

import eyespot
from eyespot.errors import UserError


def test_version_is_the_package_s():
    assert eyespot.__version__.count(".") == 2


NAMES = ["pretrain", "adapt", "evaluate", "compare", "embed", "export", "methods", "backbone", "Run"]


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_callable_before_and_after_their_modules_are_imported(name):
    assert callable(getattr(eyespot, name))
    module = eyespot.PUBLIC[name].partition(":")[0]
    importlib.import_module(module)
    assert callable(getattr(eyespot, name))
    assert name in eyespot.__all__


def test_the_packages_stay_packages():
    from eyespot.evaluate import knn

    assert inspect.ismodule(eyespot.evaluate)
    assert eyespot.evaluate.knn is knn


def test_calling_a_package_calls_its_function():
    assert eyespot.methods("simclr").name == "simclr"
    with pytest.raises(UserError, match="There is no method 'simcrl'"):
        eyespot.methods("simcrl")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="pretrian"):
        _ = eyespot.pretrian
