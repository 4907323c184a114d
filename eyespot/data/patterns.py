"""Patterns of file names in braces, as shells and WebDataset write them: "train-{000000..000099}.tar", "{a,b}.tar"."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from eyespot.errors import UserError

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})")
MOST = 1_000_000
"""Files of a pattern; more is a mistake."""


def expand(pattern: str) -> list[Path]:
    """The files of a pattern, in its order; every one of them exists.

    `{000..099}` are the numbers with as many digits, `{train,val}` these words. Several braces are combined, the last
    one changing first.

    Raises:
        UserError: braces that hold neither, too many files, or files that do not exist.
    """
    pieces = BRACES.split(pattern)
    count, choices = 1, []
    for k, piece in enumerate(pieces):
        found = _choices(piece, pattern) if k % 2 else [piece]
        count *= len(found)
        if count > MOST:
            raise UserError(f"The pattern {pattern} names more than {MOST:,} files; give a smaller range.")
        choices.append(found)
    names = ["".join(parts) for parts in itertools.product(*choices)]
    files = [Path(name).expanduser() for name in names]
    missing = [str(f) for f in files if not f.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(files)} files of the pattern {pattern} do not exist, the first is "
            f"{missing[0]}; correct the pattern or add the files."
        )
    return files


def _choices(inside: str, pattern: str) -> list[str]:
    """What one pair of braces stands for."""
    ends = RANGE.fullmatch(inside)
    if ends is None:
        if "," in inside and ".." not in inside:
            return [word.strip() for word in inside.split(",")]
        raise UserError(f"The braces of {pattern} hold '{inside}'; write numbers as {{000..099}} or words as {{a,b}}.")
    first, last = int(ends[1]), int(ends[2])
    if last < first or last - first >= MOST:
        raise UserError(
            f"The braces of {pattern} go from {ends[1]} to {ends[2]}; the first number must be the smaller, by less "
            f"than {MOST:,}."
        )
    return [str(k).zfill(len(ends[1])) for k in range(first, last + 1)]
