"""`eyespot.export`: a trained backbone as a file or folder of another library, which loads it back and is compared.

Nothing is left behind that did not agree: what is written stands in a hidden folder beside its place until the library
that reads the format has loaded it and given the same features.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eyespot.declare import build
from eyespot.errors import UserError
from eyespot.evaluate.models import channels_of, given_net
from eyespot.export.written import Compared, Written, compare, ready, shapes_to_compare, takes_any_size
from eyespot.nets.backbones import DESCRIPTION, WEIGHTS, Backbone, backbone, check_name, published_size
from eyespot.options import ExportOptions
from eyespot.runs import read_json

FORMATS: dict[str, tuple[str, str]] = {
    "timm": ("timm:write", ".safetensors"),
    "torchvision": ("torchvision:write", ".safetensors"),
    "huggingface": ("huggingface:write", ""),
    "onnx": ("onnx:write", ".onnx"),
    "torchscript": ("programs:write_torchscript", ".pt"),
    "torch_export": ("programs:write_torch_export", ".pt2"),
}
"""Where each format is written, and how its file ends; a folder has no ending."""
MARK = '"eyespot"'
"""What is in the config.json of a folder that was exported before."""


def export(run: Any, /, **options: Any) -> dict[str, Any]:
    """Write the backbone of a run in another library's format, load it there and compare the features.

    Args:
        run: run folder, run, backbone or method, or the name of a backbone with `pretrained=True`.
        options: the options of `eyespot export`, with their defaults, in `eyespot.options.ExportOptions`.

    Returns:
        {"run", "format", "out", "backbone", "channels", "image_size", "embed_dim", "bytes", "reader", "matched",
        "tensors" (matched of them came back to the bit), "largest_difference", "largest_feature", "tolerance",
        "compared" (the shapes), "dynamic", "notes", "usage" (Python that loads it), "seconds"}

    Raises:
        UserError: the library has no such net, the copy differs by more than the tolerance, the place cannot be
            written, ...; nothing is left behind.
        MissingExtra: the packages of the format are not installed.
    """
    started = time.perf_counter()
    o = build(ExportOptions, run, **options)
    place, ending = FORMATS[o.format]
    out = _target(o.out, o.format, ending)
    net = ready(_backbone(o))
    any_size = takes_any_size(net)
    module, _, name = place.partition(":")
    write: Callable[..., Written] = getattr(importlib.import_module(f"eyespot.export.{module}"), name)
    with _beside(out) as part:
        written = write(net, part, _about(o.run), any_size)
        compared = compare(net, written.features, shapes_to_compare(net, any_size and _takes_other_sizes(written)))
        _check(written, compared, o.tolerance, out)
        size = _move(part, out)
    return {
        "run": str(getattr(o.run, "path", o.run if isinstance(o.run, str | Path) else net.name)),
        "format": o.format,
        "out": str(out),
        "backbone": net.name,
        "channels": net.channels,
        "image_size": net.image_size,
        "embed_dim": net.embed_dim,
        "bytes": size,
        "reader": written.reader,
        "matched": written.matched,
        "tensors": written.tensors,
        "largest_difference": compared.difference,
        "largest_feature": compared.largest,
        "tolerance": o.tolerance,
        "compared": compared.shapes,
        "dynamic": list(written.dynamic),
        "notes": written.notes,
        "usage": written.usage,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _backbone(o: ExportOptions) -> Backbone:
    """The net to export; a name alone would be random weights, so it must ask for the published ones."""
    net = given_net(o.run)
    if net is not None:
        if net.modality != "image":
            raise UserError(
                f"'{net.name}' takes no pictures, and other libraries' formats are for networks that do; load it with "
                "eyespot.nets.backbones.load_backbone(run), its weights are in the run's backbone.safetensors."
            )
        if o.pretrained:
            raise UserError("--pretrained is for the name of a backbone; leave it out for a run.")
        if o.image_size not in (None, net.image_size):
            raise UserError(f"The run was trained at {net.image_size} px; leave --image-size out.")
        return net
    if not isinstance(o.run, str):
        raise UserError(f"A {type(o.run).__name__} cannot be exported; wrap it with eyespot.backbone(module, ...).")
    check_name(o.run)
    if not o.pretrained:
        raise UserError(f"'{o.run}' is a name, not a run; add --pretrained to export its published weights.")
    channels = channels_of(o.run, None, True)
    return backbone(o.run, channels=channels or 3, image_size=o.image_size or published_size(o.run), pretrained=True)


def _about(run: Any) -> dict[str, Any]:
    """What the run's config says of where the weights come from."""
    from eyespot import __version__

    path = Path(getattr(run, "path", run)) if isinstance(getattr(run, "path", run), str | Path) else None
    known = {"written_by": f"eyespot {__version__}"}
    if path is not None and (path / "config.json").is_file():
        config = read_json(path / "config.json")
        known |= {k: config[k] for k in ("method", "data") if isinstance(config.get(k), str)}
        known |= {"plugins": ", ".join(config["plugins"])} if config.get("plugins") else {}
    return known


def _takes_other_sizes(written: Written) -> bool:
    return not written.dynamic or "height" in written.dynamic


# --- where it goes ----------------------------------------------------------------------------------------------------
def _target(out: Any, format: str, ending: str) -> Path:
    """The file or folder, checked before any work is done."""
    path = Path(out).expanduser()
    if ending and path.suffix != ending:
        raise UserError(f"--out '{path}' does not end in {ending}, as --format {format} needs; use '{path}{ending}'.")
    if ending and path.is_dir():
        raise UserError(f"--out '{path}' is a folder; name a file, such as {path / ('backbone' + ending)}.")
    if path.name == WEIGHTS and (path.parent / DESCRIPTION).exists():
        raise UserError(f"--out '{path}' is the run's own file, which would be lost; choose another name.")
    if not ending:
        _check_folder(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out '{path}' cannot be written ({error.strerror}); choose another place.") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--out '{path}' cannot be written: no permission for {path.parent}; choose another place.")
    return path


def _check_folder(path: Path) -> None:
    """An earlier export is replaced, nothing else is."""
    if path.exists() and not path.is_dir():
        raise UserError(f"--out '{path}' is a file; --format huggingface writes a folder.")
    config = path / "config.json"
    earlier = config.is_file() and MARK in config.read_text(encoding="utf-8", errors="replace")
    if path.exists() and any(path.iterdir()) and (not earlier or (path / DESCRIPTION).exists()):
        raise UserError(f"--out '{path}' holds other files; name a new folder.")


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A place of the same name in a hidden folder beside `out`; the folder is removed in the end, whatever happened."""
    folder = out.parent / f".{out.name}.{os.getpid()}.part"
    try:
        folder.mkdir()
        yield folder / out.name
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--out '{out}' cannot be written ({reason}); make room or choose another place.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(part: Path, out: Path) -> int:
    """Each file in its place in one step; the bytes in all."""
    files = sorted(part.iterdir()) if part.is_dir() else [part]
    size = 0
    for file in files:
        size += file.stat().st_size
        with open(file, "rb") as f:
            os.fsync(f.fileno())
        if part.is_dir():
            out.mkdir(exist_ok=True)
        os.replace(file, out / file.name if part.is_dir() else out)
    return size


def _check(written: Written, compared: Compared, tolerance: float, out: Path) -> None:
    """
    Raises:
        UserError: the copy is not the backbone.
    """
    if compared.difference <= tolerance * compared.largest and written.matched == written.tensors:
        return
    raise UserError(
        f"The copy that {written.reader} loaded differs from the backbone: {written.matched} of {written.tensors} "
        f"tensors are equal and features differ by {compared.difference:.2g} (largest {compared.largest:.2g}, "
        f"tolerance {tolerance:g} of it), so '{out}' was not written."
    )
