"""Classification by words, version 1: a picture is of the class whose description lies nearest; nothing is trained.

    top1, top5         accuracy in percent; descriptions of a class are averaged, see `eyespot.metrics.image_text`
    class_mean         mean of the accuracies of the classes
    first_prompt_top1  accuracy with the first description of each class alone: what averaging gives is the difference

Classes are described by the templates below, filled with their names in words (tennis_court is "tennis court"), or by
what `prompts` names:

    templates.txt      one template a line, with {} for the name
    prompts.json       {"tennis court": ["a tennis court", "courts with nets"], ...}
    prompts.jsonl(.gz) lines like {"class": "tennis court", "prompts": [...]}; with a colon and a word after the path,
                       of this "dataset" alone

Names are matched without regard to case, spaces and signs. Measured on the labelled test pictures where they are given.
A network that was trained with labels of these classes is not asked anything new: the result cannot know it.
"""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot import modality
from eyespot.data.pairs import class_names
from eyespot.errors import UserError, nearest
from eyespot.evaluate import whole
from eyespot.evaluate.dense import still
from eyespot.evaluate.measured import Measured
from eyespot.evaluate.samples import data_id, open_labelled
from eyespot.metrics.image_text import class_weight
from eyespot.options import EvaluateOptions

NAME = "zero_shot"
VERSION = 1
SETTINGS = ("prompts",)
TEMPLATES = (
    "a photo of a {}.",
    "there is a {}.",
    "this is a {}.",
    "a picture of the {}.",
    "there are some {}.",
    "a {}.",
    "an image with {}.",
    "{}",
)
"""Of any picture; the first is the paper's."""


def run(method: Any, image: Tensor, labels: Tensor, prompts: Sequence[Sequence[str]]) -> dict[str, float]:
    """The metrics.

    Args:
        image: features [n, E].
        labels: int64 [n].
        prompts: the descriptions of each class.
    """
    flat = whole.text_features(method, [p for texts in prompts for p in texts])
    ends = np.cumsum([0, *map(len, prompts)])
    each = [flat[a:b] for a, b in pairwise(ends)]
    scores = method.match(image, torch.stack([class_weight(f, method.unit) for f in each]))
    single = method.match(image, torch.stack([class_weight(f[:1], method.unit) for f in each]))
    hit = scores.argmax(1) == labels
    best = scores.topk(min(5, scores.shape[1]), 1).indices
    shares = [float(hit[labels == k].double().mean()) for k in labels.unique().tolist()]
    return {
        "top1": 100 * float(hit.double().mean()),
        "top5": 100 * float((best == labels[:, None]).any(1).double().mean()),
        "class_mean": 100 * float(np.mean(shares)),
        "first_prompt_top1": 100 * float((single.argmax(1) == labels).double().mean()),
    }


def measure(
    o: EvaluateOptions, floor_seeds: int, device: torch.device, prompts: str | Mapping[str, Any] | None = None
) -> Measured:
    """The protocol on a run and on its random twins.

    Args:
        prompts: a file or {class: descriptions}, see the head of this file; None: that of the options, else templates.

    Raises:
        UserError: the run's method knows no text, the data has no labels, classes have no names or no descriptions.
    """
    prompts = prompts if prompts is not None else o.prompts
    found = whole.open_whole(o, floor_seeds, NAME)
    given, split = (o.data, o.split) if o.test_data is None else (o.test_data, None)
    channels = found.method.backbone.channels
    data = open_labelled(given, o, channels, split, modality.get("image"))
    assert data.labels is not None
    texts = descriptions(class_names(data.source), prompts, data.source.name)
    size = o.image_size or found.method.backbone.image_size
    rows = np.flatnonzero(data.labels >= 0)
    started = time.perf_counter()
    kept: list[list[Tensor]] = [[] for _ in found.methods]
    seen: list[Tensor] = []
    with still(found.methods, device):
        for batch, features in whole.picture_features(found.methods, data, rows, size, o.batch_size, device):
            seen.append(batch["label"])
            for parts, part in zip(kept, features, strict=True):
                parts.append(part)
    if not seen:
        raise UserError(f"No picture of '{data.source.name}' can be read.")
    labels, images = torch.cat(seen), iter(torch.cat(parts) for parts in kept)
    used = {"prompts": _told(prompts), "descriptions": sum(map(len, texts))}
    outcomes = whole.on_each(found.methods, device, lambda m: (run(m, next(images), labels, texts), used))
    return whole.measured(
        *(found, NAME, VERSION, outcomes, o),
        config={"data": data.source.name, "test_data": data.source.name, "data_id": data_id(data.source, None, o.seed)},
        n_test=len(labels),
        classes=len(texts),
        seconds=time.perf_counter() - started,
        bad=len(rows) - len(labels),
    )


def _told(prompts: Any) -> str:
    return "templates" if prompts is None else "given" if isinstance(prompts, Mapping) else Path(str(prompts)).name


# --- descriptions -------------------------------------------------------------------------------------------------
def in_words(name: str) -> str:
    """A class's name as it is said: tennis_court, tennis-court and TennisCourt are "tennis court"."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return " ".join(re.sub(r"[_\-./]+", " ", apart).lower().split())


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def descriptions(names: Sequence[str], prompts: str | Path | Mapping[str, Any] | None, data: str) -> list[list[str]]:
    """The descriptions of each class.

    Args:
        names: of the classes.
        prompts: see the head of this file.
        data: what the data is called, for the messages.

    Raises:
        UserError: names are only numbers, or a class has no description.
    """
    given = read_prompts(prompts) if isinstance(prompts, str | Path) else prompts
    if given is None or isinstance(given, list):
        if not names or all(name.isdecimal() for name in names):
            raise UserError(
                f"The classes of '{data}' are only numbered, and zero_shot needs their names; give --label-column with "
                "words, class folders, or a file of prompts."
            )
        return [[t.replace("{}", in_words(name)) for t in given or TEMPLATES] for name in names]
    table = {_plain(name): [str(t) for t in texts] for name, texts in given.items()}
    missing = [name for name in names if not table.get(_plain(name))]
    if missing:
        raise UserError(
            f"There are no prompts for {len(missing)} of the {len(names)} classes of '{data}', such as '{missing[0]}'; "
            f"{nearest(missing[0], map(str, given))}"
        )
    return [table[_plain(name)] for name in names]


def read_prompts(path: str | Path) -> list[str] | dict[str, list[str]]:
    """Templates, or the descriptions by class, of a file.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    file, wanted = Path(path).expanduser(), ""
    if not file.exists() and ":" in str(path):
        front, _, wanted = str(path).rpartition(":")
        file = Path(front).expanduser()
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = raw.decode("utf-8-sig")
        if file.suffix == ".txt":
            return _templates(text, file)
        found = json.loads(text) if file.suffix == ".json" else _lines(text, wanted)
    except OSError as error:
        raise UserError(f"The prompts '{file}' cannot be read ({error.strerror or error}); mend the path.") from error
    except (ValueError, KeyError, EOFError) as error:
        raise UserError(f"'{file}' holds no prompts ({error}); write {{class: [descriptions]}} as JSON.") from error
    if not isinstance(found, dict) or not found or not all(isinstance(v, list) for v in found.values()):
        raise UserError(f"'{file}' holds no prompts; write {{class: [descriptions]}} as JSON, or templates as .txt.")
    return found


def _templates(text: str, file: Path) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = next((line for line in lines if "{}" not in line), None)
    if wrong is not None or not lines:
        raise UserError(f"A template of '{file}' has no {{}} for the name: '{wrong or ''}'; write one a line.")
    return lines


def _lines(text: str, wanted: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in map(json.loads, filter(str.strip, text.splitlines())):
        if not wanted or row.get("dataset") == wanted:
            texts = next(row[k] for k in ("prompts", "descriptions", "descriptors", "texts") if k in row)
            found.setdefault(str(row["class"]), []).extend(map(str, texts))
    return found
