"""The list of methods is read from their files, and says the same as the imported classes."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from eyespot.errors import MissingExtra, UserError
from eyespot.fields import Unread
from eyespot.methods import catalog, source
from eyespot.methods.entry import read_entry

NAMES = sorted(catalog.entries())


def test_the_first_methods_are_there():
    assert {"simclr", "slotcon"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_equals_what_is_imported(name):
    from eyespot.methods import method as contract

    entry = catalog.find(name)
    cls = catalog.load(name)
    bases = {"method": contract.Method, "adapt": contract.Adapter, "plugin": contract.Plugin}
    assert issubclass(cls, bases[entry.kind])
    fields = {f.name: f for f in entry.fields}
    imported = {f.name: f.default for f in dataclasses.fields(cls.Config)} if cls.Config else {}
    imported.pop("image_size", None)
    assert {n: f.default for n, f in fields.items() if n != "image_size"} == imported
    for f in entry.fields:
        assert f.sentence.endswith("."), f.name
        assert not isinstance(f.default, Unread), f.name
    if entry.kind != "plugin":
        needs = (cls.needs,) if isinstance(cls.needs, str) else cls.needs
        assert entry.needs == tuple(needs)
        assert {k: _tuple(v) for k, v in entry.recipe.items()} == dataclasses.asdict(cls.recipe)
    assert "(" in entry.paper
    assert entry.paper.endswith(".")


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value


def test_what_every_method_has_is_no_argument_of_one():
    assert "temperature" in {f.name for f in catalog.find("simclr").fields}
    assert "image_size" not in {f.name for f in catalog.find("simclr").fields}


def test_names_are_forgiving_and_mistakes_are_told():
    assert catalog.find("SimCLR").name == "simclr"
    with pytest.raises(UserError, match="did you mean 'simclr'"):
        catalog.find("simcrl")
    with pytest.raises(UserError, match="eyespot pretrain simclr"):
        catalog.find("simclr", "adapt")


PAPER = '''
"""Paper: a title
on two lines (Somebody; 2026; arXiv 2601.00001).

The idea.
"""
from dataclasses import dataclass
from eyespot.methods import method
from eyespot.methods.image.simclr import SimCLR, SimCLRConfig
from eyespot.methods.method import Recipe, Plugin

import a_stack_that_nobody_has


@dataclass(frozen=True)
class ChildConfig(SimCLRConfig):
    temperature: float = 0.25
    """Another default."""
    extra: int = 3
    """A new one."""


class Helper:
    pass


class Child(SimCLR):
    needs = ("image", "text")
    Config = ChildConfig
    recipe = Recipe(lr=0.7, optimizer="sgd")
    extras = ("language",)


class Stranger(method.Adapter):
    modality = "video"
'''


@pytest.fixture
def third_party(tmp_path, monkeypatch) -> Path:
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('listing must not import this')\n")
    (package / "paper.py").write_text(textwrap.dedent(PAPER))
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


def points(monkeypatch, **values: str) -> None:
    found = [EntryPoint(name, value, catalog.GROUP) for name, value in values.items()]
    monkeypatch.setattr(catalog.importlib.metadata, "entry_points", lambda group: found)


def test_an_installed_method_is_listed_without_importing_it(third_party, monkeypatch):
    points(monkeypatch, child="their_package.paper:Child", stranger="their_package.paper:Stranger")
    entry = catalog.entries()["child"]
    assert "their_package" not in sys.modules
    assert entry.paper == "Paper: a title on two lines (Somebody; 2026; arXiv 2601.00001)."
    assert entry.doc == "The idea."
    assert (entry.kind, entry.modality, entry.needs) == ("method", "image", ("image", "text"))
    assert entry.extras == ("language",)
    fields = {f.name: f.default for f in entry.fields}
    assert fields["temperature"] == 0.25
    assert fields["extra"] == 3
    assert list(fields).index("extra") < list(fields).index("color"), "its own arguments come first"
    assert (entry.recipe["lr"], entry.recipe["optimizer"], entry.own_recipe) == (0.7, "sgd", ("lr", "optimizer"))
    assert "batch_size" in entry.recipe
    assert entry.evidence == {"golden": False, "floor_beaten": None, "claim": None}
    stranger = catalog.entries()["stranger"]
    assert (stranger.kind, stranger.modality) == ("adapt", "video")


def test_a_missing_stack_is_named_with_its_extra(third_party, monkeypatch):
    (third_party / "__init__.py").write_text("")
    points(monkeypatch, child="their_package.paper:Child")
    with pytest.raises(MissingExtra, match=r"a_stack_that_nobody_has.*eyespot\[language\]"):
        catalog.load("child")


def test_an_installed_method_takes_no_name_of_ours(third_party, monkeypatch):
    points(monkeypatch, simclr="their_package.paper:Child")
    assert catalog.entries()["simclr"].target.startswith("eyespot.")


def test_an_installed_method_without_source_is_listed(monkeypatch):
    points(monkeypatch, ghost="no_such_package.module:Ghost")
    assert "no_such_package.module:Ghost" in catalog.entries()["ghost"].paper


def test_a_file_that_does_not_parse_is_named(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("class Broken(:\n")
    with pytest.raises(UserError, match=r"broken\.py"):
        source.read("broken", path)


def test_a_file_without_a_method_is_none(tmp_path):
    path = tmp_path / "helper.py"
    path.write_text('"""Only a helper."""\n\n\nclass Helper:\n    pass\n')
    assert read_entry(source.read("helper", path), "helper", "image", None) is None


def test_missing_extra_calls_name_the_stack(tmp_path):
    path = tmp_path / "lazy.py"
    path.write_text('raise MissingExtra("av", "video", "Lazy")\n')
    assert source.read("lazy", path).extras == ("video",)
