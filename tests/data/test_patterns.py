"""Patterns of file names in braces."""

import pytest

from eyespot.data import open_source
from eyespot.data.patterns import expand
from eyespot.errors import UserError


@pytest.fixture
def files(tmp_path):
    for name in ("a-08", "a-09", "a-10", "b-08", "b-9", "b-10"):
        (tmp_path / f"{name}.tar").write_bytes(b"x")
    return tmp_path


def names(files, pattern: str) -> list[str]:
    return [f.stem for f in expand(f"{files}/{pattern}.tar")]


def test_ranges_words_and_both(files):
    assert names(files, "a-{08..10}") == ["a-08", "a-09", "a-10"]
    assert names(files, "b-{9..10}") == ["b-9", "b-10"]
    assert names(files, "{b,a}-{10,08}") == ["b-10", "b-08", "a-10", "a-08"]
    assert names(files, "a-{10..10}") == ["a-10"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a-{07..10}", r"1 of the 4 files of the pattern .* do not exist, the first is .*a-07.tar; correct"),
        ("a-{0..999999999}", "the first number must be the smaller, by less than 1,000,000"),
        ("a-{10..08}", "go from 10 to 08; the first number must be the smaller"),
        ("{0..99999}-{0..99999}", "names more than 1,000,000 files"),
        ("a-{}", r"hold ''; write numbers as \{000..099\}"),
        ("a-{x..z}", "hold 'x..z'"),
        ("a-{1..}", "hold '1..'"),
    ],
)
def test_wrong_patterns(files, pattern, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source(f"{files}/{pattern}.tar")
    assert "\n" not in str(caught.value)


def test_mixed_kinds(files):
    (files / "a-08.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match=r"are .parquet, .tar; all must be .tar, or all .parquet"):
        open_source(f"{files}/a-08.{{tar,parquet}}")


def test_a_real_name_with_braces_is_no_pattern(tmp_path, pictures):
    pictures.write(tmp_path / "{1..2}", {"1.png": pictures.picture()})
    assert len(open_source(tmp_path / "{1..2}")) == 1
