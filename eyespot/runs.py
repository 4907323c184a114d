"""The run folder: only files, written atomically, readable without eyespot.

config.json  metrics.jsonl  verdict.json  bad_files.txt  checkpoint.pt  backbone.safetensors  backbone.json  pictures/
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eyespot.errors import UserError

VERSION = 1


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; when the block ends well it replaces `path` in one step, durably."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
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

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def holds_run(self) -> bool:
        return (self / "config.json").exists() or (self / "checkpoint.pt").exists()

    def make(self) -> None:
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
            UserError: it holds a run and `resume` was not asked for.
        """
        if self.holds_run() and not resume:
            raise UserError(
                f"--out '{self.path}' already holds a run; add --resume to continue it or choose another folder."
            )
        if self.path.is_file():
            raise UserError(f"--out '{self.path}' is a file; name a folder.")
        return self.holds_run()

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        with open(self / "metrics.jsonl", "a", encoding="utf-8") as f:
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
