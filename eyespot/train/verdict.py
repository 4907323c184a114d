"""The verdict: does a run learn, and if not, why and what helps.

`LiveProbe` measures the features of a fixed small set of clean training pictures, before training (the floor: what
random weights give) and during it. `judge` is a pure function of these numbers and of the logged losses:

    collapsed   the features, what the loss compares, or the targets are (nearly) the same for all pictures
    unstable    the loss is not finite, or it has jumped and lost most of what it had gained
    stalled     the loss stays at what it reads when nothing is learned, or has not fallen
    learning    none of these
    starting    too few steps to tell; only while the run goes on

What is compared with the floor is compared by ratio: features of a random network are alike already (mean cosines of
0.9 to 0.99 are usual), so no absolute limit fits all networks. Where labels exist, neighbours decide in doubt:
features that find their class clearly better than random ones do are neither collapsed nor stalled; but targets that
say nothing teach nothing, however good the features are already.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eyespot.train.probe import LiveProbe, Numbers, projection_head

__all__ = ["LiveProbe", "Verdict", "judge", "projection_head"]

# --- limits; each with the reason for its value -----------------------------------------------------------------
ALIKE = 0.06
"""Collapsed when 1 - mean cosine is below this share of what random weights give. Networks whose features become
constant pass 0.1 within a hundred steps and go on towards 0. Methods that compare views stay above 0.5; those that
rebuild pictures may go down to 0.01 and learn: there neighbours must be worse as well."""
CONSTANT = 1e-4
"""Collapsed whatever the floor when 1 - mean cosine is smaller: single precision ends at about 1e-7."""
RANK = 1.5
"""Collapsed when the effective rank is below it and random weights gave more than twice that: one direction is left.
A good classifier of two classes has rank 2."""
PROJECTED = 0.02
"""What the loss compares counts as constant when its 1 - mean cosine is below this, and below ALIKE of its floor."""
ONE_WORD = 1.5
"""Targets over a vocabulary have collapsed when a whole batch uses fewer words than this; usual are hundreds."""
SAME_WORDS = 0.99
"""... or when those of one picture alone are more than this share of them: all pictures have the same target."""
MARGIN = 0.01
"""Stalled when no term with a plateau is further below it than this share, and the loss falls no more. A healthy
contrastive loss is 2 % below within tens of steps; random labels stay within 0.3 %."""
FALL = 0.01
"""Stalled when the loss has fallen by less than this share of its highest value ..."""
SIGMAS = 2.5
"""... or by less than this many standard errors of its noise."""
ENOUGH_RECORDS = 20
"""Records before a loss that has not fallen is called stalled while the run goes on."""
LOST = 0.6
"""Unstable when more than this share of what the loss had gained is lost again, by jumps."""
BURST = 3.0
"""Unstable when the loss is above this many times its plateau ..."""
BURST_UNKNOWN = 10.0
"""... or above this many times its first value where it has none."""
JUMP = 8.0
"""A jump is a rise of more than this many deviations of the usual change between two records."""
BETTER = 2.0
"""Standard errors by which neighbours must beat the floor to count as better."""
ENOUGH_STEPS = 50
"""Steps before anything but a loss that is not finite is judged ..."""
ENOUGH_SHARE = 0.1
"""... and the share of the run, its warm-up."""


@dataclass(frozen=True)
class Verdict:
    """One of the states above, the reason in numbers, what helps, and the numbers themselves."""

    state: str
    reason: str
    remedy: str = ""
    numbers: Numbers = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


# --- judging ----------------------------------------------------------------------------------------------------
def judge(
    history: Sequence[Mapping[str, Any]],
    plateaus: Mapping[str, float] | None = None,
    probes: Sequence[Mapping[str, float]] = (),
    floor: Mapping[str, float] | None = None,
    *,
    steps: int | None = None,
    final: bool = False,
) -> dict[str, Any]:
    """The verdict on a run so far.

    Args:
        history: logged records in order, each with "step", "loss", "terms" and perhaps "grad_norm" (metrics.jsonl).
        plateaus: what terms read when nothing is learned (`Method.plateau`).
        probes: what `LiveProbe` gave during training, in order; the last two count.
        floor: what it gave for random weights.
        steps: steps of the whole run.
        final: the run has ended; then the state is never "starting".

    Returns:
        {"state", "reason", "remedy", "numbers"} for verdict.json; the numbers are finite.
    """
    case = Case([dict(r) for r in history], dict(plateaus or {}), [dict(p) for p in probes], dict(floor or {}), final)
    verdict = case.not_finite()
    if verdict is None and not final and case.step < max(ENOUGH_STEPS, ENOUGH_SHARE * (steps or 0)):
        verdict = Verdict("starting", f"{case.step} steps are too few to tell")
    verdict = verdict or case.unstable() or case.collapsed() or case.stalled() or case.learning()
    return dataclasses.replace(verdict, numbers=case.numbers()).to_json()


def usual_change(losses: np.ndarray) -> float:
    """Robust standard deviation of the change from one record to the next."""
    changes = np.diff(losses)
    return 1.4826 * float(np.median(np.abs(changes - np.median(changes)))) if len(changes) > 1 else 0.0


def fifths(losses: np.ndarray) -> list[np.ndarray]:
    """Five parts in order, fewer when there are not five records."""
    return np.array_split(losses, max(1, min(len(losses), 5)))


@dataclass
class Case:
    """The evidence, and one question a method; each answers with a verdict or None."""

    history: list[dict[str, Any]]
    plateaus: dict[str, float]
    probes: list[dict[str, float]]
    floor: dict[str, float]
    final: bool

    def __post_init__(self) -> None:
        self.losses = np.array([float(r["loss"]) for r in self.history if math.isfinite(r["loss"])])
        self.step = int(self.history[-1]["step"]) if self.history else 0
        n = len(self.losses)
        self.window = max(1, round(0.2 * n))
        self.head = min(5, max(1, n // 20))
        self.first = float(np.median(self.losses[: self.head])) if n else math.nan
        self.recent = float(np.median(self.losses[-self.window :])) if n else math.nan
        self.change = usual_change(self.losses)

    # --- what went wrong ------------------------------------------------------------------------------------------
    def not_finite(self) -> Verdict | None:
        last = self.history[-1] if self.history else {}
        bad = [name for name, value in last.get("terms", {}).items() if not math.isfinite(value)]
        bad = bad or [key for key in ("loss", "grad_norm") if not math.isfinite(last.get(key, 0.0))]
        if not bad and not (self.probes and math.isnan(self.probes[-1].get("mean_cosine", 0.0))):
            return None
        what = f"'{bad[0]}' is" if bad else "the features are"
        return Verdict("unstable", f"{what} not finite at step {self.step}", TOO_FAST)

    def collapsed(self) -> Verdict | None:
        return self._targets() or self._features()

    def _targets(self) -> Verdict | None:
        """Whether targets over a vocabulary say nothing, of methods that watch their perplexity."""
        together, alone = (self._watched(f"{of}_perplexity") for of in ("vocabulary", "picture"))
        if together is None:
            return None
        if together < ONE_WORD:
            words = f"the targets of a batch use {together:.2f} words of the vocabulary (perplexity): all are the same"
            return Verdict("collapsed", words, ONE_WORD_FOR_ALL)
        if alone is not None and alone > SAME_WORDS * together:
            words = (
                f"the target of a picture uses {alone:.1f} words of the {together:.1f} that a batch uses (perplexity)"
            )
            return Verdict("collapsed", f"{words}: all are the same", ALL_WORDS_ALIKE)
        return None

    def _watched(self, name: str) -> float | None:
        """Recent value of a number that the method watches, when it does."""
        values = [r[name] for r in self.history[-self.window :] if math.isfinite(r.get(name, math.nan))]
        return float(np.median(values)) if values else None

    def _features(self) -> Verdict | None:
        # a dip may pass: two probes must agree, unless there is only one or the run has ended
        seen = self.probes[-1:] if self.final else self.probes[-2:]
        reasons = [self._constant(p) for p in seen]
        if not reasons or not all(reasons) or self._better():
            return None
        if self.floor and 1 - self.floor.get("mean_cosine", 0.0) < CONSTANT / 10:
            reason = "even random weights give the same features for all pictures of the probe"
            return Verdict("collapsed", reason, "look at the pictures: they seem to be all the same")
        dead = seen[-1]["spread"] == 0 and abs(seen[-1]["mean_cosine"]) < 0.5
        return Verdict("collapsed", str(reasons[-1]), TOO_FAST if dead else COLLAPSED)

    def _constant(self, probe: Mapping[str, float]) -> str | None:
        """Why the features of one probe count as constant."""
        if probe["spread"] == 0 and abs(probe["mean_cosine"]) < 0.5:
            return "the features of all pictures are zero"
        apart, usual = 1 - probe["mean_cosine"], 1 - self.floor.get("mean_cosine", 1.0)
        beside = f" (random weights {1 - usual:.3f})" if self.floor else ""
        # a loss that compares views may gain by it; one that rebuilds pictures or names classes may not, and keeps
        # pooled features close without harm, so that the neighbours must be worse too
        suspect = "projection_cosine" in self.floor or self._worse(probe)
        if apart < CONSTANT or (suspect and apart < ALIKE * usual):
            return f"features of different pictures have a mean cosine of {1 - apart:.4f}{beside}"
        if suspect and probe["effective_rank"] < RANK and self.floor.get("effective_rank", 0.0) > 2 * RANK:
            rank, usual_rank = probe["effective_rank"], self.floor["effective_rank"]
            return f"the effective rank is {rank:.2f} (random weights {usual_rank:.1f})"
        projected = 1 - probe.get("projection_cosine", 0.0)
        if projected < min(PROJECTED, ALIKE * (1 - self.floor.get("projection_cosine", 1.0))):
            return f"what the loss compares has a mean cosine of {1 - projected:.4f} over different pictures"
        return None

    def unstable(self) -> Verdict | None:
        n = len(self.losses)
        if n < 8:
            return None
        smooth = np.array([np.median(self.losses[max(0, i - 2) : i + 3]) for i in range(n)])
        now, best = float(np.median(smooth[-min(self.window, 10) :])), int(smooth.argmin())
        # noise as it was before the trouble began
        change = usual_change(self.losses[: best + 1]) if best >= 5 else self.change
        gained = max(self.first - smooth[best], 4 * change, 1e-3 * abs(self.first))
        burst = now > self._bound()
        # at the very start nothing had been gained: the first losses of a moving target are too low
        lost = best >= max(3, n // 20) and now - smooth[best] > LOST * gained and not self._better()
        if not lost and not burst:
            return None
        jumps = int((np.diff(self.losses)[best:] > max(JUMP * change, 0.25 * gained)).sum())
        if not jumps and not burst and not self._steep():
            return None
        how = f"by {jumps} jump{'s' if jumps > 1 else ''} " if jumps else ""
        return Verdict("unstable", f"the loss has risen {how}from {smooth[best]:.4g} to {now:.4g}", TOO_FAST)

    def _bound(self) -> float:
        """A loss that no run needs to exceed for long: its plateau, or its first value where it has none."""
        terms = self._terms_with_plateau()
        if not terms or set(terms) != self._terms():
            return BURST_UNKNOWN * abs(self.first)
        return BURST * max(sum(self.plateaus[name] for name in terms), abs(self.first))

    def _steep(self) -> bool:
        """Whether gradients have become far larger than they were."""
        norms = np.array([r["grad_norm"] for r in self.history if math.isfinite(r.get("grad_norm", math.nan))])
        if len(norms) < 8:
            return False
        half = len(norms) // 2
        return float(np.median(norms[-self.window :])) > 10 * float(np.median(norms[:half]))

    def stalled(self) -> Verdict | None:
        if self._better():
            return None
        n = len(self.losses)
        if n < 2:
            reason = self._resting() or f"{self.step} steps are too few to learn anything"
        else:
            reason = self._resting() or self._never_fell()
        if reason is None:
            return None
        if not self.final and n < ENOUGH_RECORDS:
            return Verdict("starting", f"too few records to tell: {reason}")
        return Verdict("stalled", reason, STALLED)

    def _resting(self) -> str | None:
        """Whether the terms with a plateau are there, and not on the way down through it."""
        name, terms = self._at_plateau(), self._terms_with_plateau()
        if not name:
            return None
        sums = [sum(r["terms"][t] for t in terms) for r in self.history if set(terms) <= set(r.get("terms", {}))]
        blocks = fifths(np.array(sums))
        if len(blocks) > 1 and self._fell(blocks[-2], blocks[-1]):
            return None
        return f"'{name}' is {terms[name]:.4g} and reads {self.plateaus[name]:.4g} when nothing is learned"

    def _never_fell(self) -> str | None:
        """Whether the loss is as high as ever, and the features have not spread out either."""
        blocks = fifths(self.losses)
        # from the first records, or from the highest: a queue or a teacher that is still empty makes the first too low
        top = int(np.argmax([self._level(block) for block in blocks[:-1]]))
        pairs = [(self.losses[: self.head], self.losses[self.head :]), (blocks[top], np.concatenate(blocks[top + 1 :]))]
        for before, after in pairs:
            level = self._level(before)
            if level - self.recent > FALL * abs(level) and self._fell(before, after):
                return None
        return None if self._opened() else f"the loss was {self.first:.4g} at first and is {self.recent:.4g} now"

    def _level(self, losses: np.ndarray) -> float:
        """Mean without the pull of outliers."""
        middle, width = float(np.median(losses)), max(3 * self.change, 1e-12)
        return float(losses.clip(middle - width, middle + width).mean())

    def _fell(self, before: np.ndarray, after: np.ndarray) -> bool:
        """Whether the level of some records is below that of earlier ones by more than noise and next to nothing."""
        error = self.change / math.sqrt(2) * math.sqrt(1 / len(before) + 1 / len(after))
        fall = self._level(before) - self._level(after)
        return fall > max(FALL * abs(self._level(before)), SIGMAS * error)

    def _at_plateau(self) -> str:
        """A term at its plateau, when every term that has one is there; else ""."""
        terms = self._terms_with_plateau()
        if any(value < (1 - MARGIN) * self.plateaus[name] for name, value in terms.items()):
            return ""
        return max(terms, key=lambda name: terms[name], default="")

    def _terms_with_plateau(self) -> dict[str, float]:
        """Recent value of every term that has a plateau above 0."""
        values: dict[str, float] = {}
        for name, plateau in self.plateaus.items():
            logged = [r["terms"][name] for r in self.history[-self.window :] if name in r.get("terms", {})]
            if plateau > 0 and logged:
                values[name] = float(np.median(logged))
        return values

    def _opened(self) -> bool:
        """Whether features have spread out since the start: losses of a moving target may rise while a network
        learns (BYOL, DINO)."""
        if not self.probes or not self.floor:
            return False
        return 1 - self.probes[-1]["mean_cosine"] > 1.5 * (1 - self.floor["mean_cosine"])

    def _better(self) -> bool:
        """Whether neighbours share the class clearly more often than with random weights."""
        last = self.probes[-1] if self.probes else {}
        if "knn" not in last or "knn" not in self.floor:
            return False
        floor = max(self.floor["knn"], self.floor.get("knn_calibrated", 0.0))
        return last["knn"] - floor > BETTER * max(last.get("knn_error", 0.0), 0.5)

    def _worse(self, probe: Mapping[str, float]) -> bool:
        """Whether neighbours share the class clearly less often than with random weights."""
        if "knn" not in probe or "knn" not in self.floor:
            return False
        floor = min(self.floor["knn"], self.floor.get("knn_calibrated", math.inf))
        return floor - probe["knn"] > BETTER * max(probe.get("knn_error", 0.0), 0.5)

    # --- what went well -------------------------------------------------------------------------------------------
    def learning(self) -> Verdict:
        parts = []
        if len(self.losses):
            plateau = sum(v for v in self.plateaus.values() if v > 0)
            beside = f" (nothing learned: {plateau:.4g})" if plateau and len(self._terms()) == 1 else ""
            parts.append(f"loss {self.first:.4g} to {self.recent:.4g}{beside}")
        last = self.probes[-1] if self.probes else {}
        if "knn" in last:
            parts.append(f"kNN {last['knn']:.1f} %" + self._beside("knn", "{:.1f} %"))
        if last:
            parts.append(f"effective rank {last['effective_rank']:.1f}" + self._beside("effective_rank", "{:.1f}"))
        remedy = ""
        if self.final and "knn" in last and "knn" in self.floor and last["knn"] < self.floor["knn"]:
            remedy = WORSE if self._worse(last) else NOT_BETTER
        return Verdict("learning", ", ".join(parts) or "nothing was measured", remedy)

    def _beside(self, name: str, form: str) -> str:
        return f" (random {form.format(self.floor[name])})" if name in self.floor else ""

    def _terms(self) -> set[str]:
        return set(self.history[-1].get("terms", {})) if self.history else set()

    def numbers(self) -> Numbers:
        """Everything the verdict rests on, for verdict.json; values that are not finite are left out."""
        values: Numbers = {"step": float(self.step), "loss_first": self.first, "loss": self.recent}
        values |= {f"plateau_{name}": value for name, value in self.plateaus.items()}
        values |= {k: v for k, v in (self.probes[-1] if self.probes else {}).items() if k != "step"}
        values |= {f"{k}_floor": v for k, v in self.floor.items() if k != "step"}
        waits = [r["data_wait"] for r in self.history[-self.window :] if "data_wait" in r]
        if waits:
            values["data_wait"] = float(np.median(waits))
        watched = {name: self._watched(name) for name in ("vocabulary_perplexity", "picture_perplexity")}
        values |= {name: value for name, value in watched.items() if value is not None}
        if self.history and "grad_norm" in self.history[-1]:
            values["grad_norm"] = self.history[-1]["grad_norm"]
        return {k: float(v) for k, v in values.items() if math.isfinite(v)}


TOO_FAST = "lower the rate (--lr), clip the gradient (--clip 1) or warm up longer"
COLLAPSED = (
    "lower the rate (--lr) or raise the batch size, and keep the method's defences (teacher momentum, predictor, "
    "centring, temperature) at their defaults"
)
ONE_WORD_FOR_ALL = (
    "soften the assignment (a smaller inv_delta), lower the rate (--lr), and keep the copy's momentum at its default, "
    "so that the vocabulary holds features of many pictures"
)
ALL_WORDS_ALIKE = (
    "sharpen the assignment (a larger inv_delta), train longer (a vocabulary that is new at first needs words / batch "
    "size steps), and check that pictures differ"
)
NOT_BETTER = "neighbours are not better than with random weights yet: train longer, or on more pictures"
WORSE = (
    "neighbours are clearly worse than with random weights: measure a linear probe too (eyespot evaluate); if it is no "
    "better, lower the rate (--lr), train longer, and check that views keep what tells classes apart"
)
STALLED = (
    "train longer, try the recipe's rate (no --lr) or one 3 times higher or lower, and check that pictures vary and "
    "views can be matched"
)
