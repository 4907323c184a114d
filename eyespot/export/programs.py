"""Programs that need neither eyespot nor the net's Python: TorchScript, and torch.export's."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from eyespot.errors import UserError
from eyespot.export.written import Written, equal_tensors, facts
from eyespot.nets.backbones import Backbone
from eyespot.nets.files import disk_errors

FACTS = "eyespot.json"
"""The file inside the archives that says what `eyespot.export.written.facts` gives."""
NAMES = {0: "batch", 2: "height", 3: "width"}

# what torch.export and the tracer raise about a net that they cannot take
REFUSED = (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, NotImplementedError)


class Program(nn.Module):
    """The net one level down, so that no tensor of it ("mean") has the name of an operation of the graph."""

    def __init__(self, net: Backbone):
        super().__init__()
        self.backbone = net

    def forward(self, pixels: Tensor) -> Tensor:
        return self.backbone(pixels)


def example(net: Backbone) -> Tensor:
    return torch.rand((2, net.channels, net.image_size, net.image_size), generator=torch.Generator().manual_seed(1))


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(" .")


def state(net: Backbone) -> dict[str, Tensor]:
    """The tensors of a program of the net, by name; batch norm's counters do not take part."""
    return {k: v for k, v in Program(net).state_dict().items() if v.is_floating_point()}


# --- TorchScript ------------------------------------------------------------------------------------------------------
def write_torchscript(net: Backbone, path: Path, about: dict[str, Any], any_size: bool) -> Written:
    """A traced program; the batch stays open, and the size for convolutional nets."""
    known = facts(net, "torchscript", True, about)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that the trace fixes: the comparison afterwards decides
            traced: Any = torch.jit.trace(Program(net).eval(), example(net), check_trace=False)
            with open(path, "wb") as stream:  # torch says of a path only that it could not write
                torch.jit.save(traced, stream, _extra_files={FACTS: json.dumps(known)})
            loaded: Any = torch.jit.load(str(path), map_location="cpu")
    except REFUSED as error:
        raise UserError(
            f"'{net.name}' cannot be traced for TorchScript ({first_line(error)}); use --format torch_export."
        ) from error
    ours = state(net)
    usage = (
        f'import torch\n\nnet = torch.jit.load("{path.name}")\n'
        f"features = net(pixels)  # pixels [B, {net.channels}, H, W] in [0, 1]; it normalises by itself"
    )
    matched = equal_tensors(ours, dict(loaded.state_dict()))
    return Written(f"torch.jit of torch {torch.__version__}", loaded, matched, len(ours), usage, _open(any_size))


def _open(any_size: bool) -> list[str]:
    return [name for axis, name in NAMES.items() if any_size or axis == 0]


# --- torch.export -----------------------------------------------------------------------------------------------------
def exported(net: Backbone, any_size: bool) -> tuple[ExportedProgram, list[str], list[str]]:
    """The net as a graph, its open dimensions, and why the size is not among them where it could have been.

    Raises:
        UserError: torch.export does not take the net.
    """
    pixels, notes = example(net), []
    if any_size:
        try:
            return _export(net, pixels, NAMES), list(NAMES.values()), notes
        except REFUSED as error:
            notes.append(f"the size is fixed: torch.export refused an open one ({first_line(error)})")
    try:
        return _export(net, pixels, {0: "batch"}), ["batch"], notes
    except REFUSED as error:
        raise UserError(
            f"'{net.name}' cannot be exported as a graph ({first_line(error)}); use --format timm or torchscript."
        ) from error


def _export(net: Backbone, pixels: Tensor, open_axes: dict[int, str]) -> ExportedProgram:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.export.export(
            Program(net).eval(), (pixels,), dynamic_shapes=({axis: Dim.DYNAMIC for axis in open_axes},)
        )


def taking_part(program: ExportedProgram) -> set[str]:
    """Names of the tensors that the features depend on."""
    places = [n for n in program.graph.nodes if n.op == "placeholder"]
    specs = program.graph_signature.input_specs
    return {str(spec.target) for spec, node in zip(specs, places, strict=True) if spec.target and node.users}


def smallest_side(program: ExportedProgram) -> int:
    """The smallest height and width that the graph takes."""
    bounds = [r.lower for r in program.range_constraints.values()]
    return max((int(b) for b in bounds), default=0)


def write_torch_export(net: Backbone, path: Path, about: dict[str, Any], any_size: bool) -> Written:
    """A graph of torch.export."""
    program, dynamic, notes = exported(net, any_size)
    known = facts(net, "torch_export", True, about) | {"dynamic": dynamic}
    with disk_errors(path), open(path, "wb") as stream:
        torch.export.save(program, stream, extra_files={FACTS: json.dumps(known)})
    loaded = torch.export.load(str(path))
    used = taking_part(program)
    ours = {k: v for k, v in state(net).items() if k in used}
    usage = (
        f'import torch\n\nnet = torch.export.load("{path.name}").module()\n'
        f"features = net(pixels)  # pixels [B, {net.channels}, H, W] in [0, 1]; it normalises by itself"
    )
    if len(dynamic) > 1 and smallest_side(program) > 8:
        notes.append(f"height and width may be anything from {smallest_side(program)} pixels")
    matched = equal_tensors(ours, dict(loaded.state_dict))
    reader = f"torch.export of torch {torch.__version__}"
    return Written(reader, loaded.module(), matched, len(ours), usage, dynamic, notes)
