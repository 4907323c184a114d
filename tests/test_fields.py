"""Values of options and of --set: text to value, and what is refused."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyespot.errors import UserError
from eyespot.fields import REQUIRED, Unread, check, kind_of, parse, read_fields
from eyespot.terminal.pages import plain


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", "int", 3),
        ("-3", "int", -3),
        ("1e-3", "float", 1e-3),
        ("3", "float", 3.0),
        ("TRUE", "bool", True),
        ("off", "bool", False),
        ("a b", "str", "a b"),
        ("none", "float | None", None),
        ("0.5", "Optional[float]", 0.5),
        ("lars", "Literal['adamw', 'lars']", "lars"),
        ("2", "Literal[1, 2]", 2),
        ("auto", "int | Literal['auto']", "auto"),
        ("7", "int | str", 7),
        ("x", "int | str", "x"),
        ("0.08,1", "tuple[float, float]", (0.08, 1.0)),
        ("(0.08, 1)", "tuple[float, float]", (0.08, 1.0)),
        ("[3]", "tuple[int, ...]", (3,)),
        ("()", "tuple[int, ...]", ()),
        ("(1,2),(3,4)", "tuple[tuple[int, int], ...]", ((1, 2), (3, 4))),
        ("a,b", "tuple[str, ...]", ("a", "b")),
    ],
)
def test_parse(text, annotation, value):
    found = parse(text, annotation, "--set x")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "annotation", "valid"),
    [
        ("3.5", "int", "a whole number"),
        ("inf", "float", "a number"),
        ("nan", "float", "a number"),
        ("maybe", "bool", "true or false"),
        ("x", "int | None", "a whole number or none"),
        ("1,2", "tuple[float, float, float]", "3 values"),
        ("1,x", "tuple[int, ...]", "a whole number"),
        ("lar", "Literal['adamw', 'lars']", "'lars'"),
    ],
)
def test_refusal_names_field_value_and_what_is_valid(text, annotation, valid):
    with pytest.raises(UserError) as error:
        parse(text, annotation, "--set x")
    assert "--set x" in str(error.value)
    assert repr(text) in str(error.value)
    assert valid in str(error.value)


def test_python_values_are_checked_too():
    assert check(3, "float", "x") == 3.0
    assert check([1, 2], "tuple[int, ...]", "x") == (1, 2)
    assert check("0.5", "float | None", "x") == 0.5
    for value, annotation in ((True, "int"), (2.5, "int"), ("a", "float"), (None, "int"), (float("nan"), "float")):
        with pytest.raises(UserError):
            check(value, annotation, "x")


@given(st.lists(st.floats(-1e6, 1e6).map(lambda x: float(f"{x:g}")), max_size=5))
def test_a_default_that_is_shown_can_be_given_back(values):
    assert parse(plain(tuple(values)), "tuple[float, ...]", "x") == tuple(values)


def test_read_fields():
    source = '''
class Config:
    """Not a field's sentence."""
    a: int = 3
    """First,
    on two lines."""
    b: tuple[float, float] = (0.1, 1)
    c: float
    """Third."""
    d: str = name()
    label: ClassVar[str] = "x"
'''
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.ClassDef)
    a, b, c, d = read_fields(node)
    assert (a.name, a.annotation, a.default, a.sentence) == ("a", "int", 3, "First, on two lines.")
    assert (b.default, b.sentence) == ((0.1, 1), "")
    assert (c.default, c.sentence) == (REQUIRED, "Third.")
    assert isinstance(d.default, Unread)


def test_an_annotation_outside_the_set_is_refused():
    with pytest.raises(UserError, match="dict"):
        kind_of("dict[str, int]")
