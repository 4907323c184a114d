"""ONNX, with the normalisation inside, by way of torch.export."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from eyespot.errors import MissingExtra, UserError
from eyespot.export.programs import NAMES, exported, first_line, smallest_side, state, taking_part
from eyespot.export.written import Written, as_text, equal_tensors, facts
from eyespot.nets.backbones import Backbone

NEEDED = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT = "pixels", "features"


def write(net: Backbone, path: Path, about: dict[str, Any], any_size: bool) -> Written:
    """The file, and onnxruntime's session with it.

    The graph is not optimised beforehand: all tensors keep their names and bits, and runtimes fold what they want when
    they load it.

    Raises:
        MissingExtra: the packages are not installed.
        UserError: torch.export does not take the net.
    """
    import_all()
    import onnx
    import onnxruntime

    program, dynamic, notes = exported(net, any_size)
    try:
        made = _graph(program, dynamic)
        made.model.metadata_props.update(as_text(facts(net, "onnx", True, about) | {"dynamic": dynamic}))
        made.save(str(path), external_data=False)
        session = _session(path)
    except (torch.onnx.OnnxExporterError, *_runtime_errors()) as error:
        raise UserError(
            f"'{net.name}' cannot be written as ONNX ({first_line(error)}); use --format torch_export or torchscript."
        ) from error

    def features(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: pixels.numpy()})[0])

    used = taking_part(program)
    ours = {k: v for k, v in state(net).items() if k in used}
    stored = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in _initializers(path)}
    if len(dynamic) > 1 and smallest_side(program) > 8:
        notes.append(f"height and width may be anything from {smallest_side(program)} pixels")
    usage = (
        f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{path.name}")\n'
        f'features = session.run(["{OUTPUT}"], {{"{INPUT}": pixels}})[0]'
        f"  # float32 [B, {net.channels}, H, W] in [0, 1]; it normalises by itself"
    )
    reader = f"onnxruntime {onnxruntime.__version__}"
    return Written(reader, features, equal_tensors(ours, stored), len(ours), usage, dynamic, notes)


def _graph(program: ExportedProgram, dynamic: list[str]) -> Any:
    names = {axis: name for axis, name in NAMES.items() if name in dynamic}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(names,),
            optimize=False,
            verbose=False,
        )


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of what it does not fold
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _runtime_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises about a graph; its errors have no common base of their own."""
    errors = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    return tuple(getattr(errors, name) for name in ("Fail", "InvalidGraph", "NotImplemented", "InvalidArgument"))


def import_all() -> None:
    """Says which package is missing before any work is done."""
    for package in NEEDED:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingExtra(package, "onnx", "--format onnx") from error


def _initializers(path: Path) -> Any:
    import onnx

    return onnx.load(str(path)).graph.initializer
