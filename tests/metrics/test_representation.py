"""The measures of a representation, against slow obvious versions and known cases."""

import math

import pytest
import torch

from eyespot.metrics.representation import alignment, effective_rank, mean_cosine, spread, uniformity


def features(n=12, d=5, seed=0, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def unit(x):
    return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in x.tolist()]


def test_effective_rank_is_the_exponential_of_the_entropy_of_singular_values():
    x = features()
    eigen = torch.linalg.eigvalsh(x.T @ x).clamp_min(0).sqrt().tolist()
    p = [v / sum(eigen) for v in eigen]
    assert effective_rank(x).item() == pytest.approx(math.exp(-sum(v * math.log(v) for v in p)), rel=1e-9)


def test_effective_rank_of_known_matrices():
    assert effective_rank(torch.eye(7)).item() == pytest.approx(7, rel=1e-5)
    assert effective_rank(torch.ones(20, 8)).item() == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.zeros(4, 3)).item() == 1
    two = torch.zeros(10, 6, dtype=torch.float64)
    two[:5, 0], two[5:, 1] = 3.0, 3.0
    assert effective_rank(two).item() == pytest.approx(2, rel=1e-9)


def test_spread_is_the_scaled_deviation_of_unit_features():
    x = features(shift=0.5)
    u = unit(x)
    deviations = []
    for j in range(5):
        column = [row[j] for row in u]
        mean = sum(column) / len(column)
        deviations.append(math.sqrt(sum((v - mean) ** 2 for v in column) / len(column)))
    assert spread(x).item() == pytest.approx(math.sqrt(5) * sum(deviations) / 5, rel=1e-12)


def test_spread_is_one_for_even_directions_and_zero_when_constant():
    assert spread(features(20000, 16)).item() == pytest.approx(1, abs=0.01)
    assert spread(torch.ones(9, 4, dtype=torch.float64) * 3).item() == pytest.approx(0, abs=1e-12)


def test_mean_cosine_is_over_pairs_of_different_rows():
    x = features(shift=0.7)
    u = unit(x)
    pairs = [sum(a * b for a, b in zip(u[i], u[j], strict=True)) for i in range(12) for j in range(12) if i != j]
    assert mean_cosine(x).item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)
    assert mean_cosine(torch.ones(5, 3)).item() == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="n >= 2"):
        mean_cosine(torch.ones(1, 3))


def test_alignment_of_rows():
    x, y = features(), features(seed=1)
    pairs = zip(unit(x), unit(y), strict=True)
    squares = [sum((a - b) ** 2 for a, b in zip(u, v, strict=True)) for u, v in pairs]
    assert alignment(x, y).item() == pytest.approx(sum(squares) / 12, rel=1e-12)
    assert alignment(x, y, power=1).item() == pytest.approx(sum(map(math.sqrt, squares)) / 12, rel=1e-12)
    assert alignment(x, 3 * x).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("chunk", [1, 5, 1024])
def test_uniformity_leaves_out_each_row_itself(chunk):
    x = features()
    u = unit(x)
    values = [
        math.exp(-2 * sum((a - b) ** 2 for a, b in zip(u[i], u[j], strict=True)))
        for i in range(12)
        for j in range(12)
        if i != j
    ]
    assert uniformity(x, chunk=chunk).item() == pytest.approx(math.log(sum(values) / len(values)), rel=1e-10)
    assert uniformity(torch.ones(4, 3)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("measure", [effective_rank, spread, mean_cosine, uniformity])
def test_length_of_a_feature_and_its_precision(measure):
    x = features()
    scaled = x * 7
    assert measure(x).item() == pytest.approx(measure(scaled).item(), rel=1e-9)
    assert measure(x).dtype == torch.float64
    assert measure(x.half()).dtype == torch.float32
    with pytest.raises(ValueError):
        measure(torch.zeros(3))
