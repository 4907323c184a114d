"""The verdict on synthetic histories."""

import json
import math

import numpy as np
import pytest

from eyespot.train.verdict import judge

FLOOR = {"effective_rank": 20.0, "spread": 0.25, "mean_cosine": 0.92}
HEALTHY = {"effective_rank": 40.0, "spread": 0.5, "mean_cosine": 0.7}


def history(losses, name="loss_term", every=10, **more):
    return [
        {"step": (i + 1) * every, "loss": float(v), "terms": {name: float(v)}, **more} for i, v in enumerate(losses)
    ]


def falling(n=100, first=6.0, last=4.5, noise=0.05, seed=0, tau=0.3):
    t = np.linspace(0, 1, n)
    shape = (1 - np.exp(-t / tau)) / (1 - np.exp(-1 / tau))
    return first + (last - first) * shape + noise * np.random.default_rng(seed).normal(size=n)


def noisy(level, n=100, noise=0.05, seed=0):
    return level + noise * np.random.default_rng(seed).normal(size=n)


def state(losses, plateau=None, probes=(), floor=None, **given):
    return judge(history(losses), plateau, probes, floor, **given)["state"]


# --- shape of the answer ------------------------------------------------------------------------------------------
def test_verdict_is_what_the_file_holds():
    probe = HEALTHY | {"step": 1000, "knn": 45.0, "knn_error": 2.0}
    given = history(falling(), grad_norm=1.0)
    verdict = judge(given, {"loss_term": 6.2}, [probe], FLOOR | {"knn": 30.0}, final=True)
    assert list(verdict) == ["state", "reason", "remedy", "numbers"]
    assert verdict["state"] == "learning" and verdict["remedy"] == ""
    assert "kNN 45.0 % (random 30.0 %)" in verdict["reason"] and "6.2" in verdict["reason"]
    numbers = verdict["numbers"]
    assert numbers["effective_rank_floor"] == 20 and numbers["plateau_loss_term"] == 6.2 and numbers["step"] == 1000
    json.dumps(verdict, allow_nan=False)


def test_nothing_was_logged():
    assert judge([], {})["state"] == "starting"
    assert judge([], {}, final=True)["state"] == "stalled"


@pytest.mark.parametrize("final", [False, True])
def test_input_is_not_changed(final):
    given = history(falling(20))
    before = json.dumps(given)
    judge(given, {"loss_term": 6.2}, [HEALTHY], FLOOR, final=final)
    assert json.dumps(given) == before


# --- no false alarm -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("first", "last", "noise", "plateau"),
    [
        (6.2, 4.5, 0.05, 6.24),
        (11.0, 8.0, 0.3, 11.09),
        (2.3, 0.3, 0.1, 2.303),
        (1.0, 0.6, 0.02, None),
        (4.0, 1.0, 0.1, None),
        (0.05, 0.03, 0.002, None),
        (-0.1, -0.9, 0.03, None),
        (5000.0, 800.0, 60.0, None),
    ],
)
def test_no_alarm_at_any_time_while_a_loss_falls(seed, first, last, noise, plateau):
    losses = falling(80, first, last, noise, seed)
    plateaus = {} if plateau is None else {"loss_term": plateau}
    for stop in range(1, 81):
        verdict = judge(history(losses[:stop]), plateaus, [HEALTHY], FLOOR, steps=800)
        assert verdict["state"] in ("starting", "learning"), (stop, verdict)
    assert state(losses, plateaus, [HEALTHY], FLOOR, final=True) == "learning"


def test_first_steps_are_not_judged():
    flat = noisy(6.24, 4)
    assert state(flat, {"loss_term": 6.24}) == "starting"
    assert state(noisy(6.24, 50), {"loss_term": 6.24}, steps=100_000) == "starting"
    assert state(flat, {"loss_term": 6.24}, final=True) == "stalled"


def test_a_run_of_few_steps_is_judged_at_its_end():
    assert state([6.2, 6.0, 5.7], {"loss_term": 6.24}, final=True) == "learning"
    assert state([3.0, 2.5], final=True) == "learning"
    assert state([3.0], final=True) == "stalled"


def test_a_loss_with_a_moving_target_may_rise():
    """BYOL's falls at once and rises slowly while the features spread out."""
    t = np.linspace(0, 1, 100)
    losses = 3.6 * np.exp(-t * 40) + 0.3 + 0.5 * t + 0.03 * np.random.default_rng(0).normal(size=100)
    for stop in range(10, 101):
        assert state(losses[:stop], {"loss_term": 4.0}, [HEALTHY], FLOOR) == "learning", stop
    rising = 0.1 + 0.4 * t + 0.02 * np.random.default_rng(0).normal(size=100)
    assert state(rising, None, [HEALTHY], FLOOR) == "learning"


def test_neighbours_that_end_worse_than_random_get_a_remedy():
    """They are no verdict: on small sets a linear probe may find the classes better, and neighbours worse."""
    floor = {"mean_cosine": 0.9, "spread": 0.4, "effective_rank": 40.0, "knn": 30.0, "projection_cosine": 0.8}
    probe = {"mean_cosine": 0.8, "spread": 0.5, "effective_rank": 20.0, "knn": 22.0, "knn_error": 2.0}
    records = history(falling())
    assert judge(records, {}, [probe], floor, steps=1000)["remedy"] == "", "it may still come"
    ended = judge(records, {}, [probe], floor, steps=1000, final=True)
    assert ended["state"] == "learning" and "clearly worse" in ended["remedy"] and "22.0 %" in ended["reason"]
    near = judge(records, {}, [probe | {"knn": 27.0}], floor, steps=1000, final=True)
    assert near["state"] == "learning" and "not better" in near["remedy"], "within the error of the measure"


def test_converged_is_not_stalled():
    losses = np.concatenate([falling(50), noisy(4.5, 450)])
    assert state(losses, {"loss_term": 6.24}) == "learning"
    assert state(losses) == "learning"


def test_reconstruction_may_keep_features_close():
    close = {"effective_rank": 2.0, "spread": 0.05, "mean_cosine": 0.998}
    assert state(falling(), None, [close, close], FLOOR) == "learning"
    found = close | {"knn": 28.0, "knn_error": 2.0}
    assert state(falling(), None, [found, found], FLOOR | {"knn": 30.0}) == "learning"
    lost = close | {"knn": 20.0, "knn_error": 2.0}
    assert state(falling(), None, [lost, lost], FLOOR | {"knn": 30.0}) == "collapsed"


def test_a_dip_of_one_probe_is_no_collapse():
    dip, floor = {"effective_rank": 8.0, "spread": 0.05, "mean_cosine": 0.998}, FLOOR | {"projection_cosine": 0.9}
    assert state(falling(), None, [HEALTHY, dip], floor) == "learning"
    assert state(falling(), None, [dip, HEALTHY], floor, final=True) == "learning"


def test_random_weights_that_are_alike_are_no_collapse():
    """Untrained transformers have mean cosines of .99; the network learns from there."""
    floor = {"effective_rank": 6.0, "spread": 0.08, "mean_cosine": 0.993}
    probe = {"effective_rank": 9.0, "spread": 0.1, "mean_cosine": 0.99}
    assert state(falling(), None, [probe, probe], floor | {"projection_cosine": 0.95}) == "learning"


def test_two_classes_learned_well_are_no_collapse():
    probe = {"effective_rank": 1.9, "spread": 0.6, "mean_cosine": 0.5, "knn": 97.0, "knn_error": 2.0}
    assert state(falling(100, 0.69, 0.05, 0.01), {"loss_term": 0.693}, [probe] * 2, FLOOR | {"knn": 96.0}) == "learning"


def test_a_loss_that_begins_above_its_plateau_is_learning_while_it_falls():
    """A reconstruction starts far above what a constant prediction reads."""
    losses = falling(60, 2.0, 0.975, 0.02)
    for stop in range(10, 50):
        assert state(losses[:stop], {"loss_term": 0.98}, [HEALTHY], FLOOR) in ("starting", "learning"), stop
    assert state(np.concatenate([losses, noisy(0.975, 100, 0.01)]), {"loss_term": 0.98}) == "stalled"


def test_a_loss_that_begins_too_low():
    """The random queue of MoCo is easy to tell apart at first."""
    filling = np.concatenate([np.linspace(1, 6, 10), falling(90, 6, 4)])
    for stop in range(25, 100):
        assert state(filling[:stop], {"loss_term": 8.3}, [HEALTHY], FLOOR) in ("starting", "learning"), stop
    assert state(np.concatenate([np.linspace(1, 6, 10), noisy(6, 90)]), {"loss_term": 8.3}) == "stalled"


def test_a_random_network_below_the_plateau_has_still_not_learned():
    assert state(noisy(4.6, 60), {"loss_term": 4.84}, [FLOOR], FLOOR) == "stalled"


def test_dead_units():
    zero = {"effective_rank": 1.0, "spread": 0.0, "mean_cosine": 0.0}
    verdict = judge(history(falling()), None, [zero, zero], FLOOR)
    assert verdict["state"] == "collapsed" and "zero" in verdict["reason"] and "rate" in verdict["remedy"]


def test_a_short_noisy_log_that_falls():
    losses = [3.98, 3.99, 3.77, 3.53, 3.55, 3.18, 3.49, 3.19, 3.27, 3.31, 2.99, 3.25, 3.47, 3.26, 3.56, 3.48]
    assert state(losses, {"loss_term": 4.26}, final=True) == "learning"


def test_a_better_floor_of_calibrated_norms_counts():
    probe = HEALTHY | {"knn": 70.0, "knn_error": 3.0}
    floor = FLOOR | {"knn": 60.0, "knn_calibrated": 80.0}
    assert state(noisy(6.24), {"loss_term": 6.24}, [probe], floor) == "stalled"


def test_single_spikes_that_pass_are_no_alarm():
    losses = falling(200)
    losses[[60, 120, 121]] += 4
    assert state(losses, {"loss_term": 6.24}) == "learning"


# --- alarms -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("level", "noise"), [(6.24, 0.03), (11.09, 0.05), (2.303, 0.02)])
def test_a_loss_at_its_plateau_is_stalled(seed, level, noise):
    verdict = judge(history(noisy(level, 60, noise, seed)), {"loss_term": level}, [HEALTHY], FLOOR)
    assert verdict["state"] == "stalled" and "when nothing is learned" in verdict["reason"] and verdict["remedy"]


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_does_not_fall_is_stalled(seed):
    assert state(noisy(0.8, 100, 0.03, seed), None, [FLOOR], FLOOR) == "stalled"
    assert state(noisy(0.8, 100, 0.03, seed)) == "stalled"


def test_terms_are_judged_one_by_one():
    """A sum falls when its small term does; what counts are the terms that have a plateau."""
    records = history(falling(100, 7, 6.2, 0.01))
    for r in records:
        r["terms"] = {"contrast": 6.2, "extra": r["loss"] - 6.2}
    assert judge(records, {"contrast": 6.24})["state"] == "stalled"
    assert judge(records, {"contrast": 8.0})["state"] == "learning"
    assert judge(records, {"contrast": 6.24, "extra": 0.0})["state"] == "stalled"


def test_neighbours_that_beat_the_floor_outweigh_a_plateau():
    probe = HEALTHY | {"knn": 40.0, "knn_error": 2.0}
    flat = noisy(6.24)
    assert state(flat, {"loss_term": 6.24}, [probe], FLOOR | {"knn": 30.0}) == "learning"
    assert state(flat, {"loss_term": 6.24}, [probe], FLOOR | {"knn": 38.0}) == "stalled"


@pytest.mark.parametrize(
    "probe",
    [
        {"effective_rank": 4.0, "spread": 0.06, "mean_cosine": 0.996},
        {"effective_rank": 1.2, "spread": 0.3, "mean_cosine": 0.9},
        {"effective_rank": 1.0, "spread": 0.0, "mean_cosine": 1.0},
        HEALTHY | {"projection_cosine": 0.999},
    ],
)
def test_constant_features_are_collapsed(probe):
    floor = FLOOR | {"projection_cosine": 0.9}
    verdict = judge(history(falling()), None, [probe, probe], floor)
    assert verdict["state"] == "collapsed" and verdict["remedy"]
    assert judge(history(falling()), None, [HEALTHY, probe], floor, final=True)["state"] == "collapsed"


def test_collapse_comes_before_a_stall():
    probe = {"effective_rank": 1.0, "spread": 0.0, "mean_cosine": 1.0}
    assert state(noisy(6.24), {"loss_term": 6.24}, [probe, probe], FLOOR) == "collapsed"


def test_pictures_that_are_all_the_same():
    same = {"effective_rank": 1.0, "spread": 0.0, "mean_cosine": 1.0}
    verdict = judge(history(noisy(6.24)), {"loss_term": 6.24}, [same, same], same)
    assert verdict["state"] == "collapsed" and "pictures" in verdict["remedy"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_unstable_at_once(value):
    records = history([6.0, 5.9, 5.8])
    records.append({"step": 31, "loss": value, "terms": {"a": 1.0, "b": value}})
    verdict = judge(records, {})
    assert verdict["state"] == "unstable" and "'b' is not finite at step 31" in verdict["reason"]
    assert all(math.isfinite(v) for v in verdict["numbers"].values())
    lost = HEALTHY | {"mean_cosine": math.nan}
    assert judge(history(falling()), None, [lost], FLOOR)["state"] == "unstable"


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_jumps_and_stays_up_is_unstable(seed):
    losses = np.concatenate([falling(60, seed=seed), noisy(6.1, 30, 0.05, seed)])
    verdict = judge(history(losses), {"loss_term": 6.5}, [HEALTHY], FLOOR)
    assert verdict["state"] == "unstable" and "risen by 1 jump from 4." in verdict["reason"]


def test_a_loss_that_explodes_from_the_start_is_unstable():
    losses = np.exp(np.linspace(0, 8, 40))
    assert state(losses) == "unstable"
    assert state(losses, {"loss_term": 2.3}) == "unstable"


def test_a_loss_that_swings_wildly_is_unstable():
    rng = np.random.default_rng(0)
    wild = np.concatenate([falling(40, 3, 1, 0.03), 1 + rng.exponential(4, 60)])
    assert state(wild) == "unstable"


def test_exploding_gradients_with_a_rising_loss_are_unstable():
    t = np.linspace(0, 1, 60)
    losses = np.concatenate([falling(60), 4.5 + 1.5 * t])
    records = history(losses)
    for i, r in enumerate(records):
        r["grad_norm"] = 1.0 if i < 60 else 1.0 + 100 * t[i - 60]
    assert judge(records, {})["state"] == "unstable"


# --- targets over a vocabulary ------------------------------------------------------------------------------------
def bags(together, alone, n=60):
    """A run whose loss falls, with the perplexity of the targets of a batch and of one picture alone."""
    records = history(falling(n))
    shares = zip(records, np.linspace(300, together, n), np.linspace(290, alone, n), strict=True)
    return [{**r, "vocabulary_perplexity": float(b), "picture_perplexity": float(p)} for r, b, p in shares]


def test_targets_of_many_words_are_healthy():
    verdict = judge(bags(210.0, 40.0), {}, [HEALTHY], FLOOR, final=True)
    assert verdict["state"] == "learning"
    assert 200 < verdict["numbers"]["vocabulary_perplexity"] < 230
    assert "picture_perplexity" in verdict["numbers"]


@pytest.mark.parametrize("final", [False, True])
def test_targets_of_one_word_have_collapsed(final):
    """Whatever the loss and the neighbours say: nothing more can be learned."""
    better = HEALTHY | {"knn": 60.0, "knn_error": 2.0}
    records = [{**r, "vocabulary_perplexity": 1.03, "picture_perplexity": 1.01} for r in bags(1.0, 1.0)[-20:]]
    verdict = judge(bags(1.0, 1.0) + records, {}, [better], FLOOR | {"knn": 30.0}, final=final)
    assert verdict["state"] == "collapsed"
    assert "use 1.03 words" in verdict["reason"] and "inv_delta" in verdict["remedy"]


def test_targets_that_are_the_same_for_all_pictures_have_collapsed():
    records = bags(511.0, 510.0) + [
        {**r, "vocabulary_perplexity": 511.0, "picture_perplexity": 510.0} for r in bags(1, 1)
    ]
    verdict = judge(records, {}, [HEALTHY], FLOOR, final=True)
    assert verdict["state"] == "collapsed" and "510.0 words of the 511.0" in verdict["reason"]
    assert "larger inv_delta" in verdict["remedy"]


def test_a_dip_to_one_word_at_the_start_is_no_collapse():
    records = bags(210.0, 40.0)
    for r in records[:20]:
        r["vocabulary_perplexity"] = 1.0
    assert judge(records, {}, [HEALTHY], FLOOR, final=True)["state"] == "learning"
