"""The run folder: only files, written atomically, readable without eyespot.

config.json  metrics.jsonl  verdict.json  bad_files.txt  checkpoint.pt  backbone.safetensors  backbone.json  pictures/

One run at a time writes into a folder: it holds a lock on `.lock` there, which the system takes back when the process
ends, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eyespot.errors import NotWritten, UserError
from eyespot.lock import hold, is_held

VERSION = 1
LOCK = ".lock"
BEGUN = (
    r"\.((config|verdict|evaluation|backbone)\.json|metrics\.jsonl|bad_files\.txt|checkpoint\.pt"
    r"|(backbone|prepared)\.safetensors)\.\d+\.part"
)
"""What `replacing` calls the files of a run while they are written."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, the system's errors are about writing `path`.

    Raises:
        NotWritten: in place of them.
    """
    try:
        yield
    except NotWritten:
        raise
    except OSError as error:
        raise NotWritten(path, error.strerror or str(error)) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; when the block ends well it replaces `path` in one step, durably.

    Raises:
        NotWritten: there is no room, ...; `path` is as it was.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing(path):
            yield part
            with open(part, "rb") as f:
                os.fsync(f.fileno())
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # numpy and torch scalars
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"'{path}' is not valid JSON ({error}); restore it or start a new run.") from error


class RunFolder:
    """Writing side of a run.

    Args:
        path: the folder; made when missing.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.claimed = False

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def holds_run(self) -> bool:
        return (self / "config.json").exists() or (self / "checkpoint.pt").exists()

    def make(self) -> None:
        """The folder, which must be writable."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self / ".writable"
            probe.touch()
            probe.unlink()
        except FileExistsError as error:
            raise UserError(f"--out '{self.path}' is a file; name a folder.") from error
        except OSError as error:
            raise UserError(
                f"--out '{self.path}' cannot be written ({error.strerror}); choose another folder."
            ) from error

    def start(self, resume: bool) -> bool:
        """Whether a run in the folder is to be continued; nothing is made yet.

        Raises:
            UserError: another run writes into it, or it holds a run and `resume` was not asked for.
        """
        if not self.claimed and is_held(self / LOCK):
            raise self._busy()
        if self.holds_run() and not resume:
            raise UserError(
                f"--out '{self.path}' already holds a run; add --resume to continue it or choose another folder."
            )
        if self.path.is_file():
            raise UserError(f"--out '{self.path}' is a file; name a folder.")
        return self.holds_run()

    def claim(self, until: contextlib.ExitStack, resume: bool) -> None:
        """Make the folder and keep other runs out of it until `until` closes; once is enough.

        Raises:
            UserError: as `start`: another run may have come first.
        """
        if self.claimed:
            return
        self.make()
        if not until.enter_context(hold(self / LOCK)):
            raise self._busy()
        self.claimed = True
        until.callback(setattr, self, "claimed", False)
        self.start(resume)
        self._clean()

    def _busy(self) -> UserError:
        return UserError(
            f"--out '{self.path}' is being written by another run; wait until that ends, or choose another folder."
        )

    def _clean(self) -> None:
        """Remove what a run that was killed had begun to write, there and in its preparation."""
        for part in [*self.path.glob(".*.part"), *self.path.glob("prepare/*/.*.part")]:
            if re.fullmatch(BEGUN, part.name):
                part.unlink(missing_ok=True)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        path = self / "metrics.jsonl"
        with writing(path), open(path, "a", encoding="utf-8") as f:
            f.write(json.dumps(record, ensure_ascii=False, default=_plain) + "\n")

    def cut_metrics(self, step: int) -> None:
        """Drop what was logged after `step`: it is trained again."""
        path = self / "metrics.jsonl"
        if path.exists():
            kept = [r for r in read_metrics(path) if r.get("step", 0) <= step]
            write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))

    def write_bad_files(self, bad: Mapping[str, str]) -> None:
        write_text(self / "bad_files.txt", "".join(f"{path}\t{reason}\n" for path, reason in sorted(bad.items())))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line cut by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


class Run:
    """A run that was left in a folder.

    Args:
        path: the run folder.

    Raises:
        UserError: when the folder holds no run.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if not (self.path / "config.json").exists():
            raise UserError(f"'{self.path}' holds no run (no config.json in it); give the --out folder of a pretrain.")
        self.config: dict[str, Any] = read_json(self.path / "config.json")

    @property
    def verdict(self) -> dict[str, Any]:
        """{"state", "reason", "remedy", "numbers"}; empty before the first verdict."""
        path = self.path / "verdict.json"
        return read_json(path) if path.exists() else {}

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One record a logged step."""
        path = self.path / "metrics.jsonl"
        return read_metrics(path) if path.exists() else []

    @property
    def backbone(self) -> Any:
        """The trained backbone, on CPU in eval mode."""
        from eyespot.nets.backbones import load_backbone  # the one look upwards: a run is read without torch

        return load_backbone(self.path).eval()

    @property
    def method(self) -> Any:
        """The whole trained method (heads, teacher, classifier), on CPU in eval mode."""
        from eyespot.train.build import load_method

        return load_method(self.path).eval()

    def __repr__(self) -> str:
        return (
            f"Run({str(self.path)!r}, {self.config.get('method', '?')}, {self.verdict.get('state', 'no verdict yet')})"
        )
