"""Options: one place of defaults, the same errors from Python as on the command line."""

from __future__ import annotations

import dataclasses

import pytest

from eyespot.declare import build, option_fields
from eyespot.errors import UserError
from eyespot.fields import REQUIRED, Field
from eyespot.options import (
    AdaptOptions,
    CompareOptions,
    DemoOptions,
    EmbedOptions,
    EvaluateOptions,
    MethodsOptions,
    PretrainOptions,
)
from eyespot.settings import settings

ALL = [PretrainOptions, AdaptOptions, EvaluateOptions, CompareOptions, EmbedOptions, MethodsOptions, DemoOptions]
FIELDS = [
    Field("temperature", "float", 0.5, ""),
    Field("layers", "tuple[int, ...]", (1, 2), ""),
    Field("queue", "int | None", None, ""),
]


@pytest.mark.parametrize("cls", ALL)
def test_every_option_has_a_sentence_and_a_checked_default(cls):
    for about in option_fields(cls):
        assert about.sentence.endswith("."), about.name
        assert about.default is not None or about.none or about.python_only or about.positional, about.name
    required = {f.name: "x" for f in option_fields(cls) if f.default is REQUIRED}
    made = cls(**required)
    assert set(made.given) == set(required)


def test_positional_first_and_in_order():
    assert [f.name for f in option_fields(AdaptOptions) if f.positional] == ["method", "run"]
    made = build(AdaptOptions, "core_tuning", "runs/a", data="x", out="y")
    assert (made.method, made.run) == ("core_tuning", "runs/a")


def test_values_take_the_type_of_their_field():
    made = build(PretrainOptions, "simclr", data="x", out="y", epochs=3, seed="7", resume="yes")
    assert (made.epochs, made.seed, made.resume) == (3.0, 7, True)
    assert isinstance(made.epochs, float)


def test_set_and_with_need_no_underscore():
    made = build(PretrainOptions, "simclr", data="x", out="y", **{"set": {"a": 1}, "with": "hallucinator"})
    assert made.set_ == {"a": 1}
    assert made.with_ == ("hallucinator",)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"epochs": 0}, "--epochs cannot be 0: it must be more than 0."),
        ({"batch_size": 1}, "--batch-size cannot be 1: it must be at least 2."),
        ({"max_bad": 1.5}, "at most 1"),
        ({"seed": "x"}, "--seed cannot be 'x'"),
        ({"epochs": 1, "minutes": 1}, "exclude each other"),
        ({"out": None}, "--out is missing"),
        ({"precision": "half"}, "float16"),
    ],
)
def test_a_wrong_option_is_a_user_error(given, named):
    with pytest.raises(UserError, match=r"^[^\n]+$") as error:
        build(PretrainOptions, "simclr", **({"data": "x", "out": "y"} | given))
    assert named in str(error.value)


def test_too_many_positional_arguments():
    with pytest.raises(UserError, match="2 positional"):
        build(PretrainOptions, "simclr", "photos/", out="y")


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("knn", ("knn",)),
        ("knn,linear", ("knn", "linear")),
        (["low-shot, knn", "retrieval", "knn"], ("low_shot", "knn", "retrieval")),
    ],
)
def test_protocols_by_comma_and_by_list(given, names):
    assert build(EvaluateOptions, "runs/a", data="x", protocol=given).protocols == names
    assert build(CompareOptions, ["runs/a"], protocol=given).protocols == names


def test_compare_takes_one_run_or_several():
    assert build(CompareOptions, "runs/a").folders == ["runs/a"]
    assert build(CompareOptions, ["runs/a", "runs/b"]).folders == ["runs/a", "runs/b"]


def test_options_are_frozen():
    made = build(PretrainOptions, "simclr", data="x", out="y")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.seed = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_settings_follow_the_types_of_the_fields():
    assert settings(["temperature=0.1", "layers=3,4"], FIELDS, "m") == {"temperature": 0.1, "layers": (3, 4)}
    assert settings({"temperature": 1, "queue": None}, FIELDS, "m") == {"temperature": 1.0, "queue": None}
    assert settings(["temperature=0.1", "temperature=0.2"], FIELDS, "m") == {"temperature": 0.2}


def test_settings_of_a_plug_in_have_its_name_before_them():
    given = ["temperature=0.1", "plug.queue=7"]
    assert settings(given, FIELDS, "m") == {"temperature": 0.1}
    assert settings(given, FIELDS, "plug", prefix="plug.") == {"queue": 7}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["temperatur=1"], "did you mean 'temperature'"),
        (["temperature=hot"], "--set temperature cannot be 'hot': it takes a number."),
        (["temperature"], "key=value"),
        ({"queue": 1.5}, "--set queue cannot be 1.5"),
        (["image-size=64"], "use --image-size"),
    ],
)
def test_a_wrong_setting_is_a_user_error(given, named):
    with pytest.raises(UserError) as error:
        settings(given, FIELDS, "m")
    assert named in str(error.value)
