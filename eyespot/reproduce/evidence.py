"""What the recorded claims say of each method, for `eyespot methods`: kept in eyespot/methods/evidence.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eyespot.methods import catalog
from eyespot.reproduce.claim import claim_names
from eyespot.runs import read_json, write_json

EVIDENCE = Path(catalog.__file__).with_name("evidence.json")


def update_evidence(folder: Path, path: Path = EVIDENCE) -> dict[str, Any]:
    """Enter the outcomes of all recorded claims of a folder: "claim" for their subjects, "floor_beaten" for every
    method whose features were compared with random ones (in any of the claims), for a plug-in in its own claim."""
    evidence: dict[str, dict[str, Any]] = read_json(path) if path.exists() else {}
    beaten: dict[str, bool] = {}
    for name in claim_names(folder):
        record = folder / f"{name}.json"
        if not record.exists():
            continue
        found = read_json(record)
        arms = found["claim"]["arms"]
        for arm, value in found["floor_beaten"].items():
            method = arms[arm].get("pretrain")
            if method and not arms[arm].get("with"):
                beaten[method] = beaten.get(method, False) or value
        subject = found["claim"].get("subject")
        if subject and "comparison" in found:
            evidence.setdefault(subject, {})["claim"] = found["comparison"]["outcome"]
            arm = found["claim"]["arm"]
            if subject in arms[arm].get("with", ()) and arm in found["floor_beaten"]:
                evidence[subject]["floor_beaten"] = found["floor_beaten"][arm]
    for method, value in beaten.items():
        evidence.setdefault(method, {})["floor_beaten"] = value
    write_json(path, dict(sorted(evidence.items())))
    return evidence
