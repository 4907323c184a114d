"""Mixed Barlow Twins: its term against recorded numbers and slow loops, the cases in which it is zero, and its base."""

import pytest
import torch
from torch.nn import functional as F

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.correlation import barlow, cross_correlation, mixed_distance, mixture_distance
from eyespot.methods.image.barlow_twins import BarlowTwins, BarlowTwinsConfig
from eyespot.methods.image.mixed_barlow_twins import MixedBarlowTwins, MixedBarlowTwinsConfig
from eyespot.methods.method import Info, total
from eyespot.nets.backbones import backbone

IMAGENET = {"unit": False, "deviation": "biased", "layers": 2}


def build(name="resnet8", info=None, **settings):
    torch.manual_seed(0)
    sizes = {"hidden": 32, "out": 16}
    return MixedBarlowTwins(backbone(name, image_size=32), MixedBarlowTwinsConfig(**{**sizes, **settings}), info)


def views(n=6):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(n, 3, 32, 32, generator=generator) for name in ("view1", "view2")}


def embeddings(n=7, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, dtype=torch.float64, generator=generator) for _ in range(3)]


# --- recorded numbers -----------------------------------------------------------------------------------------------
@pytest.fixture
def recorded(golden):
    arrays, params = golden("mixed_barlow_twins__loss")
    return {k: torch.from_numpy(v) for k, v in arrays.items()}, params


@pytest.mark.golden
def test_losses_and_gradient_agree_with_recorded_numbers(recorded):
    a, params = recorded
    weight = a["W"].clone().requires_grad_()
    share, order = a["lam_mix"], a["perm"].long()
    mixed_input = share * a["x1"] + (1 - share) * a["x2"][order]
    z1, z2, zm = (F.normalize(torch.tanh(x @ weight), dim=1) for x in (a["x1"], a["x2"], mixed_input))
    for z, name in ((z1, "z_a"), (z2, "z_b"), (zm, "z_m")):
        torch.testing.assert_close(z.detach(), a[name], atol=1e-5, rtol=0)
    loss = total(dict(enumerate(barlow(z1, z2, params["lambda_bt"], 1e-8, unbiased=True))))
    distance = mixed_distance(z1, z2, zm, share, order, 1e-8, unbiased=True)
    mix = params["lambda_reg"] * params["lambda_bt"] * distance
    close = {"rtol": 1e-4, "atol": 0}
    torch.testing.assert_close(loss.detach(), a["loss_bt"], **close)
    torch.testing.assert_close(mix.detach(), a["loss_mix"], **close)
    torch.testing.assert_close((loss + mix).detach(), a["loss_total"], **close)
    (loss + mix).backward()
    torch.testing.assert_close(weight.grad, a["grad_W"], atol=1e-4, rtol=0)
    imagenet = mixed_distance(z1, z2, zm, share, order, 1e-8, unbiased=True, target="imagenet").detach()
    torch.testing.assert_close(0.5 * params["lambda_bt"] * imagenet, a["loss_mix_imagenet_unscaled"], **close)


@pytest.mark.golden
def test_the_weight_grows_as_recorded(recorded):
    a, _ = recorded
    steps = [0, 1, 50, 99, 100, 500]  # of 10 an epoch, as the description of the recorded numbers says
    method = build(mix=2.0, mix_warmup=10.0, info=Info(epochs=100))
    for step, expected in zip(steps, a["reg_scale_schedule"].tolist(), strict=True):
        method.progress = step / 1000
        assert method.mix_weight() == pytest.approx(expected, rel=1e-5)


# --- the distance ---------------------------------------------------------------------------------------------------
def slow_columns(z, eps):
    columns = [[x - sum(c) / len(c) for x in c] for c in z.T.tolist()]
    return [[x / (sum(y * y for y in c) / (len(c) - 1) + eps) ** 0.5 for x in c] for c in columns]


def slow_distance(z1, z2, zm, share, order, eps, imagenet):
    a, b, m = (slow_columns(z, eps) for z in (z1, z2, zm))
    n, d = z1.shape

    def correlation(p, q):
        return sum(x * y for x, y in zip(p, q, strict=True)) / n

    loss = 0.0
    for i in range(d):
        shuffled = [b[i][k] for k in order.tolist()]
        for j in range(d):
            wanted_a = share * correlation(a[i], a[j]) + (1 - share) * correlation(shuffled, a[j])
            first = b[i] if imagenet else a[i]
            wanted_b = share * correlation(first, b[j]) + (1 - share) * correlation(shuffled, b[j])
            loss += (correlation(m[i], a[j]) - wanted_a) ** 2 + (correlation(m[i], b[j]) - wanted_b) ** 2
    return loss


@pytest.mark.parametrize("target", ["paper", "imagenet"])
def test_is_the_slow_loop(target):
    z1, z2, zm = embeddings()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    fast = mixed_distance(z1, z2, zm, torch.tensor(0.3, dtype=torch.float64), order, 0.01, True, target)
    assert fast.item() == pytest.approx(slow_distance(z1, z2, zm, 0.3, order, 0.01, target == "imagenet"), rel=1e-10)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_unmixed_batch_costs_nothing(share):
    z1, z2, _ = embeddings()
    order = torch.randperm(7)
    mixed = z1 if share == 1 else z2[order]
    assert mixed_distance(z1, z2, mixed, torch.tensor(share), order).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
def test_a_linear_encoder_without_standardisation_costs_nothing(share):
    z1, z2, other = embeddings()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    mixed, number = share * z1 + (1 - share) * z2[order], torch.tensor(share, dtype=torch.float64)
    assert mixture_distance(z1, z2, mixed, number, order).item() == pytest.approx(0, abs=1e-20)
    assert mixture_distance(z1, z2, other, number, order).item() > 0.1
    script = mixture_distance(z1, z2, mixed, number, order, "imagenet").item()
    assert script == pytest.approx(0, abs=1e-20) if share == 0 else script > 0.01  # which is why it is no default


def test_the_best_diagonal_is_n_minus_1_over_n():
    z = embeddings()[0]
    diagonal = cross_correlation(z, z, 0.0, unbiased=True).diagonal()
    torch.testing.assert_close(diagonal, torch.full_like(diagonal, 6 / 7))


def test_gradients_pass_through_the_targets():
    z1, z2, zm = (z.requires_grad_() for z in embeddings())
    mixed_distance(z1, z2, zm.detach(), torch.tensor(0.4), torch.randperm(7)).backward()
    assert float(z1.grad.abs().sum()) > 0 and float(z2.grad.abs().sum()) > 0 and zm.grad is None


# --- the method -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
def test_without_mixing_it_is_barlow_twins_to_the_bit(name):
    method = build(name, mix=0.0, redundancy=0.005, **IMAGENET)
    torch.manual_seed(0)
    base = BarlowTwins(backbone(name, image_size=32), BarlowTwinsConfig(hidden=32, out=16))
    base.load_state_dict(method.state_dict())
    terms, expected = method(views()), base(views())
    assert terms.keys() == expected.keys() and all(torch.equal(terms[k], expected[k]) for k in terms)
    total(terms).backward()
    total(expected).backward()
    for (key, p), q in zip(method.named_parameters(), base.parameters(), strict=True):
        assert not p.requires_grad or torch.equal(p.grad, q.grad), key
    for (key, p), q in zip(method.named_buffers(), base.buffers(), strict=True):
        assert torch.equal(p, q), key  # no third pass moved the statistics of batch norm


def test_the_mixed_term_only_adds():
    """The base's terms do not depend on the mixture."""
    plain, mixed = build(mix=0.0)(views()), build()(views())
    assert {*mixed} - {*plain} == {"mixed"}
    assert all(torch.equal(plain[k], mixed[k]) for k in plain)


@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
def test_terms_are_those_of_the_parts(name):
    method, pixels, draws = build(name, scale=0.1, mix=3.0, redundancy=0.02), views(), Draws(step=5, index=range(6))
    share, order = draws.step_uniform("share"), draws.permutation("order", 6)
    assert sorted(order.tolist()) == list(range(6)) and 0 < share < 1
    both = share * pixels["view1"] + (1 - share) * pixels["view2"][order]
    z1, z2, zm = (
        F.normalize(method.projector(method.backbone(v)), dim=1) for v in (pixels["view1"], pixels["view2"], both)
    )
    invariance, redundancy = barlow(z1, z2, 0.02, 1e-8, True)
    distance = mixed_distance(z1, z2, zm, share, order, 1e-8, True)
    expected = {"invariance": 0.1 * invariance, "redundancy": 0.1 * redundancy, "mixed": 0.1 * 3 * 0.02 * distance}
    torch.testing.assert_close(method(pixels, draws), expected)


def test_the_mixture_is_another_one_each_step():
    shares = {float(build().encode(views(), Draws(step=step, index=range(6)))["share"]) for step in range(5)}
    assert len(shares) == 5


def test_the_imagenet_form_has_half_the_weight():
    assert build(target="imagenet", mix=2.0).mix_weight() == 1.0


def test_equal_pictures_give_the_plateau_and_finite_gradients():
    method = build()
    same = torch.full((5, 3, 32, 32), 0.5)
    terms = method({"view1": same, "view2": same})
    total(terms).backward()
    assert terms["invariance"].item() == pytest.approx(method.plateau(5)["invariance"], rel=1e-3) == 16
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())


def test_every_parameter_learns():
    method = build()
    total(method(views())).backward()
    assert [n for n, p in method.named_parameters() if p.grad is None] == []


def test_small_views_come_from_one_distribution():
    first, second = MixedBarlowTwinsConfig(image_size=32).view_pair()
    assert first == second and first.jitter == (0.4, 0.4, 0.4, 0.1)
    first, second = MixedBarlowTwinsConfig(image_size=224, solarize=0.2).view_pair()
    assert (first.blur_p, second.blur_p, first.solarize_p, second.solarize_p) == (1.0, 0.1, 0.0, 0.2)


def test_a_negative_weight_is_named():
    with pytest.raises(UserError, match="mix=-1"):
        build(mix=-1.0)
