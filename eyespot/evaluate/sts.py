"""Similarity of sentences, version 1: how well the cosine of two sentences follows what people say; nothing is trained.

    spearman    correlation of the ranks of cosine and human score, times 100
    pearson     correlation of cosine and score, times 100

The data is a table of pairs: .jsonl, .csv, .tsv (also .gz) or .parquet with sentence1, sentence2 and score, and perhaps
`split` and `lang`. Words after colons choose rows by these two: `stsb.jsonl.gz:en:test`. With rows of several languages
both numbers are means over the languages, and each language has its own (`spearman_de`).

Captioned pictures with classes are such a table too: captions of pictures of one class score 1, of two classes 0; as
many of one kind as of the other, drawn by the seed, and never two captions that are equal.

The floor is the same text network before training: characters and words that two sentences share say much already.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.data.batches import BatchData
from eyespot.data.pairs import open_pairs
from eyespot.draws import Draws
from eyespot.errors import UserError, nearest
from eyespot.evaluate import whole
from eyespot.evaluate.measured import Measured
from eyespot.metrics.image_text import pearson, spearman
from eyespot.options import EvaluateOptions

NAME = "sts"
VERSION = 1
COLUMNS = ("sentence1", "sentence2", "score")
MARKS = ("lang", "language", "split")
"""Columns by which rows are chosen; the first two name the language."""


def run(first: Tensor, second: Tensor, scores: Tensor, languages: Sequence[str] = ()) -> dict[str, float]:
    """The metrics.

    Args:
        first, second: features [n, E] of the two sentences of each pair.
        scores: [n], what people say.
        languages: of each pair; empty for one.
    """
    cosine = (F.normalize(first.double(), dim=1) * F.normalize(second.double(), dim=1)).sum(1)
    kinds = sorted(set(languages))
    parts = {k: torch.tensor([w == k for w in languages]) for k in kinds} if len(kinds) > 1 else {}
    found = {}
    for name, metric in (("spearman", spearman), ("pearson", pearson)):
        own = {f"{name}_{k}": 100 * metric(cosine[rows], scores[rows]) for k, rows in parts.items()}
        found |= {name: float(np.mean(list(own.values()))) if own else 100 * metric(cosine, scores), **own}
    return found


def measure(o: EvaluateOptions, floor_seeds: int, device: torch.device) -> Measured:
    """The protocol on a run and on its random twins.

    Raises:
        UserError: the run's method knows no text, or the data is no table of pairs.
    """
    found = whole.open_whole(o, floor_seeds, NAME)
    given = o.data if o.test_data is None else o.test_data
    split = o.split if o.test_data is None else None
    rows = caption_pairs(given, split, o.seed) or read_pairs(given, split)
    started = time.perf_counter()
    scores = torch.tensor([float(row["score"]) for row in rows], dtype=torch.float64)
    languages = [str(row.get("lang") or row.get("language") or "") for row in rows]

    def outcome(method: Any) -> Any:
        first, second = (whole.text_features(method, [str(row[c]) for row in rows]) for c in COLUMNS[:2])
        return run(first, second, scores, languages), {}

    digest = hashlib.blake2b("\n".join(f"{r['sentence1']}\t{r['sentence2']}" for r in rows).encode(), digest_size=6)
    return whole.measured(
        *(found, NAME, VERSION, whole.on_each(found.methods, device, outcome), o),
        config={"data": str(given), "test_data": str(given), "data_id": digest.hexdigest()},
        n_test=len(rows),
        classes=0,
        seconds=time.perf_counter() - started,
        bad=0,
    )


# --- captions -----------------------------------------------------------------------------------------------------
def caption_pairs(data: Any, split: str | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of captions of labelled pictures, for every picture one with its own class and one with another; none when
    the data is something else."""
    if isinstance(data, str | Path) and "score" in _columns(data):
        return []
    try:
        source = data.source if isinstance(data, BatchData) else open_pairs(data, split=split)
    except UserError:
        return []
    if source.labels is None:
        raise UserError(f"'{source.name}' has captions but no classes; give a table of pairs with scores.")
    labels, rows = source.labels, []
    draws = Draws(seed, index=np.arange(len(source)), prefix=f"{NAME}/")
    chance = draws.uniform64("pair", 4)
    for i, u in enumerate(chance.tolist()):
        for score, others in ((1, labels == labels[i]), (0, labels != labels[i])):
            found = np.flatnonzero(others & (labels >= 0))
            j = int(found[int(u[score] * len(found))]) if len(found) else i
            mine, theirs = source.texts[i], source.texts[j]
            differ = [(a, b) for a in mine for b in theirs if a != b] if i != j and labels[i] >= 0 else []
            if differ:
                a, b = differ[int(u[2 + score] * len(differ))]
                rows.append({"sentence1": a, "sentence2": b, "score": score})
    return rows


def _columns(data: Any) -> list[str]:
    """The columns of a Parquet file."""
    path = Path(str(data)).expanduser()
    return pq.read_schema(path).names if path.suffix in (".parquet", ".pq") and path.is_file() else []


# --- the table ----------------------------------------------------------------------------------------------------
def read_pairs(data: Any, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of a table of pairs.

    Args:
        data: its path, with words after colons that choose rows.
        split: another such word.

    Raises:
        UserError: there is no such table, it lacks a column, or no row is left.
    """
    path, words = Path(str(data)).expanduser(), [split] if split and split != "all" else []
    while not path.exists() and ":" in str(path):
        front, _, word = str(path).rpartition(":")
        path, words = Path(front), [word, *words]
    if not path.exists():
        raise UserError(f"There is no path {data}; give a table of pairs of sentences with scores.")
    if not path.is_file():
        raise UserError(f"sts needs a table of pairs of sentences with scores, and '{data}' is none.")
    rows = _rows(path)
    missing = [c for c in COLUMNS if rows and c not in rows[0]]
    if missing or not rows:
        have = ", ".join(map(str, rows[0])) if rows else "nothing"
        raise UserError(f"'{path}' has no column {' and '.join(missing) or 'at all'} (it has {have}); name them so.")
    for word in words:
        kept = [row for row in rows if word in (str(row.get(mark)) for mark in MARKS)]
        if not kept:
            known = sorted({str(row[mark]) for row in rows for mark in MARKS if row.get(mark)})
            raise UserError(f"No pair of '{path}' is of '{word}'; {nearest(word, known) if known else 'leave it out.'}")
        rows = kept
    return rows


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix in (".parquet", ".pq"):
            return pq.read_table(path).to_pylist()
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines, kind = (
            raw.decode("utf-8-sig").splitlines(),
            Path(path.stem).suffix if path.suffix == ".gz" else path.suffix,
        )
        if kind in (".csv", ".tsv"):
            return list(csv.DictReader(lines, delimiter="\t" if kind == ".tsv" else ","))
        return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError, EOFError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"'{path}' is no table of pairs ({str(error).splitlines()[0]}).") from error
