"""Someone who reads a page of the documentation and types in what stands there, on a small folder of pictures.

Blocks are run one after the other in one folder. `sh` blocks are commands; lengths and networks of trainings are cut
to what a test can wait for. `python` blocks share their names. A block with a title is a file of that name.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eyespot.cli import main
from eyespot.methods import catalog
from eyespot.nets.backbones import modality_of_name

BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', flags=re.MULTILINE | re.DOTALL)
SMALL = {"--epochs": "1", "--batch-size": "8", "--workers": "0"}
CUT = ("--minutes", "--backbone", "--image-size", *SMALL)


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page that name a language."""
    return [Block(*found) for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def lines(text: str) -> Iterator[str]:
    """The commands of a shell block, those that go on after a backslash as one."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line


def shortened(words: list[str]) -> list[str]:
    """The words of an eyespot command, its training made short."""
    verb, *rest = words
    if verb not in ("pretrain", "adapt", "estimate"):
        return [*words, "--workers", "0"] if verb in ("evaluate", "embed", "compare") else words
    kept, given, skip = [], {}, False
    for word, following in zip(rest, [*rest[1:], ""], strict=True):
        if skip or word in CUT:
            if word in CUT:
                given[word] = following
            skip = not skip
        else:
            kept.append(word)
    options = dict(SMALL)
    if "--init" not in kept and verb != "adapt":
        wanted = given.get("--backbone") or catalog.find(rest[0]).recipe["backbone"]
        if modality_of_name(wanted) == "image":
            wanted = "vit_micro" if wanted.startswith("vit") else "resnet8"
        options |= {"--backbone": wanted, "--image-size": "32"}
    elif "--backbone" in given:
        options |= {"--backbone": given["--backbone"]}
    if "--image-size" in given or "--init" in kept:
        options |= {"--image-size": "32"}
    return [verb, *kept, *(word for pair in options.items() for word in pair)]


class Reader:
    """Runs the blocks of a page in the present folder.

    Args:
        root: of the repository, for `pip install .`.
        add_path: puts a folder in front of those that Python looks for modules in.
    """

    def __init__(self, root: Path, add_path: Callable[[str], None]):
        self.root, self.add_path = root, add_path
        self.names: dict[str, Any] = {"__name__": "page"}
        self.commands: list[str] = []

    def read(self, page: Path) -> dict[str, Any]:
        """Run everything; what the Python blocks left."""
        for block in blocks(page):
            if block.title:
                self._write(block)
            elif block.language == "sh":
                for line in lines(block.text):
                    self.run(line)
            elif block.language == "python":
                exec(compile(block.text, str(page), "exec"), self.names)
        return self.names

    def _write(self, block: Block) -> None:
        path = Path(block.title)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        if path.suffix == ".py":
            (path.parent / "__init__.py").touch()

    def run(self, line: str) -> None:
        """One command; it must succeed."""
        self.commands.append(line)
        program, *words = _globbed(shlex.split(line))
        if program == "eyespot":
            assert main(shortened(words)) == 0, line
        elif program == "torchrun":
            self._torchrun(words, line)
        elif program == "pip":
            assert words == ["install", "."], line
            self._install()
        elif program == "python3":
            _call([sys.executable, *words, "--without-pip"], line)
        elif program == ".":
            assert Path(words[0]).exists(), line
        else:
            raise AssertionError(f"a test cannot run '{line}'")

    def _torchrun(self, words: list[str], line: str) -> None:
        at = words.index("eyespot") + 1
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[:at]]
        _call([*command, *shortened(words[at:])], line, PYTHONPATH=str(self.root), OMP_NUM_THREADS="1")

    def _install(self) -> None:
        """What stands here, or the clone, into the folder `site`; without the network: dependencies are there."""
        source = Path.cwd()
        if not (source / "pyproject.toml").exists():
            source = source / "clone"
            shutil.copytree(self.root / "eyespot", source / "eyespot", ignore=shutil.ignore_patterns("__pycache__"))
            for name in ("pyproject.toml", "README.md", "LICENSE"):
                shutil.copy(self.root / name, source / name)
        site = Path.cwd() / "site"
        options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
        _call([sys.executable, "-m", "pip", "install", "-qq", *options, str(source)], "pip install .")
        if (site / "bin" / "eyespot").exists():
            _call([str(site / "bin" / "eyespot"), "methods", "simclr"], "eyespot methods", PYTHONPATH=str(site))
        else:
            self.add_path(str(site))


def _globbed(words: list[str]) -> list[str]:
    """runs/* -> runs/a runs/b, as a shell does where something fits."""
    out = []
    for word in words:
        out += sorted(map(str, Path().glob(word))) or [word] if "*" in word else [word]
    return out


def _call(command: list[str], line: str, **environment: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
