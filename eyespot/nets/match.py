"""Weights from elsewhere into a backbone: what is the same is copied, what can be adapted is, the rest is named.

Nothing is silent. The `Report` says for every tensor of the net whether it was loaded, adapted (how) or left as drawn
(why), and what of the source was not used. A source that does not fit is refused with the nearest explanation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyespot.errors import UserError
from eyespot.nets.architectures import guess
from eyespot.nets.backbones import Backbone
from eyespot.nets.naming import Tensors, naming_of, timm_names, to_timm

LEAST = 0.9
"""Share of the net's tensors that must match; below it the weights are another net's."""
PREFIXES = 64
"""Most places in a file in which a net is looked for."""
LATER = {"student": 2, "encoder_k": 1, "momentum_encoder": 1, "target": 1, "teacher": 1, "state_dict_ema": 1}
"""Where two copies of a net fit equally, those with these words in front come later: DINO's teacher is taken before its
student, MoCo's query encoder before its key encoder."""


@dataclass
class Report:
    """What was loaded into a net of `total` tensors, and from where."""

    source: str
    kind: str
    """run, file, huggingface, timm, torchvision or module."""
    net: str
    total: int = 0
    matched: int = 0
    """Tensors copied as they are."""
    adapted: dict[str, str] = field(default_factory=dict)
    """Tensors loaded after a change, and which."""
    missing: list[str] = field(default_factory=list)
    """Tensors of the net that the source does not have: as drawn."""
    differs: dict[str, str] = field(default_factory=dict)
    """Tensors of another shape, "[64, 3, 7, 7] instead of [64, 3, 3, 3]": as drawn."""
    unexpected: list[str] = field(default_factory=list)
    """Tensors beside those of the net (heads, decoders) that were not used."""
    elsewhere: int = 0
    """Tensors in other parts of the source."""
    prefix: str = ""
    """What was left out in front of the names."""
    also: list[str] = field(default_factory=list)
    """Other prefixes that fit equally well."""
    naming: str = "timm"
    """Whose names they were."""
    notes: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """The same for config.json."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """The report in words: one line in all, then one a kind of exception."""
        head = f"{self.matched + len(self.adapted)} of {self.total} tensors of {self.net} from '{self.source}'"
        if self.naming != "timm":
            head += f", {self.naming} names"
        if self.prefix:
            head += f", '{self.prefix}' left out of the names"
        rows = [head + (f" (not '{_some(self.also, 2)}', which fits as well)" if self.also else "")]
        rows += [f"  adapted   {name}: {how}" for name, how in self.adapted.items()]
        rows += [f"  as drawn  {name}: {how}" for name, how in self.differs.items()]
        if self.missing:
            rows.append(f"  as drawn  not in the source: {_some(self.missing)}")
        if self.unexpected:
            rows.append(f"  not used  no part of the backbone: {_some(self.unexpected)}")
        if self.elsewhere:
            rows.append(f"  not used  {self.elsewhere} tensors in other parts of the source")
        return rows + [f"  note      {note}" for note in self.notes]


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@torch.no_grad()
def load_matching(net: Backbone, tensors: Mapping[str, Tensor], source: str, kind: str) -> Report:
    """Copies what fits of `tensors` into `net` and says what did.

    Args:
        tensors: by any of the names that `eyespot.nets.naming` knows, behind any common prefix.
        source: what the user named, for messages.
        kind: see `Report`.

    Raises:
        UserError: less than `LEAST` of the net's tensors match, numbers that are not finite, or other channels than
            can be adapted.
    """
    state = net.net.state_dict()
    names = timm_names(state)
    report = Report(source, kind, net.name)
    report.prefix, report.also = _find(tensors, {names[n]: v for n, v in state.items()})
    inside = {n.removeprefix(report.prefix): v for n, v in tensors.items() if n.startswith(report.prefix)}
    report.elsewhere = len(tensors) - len(inside)
    report.naming = naming_of(inside)
    group = to_timm(inside)
    _fold_class_position(net, group, report)
    chosen: Tensors = {}
    for name, target in state.items():
        value = group.pop(names[name], None)
        if _counts(name, target):
            report.total += 1
            value = _fitted(net, name, target, value, report)
        if value is not None and value.shape == target.shape:
            chosen[name] = value
    report.unexpected = sorted(group)
    report.matched = sum(_counts(n, state[n]) for n in chosen) - len(report.adapted)
    _check_share(net, inside, report, _of_the_trunk(report.unexpected, names.values()))
    _check_finite(chosen, source)
    for name, value in chosen.items():
        state[name].copy_(value)
    return report


def _counts(name: str, value: Tensor) -> bool:
    """Counters and tables of indices are no weights."""
    return value.is_floating_point()


def _fitted(net: Backbone, name: str, target: Tensor, value: Tensor | None, report: Report) -> Tensor | None:
    """The value for one tensor, adapted where that is sound; what stands against it goes into the report."""
    if value is None:
        report.missing.append(name)
        return None
    if value.shape == target.shape:
        return value
    for adapt in (_other_channels, _other_grid):
        adapted, how = adapt(net, name, target, value, report)
        if adapted is not None:
            report.adapted[name] = how
            return adapted
    report.differs[name] = f"{list(value.shape)} instead of {list(target.shape)}"
    return None


# --- what can be adapted --------------------------------------------------------------------------------------------
def first_convolution(net: Backbone) -> str | None:
    """The name of the weight that meets the pixels."""
    for name, module in net.net.named_modules():
        if isinstance(module, nn.Conv2d):
            return f"{name}.weight"
    return None


def _other_channels(
    net: Backbone, name: str, target: Tensor, value: Tensor, report: Report
) -> tuple[Tensor | None, str]:
    """The first convolution for other channels: colours are averaged, so that a picture with equal channels gives the
    same response as before. Sound from grey or RGB only; channels of other meaning have no common average."""
    same = value.dim() == 4 and value.shape[0] == target.shape[0] and value.shape[2:] == target.shape[2:]
    if not same or name != first_convolution(net):
        return None, ""
    have, want = value.shape[1], target.shape[1]
    if have not in (1, 3):
        raise UserError(f"'{report.source}' takes {have} channels but the pictures have {want}; use --channels {have}.")
    averaged = value.float().mean(1, keepdim=True) * have / want
    return averaged.expand_as(target), f"{have} to {want} channels, averaged so that equal channels respond as before"


def _other_grid(net: Backbone, name: str, target: Tensor, value: Tensor, report: Report) -> tuple[Tensor | None, str]:
    """Absolute positions of a square grid of patches, resampled bicubically to another; the prefix stays."""
    if timm_names([name])[name].rpartition(".")[2] not in ("pos_embed", "pos_embedding"):
        return None, ""
    if value.dim() != 3 or target.dim() != 3 or value.shape[::2] != target.shape[::2]:
        return None, ""
    prefix = _embedded_prefix(net)
    old, new = (math.isqrt(max(0, v.shape[1] - prefix)) for v in (value, target))
    if old < 1 or old**2 + prefix != value.shape[1] or new**2 + prefix != target.shape[1]:
        return None, ""
    cells = value[:, prefix:].float().unflatten(1, (old, old)).permute(0, 3, 1, 2)
    cells = F.interpolate(cells, size=(new, new), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    return torch.cat([value[:, :prefix].float(), cells], 1), f"resampled from {old} x {old} to {new} x {new} positions"


def _embedded_prefix(net: Backbone) -> int:
    """Tokens before the patches that have a position (class and registers)."""
    if getattr(net.net, "no_embed_class", False):
        return 0
    return int(getattr(net.net, "num_prefix_tokens", 1))


def _fold_class_position(net: Backbone, group: Tensors, report: Report) -> None:
    """DINOv2 with registers gives the class token a position, timm's net adds it to the token once and for all."""
    token, positions = group.get("cls_token"), group.get("pos_embed")
    folds = getattr(net.net, "no_embed_class", False) and "reg_token" in group
    if not folds or token is None or positions is None or positions.dim() != 3 or token.shape != positions[:, :1].shape:
        return
    if math.isqrt(positions.shape[1] - 1) ** 2 == positions.shape[1] - 1:
        group["cls_token"], group["pos_embed"] = token + positions[:, :1], positions[:, 1:]
        report.notes.append("the position of the class token was added to the token, as timm has it")


# --- where in a file the net is ---------------------------------------------------------------------------------------
def _find(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[str, list[str]]:
    """The prefix behind which most of the net is found, and the others that fit equally."""
    scores: dict[str, tuple[int, int]] = {}
    for prefix in _prefixes(tensors, wanted):
        inside = {n.removeprefix(prefix): v.shape for n, v in tensors.items() if n.startswith(prefix)}
        named = {new: inside[old] for old, new in timm_names(inside).items()}
        known = [n for n in named if n in wanted]
        scores[prefix] = (sum(named[n] == wanted[n].shape for n in known), len(known))
    if not scores:
        return "", []
    order = sorted(scores, key=lambda p: ([-s for s in scores[p]], _lateness(p), len(p), p))
    return order[0], [p for p in order[1:] if scores[p] == scores[order[0]]]


def _lateness(prefix: str) -> int:
    return sum(LATER.get(word, 0) for word in prefix.split("."))


def _prefixes(tensors: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """What stands in front of names with which a net may begin or end."""
    ours = [n for n in wanted if not n.endswith("num_batches_tracked")]
    ends = {ours[0], ours[len(ours) // 2], ours[-1]} if ours else set()
    ends |= {"embedder.embedder.convolution.weight", "embeddings.patch_embeddings.projection.weight"}
    ends |= {"conv_proj.weight"}
    found = {n[: len(n) - len(end)] for n in tensors for end in ends if n == end or n.endswith("." + end)}
    return sorted(found, key=lambda p: (len(p), p))[:PREFIXES]


# --- refusals ---------------------------------------------------------------------------------------------------------
def _check_finite(chosen: Tensors, source: str) -> None:
    broken = [n for n, v in chosen.items() if v.is_floating_point() and not bool(v.isfinite().all())]
    if broken:
        raise UserError(
            f"'{source}' has numbers that are not finite in {len(broken)} tensors ({_some(broken)}); "
            "its training broke, so start from another checkpoint."
        )


def _of_the_trunk(unexpected: Sequence[str], names: Iterable[str]) -> list[str]:
    """Those that stand in a part that the net has too: further blocks or layers, where heads have their own parts."""
    parts = {name.partition(".")[0] for name in names}
    return [name for name in unexpected if name.partition(".")[0] in parts and not name.endswith("num_batches_tracked")]


def _check_share(net: Backbone, inside: Mapping[str, Tensor], report: Report, beyond: Sequence[str]) -> None:
    loaded = report.matched + len(report.adapted)
    if report.total and loaded >= LEAST * (report.total + len(beyond)):
        return
    more = f", and {len(beyond)} of the source are not in it" if beyond else ""
    raise UserError(
        f"'{report.source}' does not fit {net.name}: {loaded} of its {report.total} tensors match{more}, at least "
        f"{100 * LEAST:g} % must; {_explained(net, inside, report, beyond)}"
    )


def _explained(net: Backbone, inside: Mapping[str, Tensor], report: Report, beyond: Sequence[str]) -> str:
    """The nearest explanation of why so little fits."""
    found = guess(to_timm(inside))
    if found is not None and found.name != net.name:
        return f"they look like those of {found.words}: use --backbone {found.name}."
    if len(beyond) > len(report.differs):
        return f"{_some(beyond, 2)} are of a deeper net: choose its --backbone."
    if report.differs:
        name, how = next(iter(report.differs.items()))
        return f"{name} is {how}, so it is a net of another width or patch: choose its --backbone."
    if len(report.missing) < report.total:
        return f"{_some(report.missing, 2)} and others are missing, so it is another net: choose its --backbone."
    theirs = ", ".join(f"'{n}'" for n in list(inside)[:2])
    return f"its names ({theirs}) are not those of the net ('{report.missing[0]}'): choose its --backbone."
