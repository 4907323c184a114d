"""Hallucinator: its recorded numbers, its rows from their parts, its limits, its crops, its hosts."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.contrastive import cosines, moco, nt_xent
from eyespot.losses.predictive import negative_cosine
from eyespot.methods.compose import Composed
from eyespot.methods.image.byol import BYOL, BYOLConfig
from eyespot.methods.image.dino import DINO
from eyespot.methods.image.g_simclr import GSimCLR, GSimCLRConfig
from eyespot.methods.image.hallucinator import Hallucinator, HallucinatorConfig
from eyespot.methods.image.mochi import Mochi, MochiConfig
from eyespot.methods.image.moco_v2 import MoCoV2, MoCoV2Config
from eyespot.methods.image.simclr import SimCLR, SimCLRConfig
from eyespot.methods.image.simsiam import SimSiam, SimSiamConfig
from eyespot.methods.method import total
from eyespot.nets.backbones import backbone
from eyespot.nets.queue import Queue
from eyespot.train.optimizers import build_optimizer
from eyespot.views.crop import centred_boxes, random_boxes
from eyespot.views.image import ViewSpec, view

B, OUT, K = 6, 8, 24
HOSTS = {
    "moco_v2": (MoCoV2, MoCoV2Config(16, hidden=16, out=OUT, queue=K)),
    "simclr": (SimCLR, SimCLRConfig(16, hidden=16, out=OUT)),
    "simsiam": (SimSiam, SimSiamConfig(16, hidden=16, out=OUT, bottleneck=8)),
    "byol": (BYOL, BYOLConfig(16, hidden=16, out=OUT)),
    "g_simclr": (GSimCLR, GSimCLRConfig(16, hidden=(16,), out=OUT)),
}


def host(name):
    torch.manual_seed(0)
    cls, config = HOSTS[name]
    method = cls(backbone("resnet8", image_size=16, width=8), config)
    method.progress = 0.5
    return method


def composed(name, **settings):
    method = host(name)
    return Composed(method, [Hallucinator(method, HallucinatorConfig(**settings))])


def pixels(n=B):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(n, 3, 16, 16, generator=generator) for name in ("view1", "view2")}


class Ratios(Draws):
    """Draws whose numbers of a step are given."""

    def scope(self, name):
        return self

    def step_uniform(self, name, columns=None):
        return torch.tensor(self.ratios[:columns])


def ratios(n, *values):
    draws = Ratios(index=range(n))
    draws.ratios = values
    return draws


def recorded(x, params, ratio=1.0):
    """A plug-in with the recorded weights, whose share is ratio times the number drawn."""
    torch.manual_seed(0)
    method = SimCLR(backbone("resnet8", image_size=16), SimCLRConfig(16, hidden=16, out=params["C"]))
    plugin = Hallucinator(method, HallucinatorConfig(ratio=ratio, hidden=params["hidden"]))
    layers = [m for m in plugin.generator if isinstance(m, nn.Linear)]
    for i, layer in enumerate(layers, start=1):
        layer.weight.data, layer.bias.data = x[f"w{i}"], x[f"b{i}"]
    return plugin


# --- recorded numbers -------------------------------------------------------------------------------------------------
@pytest.fixture
def numbers(golden):
    arrays, params = golden("hallucinator__generator_losses")
    return arrays, params


def tensors(arrays, *names):
    return [torch.from_numpy(arrays[n]) for n in names]


@pytest.mark.golden
def test_the_rows_and_the_loss_against_a_queue(numbers):
    arrays, params = numbers
    q, k_raw, queue = tensors(arrays, "q", "k_raw", "queue")
    plugin = recorded({n: torch.from_numpy(arrays[n]) for n in ("w1", "b1", "w2", "b2", "w3", "b3")}, params)
    k = F.normalize(k_raw, dim=1)
    out = plugin.between({"query": q, "key": k}, ratios(len(q), params["ratio"]), host("simclr"))
    assert torch.equal(out["query"][: len(q)], q)
    augmented = F.normalize(out["query"], dim=1)
    torch.testing.assert_close(out["query"], torch.from_numpy(arrays["augmented_q"]), atol=1e-5, rtol=0)
    t = params["temperature_moco"]
    logits = torch.cat([cosines(augmented, out["key"]).diagonal()[:, None], augmented @ queue], dim=1) / t
    torch.testing.assert_close(logits, torch.from_numpy(arrays["moco_logits"]), atol=1e-4, rtol=0)
    loss = moco(out["query"], out["key"], queue, t)
    torch.testing.assert_close(loss, torch.from_numpy(arrays["moco_loss"]), atol=1e-4, rtol=0)
    memory = Queue(params["C"], params["K"])
    memory.columns = queue
    memory.push(out["key"])
    torch.testing.assert_close(memory.columns, torch.from_numpy(arrays["queue_after"]), atol=1e-5, rtol=0)


@pytest.mark.golden
def test_the_loss_against_the_batch(numbers):
    arrays, params = numbers
    q, k_raw = tensors(arrays, "q", "k_raw")
    plugin = recorded({n: torch.from_numpy(arrays[n]) for n in ("w1", "b1", "w2", "b2", "w3", "b3")}, params)
    out = plugin.between({"query": q, "key": k_raw}, ratios(len(q), params["ratio"]), host("simclr"))
    t = params["temperature_ntxent"]
    without, loss = nt_xent(q, k_raw, t), nt_xent(out["query"], out["key"], t)
    torch.testing.assert_close(loss, torch.from_numpy(arrays["ntxent_loss"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(without, torch.from_numpy(arrays["ntxent_loss_without"]), atol=1e-4, rtol=0)


@pytest.mark.golden
def test_both_directions_and_their_loss(numbers):
    arrays, params = numbers
    p1, p2, z1, z2 = tensors(arrays, "p1", "p2", "z1", "z2")
    plugin = recorded({n: torch.from_numpy(arrays[n]) for n in ("w1", "b1", "w2", "b2", "w3", "b3")}, params)
    encoded = {"query": torch.cat([p1, p2]), "key": torch.cat([z2, z1])}
    draws = ratios(len(p1), params["ratio"], params["ratio_second"])
    out = plugin.between(encoded, draws, host("simsiam"))
    first, second, made1, made2 = out["query"].split(len(p1))
    torch.testing.assert_close(torch.cat([first, made1]), torch.from_numpy(arrays["h1"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([second, made2]), torch.from_numpy(arrays["h2"]), atol=1e-5, rtol=0)
    loss = negative_cosine(out["query"], out["key"])
    torch.testing.assert_close(loss, torch.from_numpy(arrays["simsiam_loss"]), atol=1e-4, rtol=0)


# --- its rows ---------------------------------------------------------------------------------------------------------
def slow_rows(plugin, query, away, shares):
    """Row by row through the three layers."""
    w = [m for m in plugin.generator if isinstance(m, nn.Linear)]
    rows = []
    for q, k, r in zip(query, away, shares, strict=True):
        x = torch.cat([q, (1 + r) * q - r * k])
        x = torch.relu(w[0].weight @ x + w[0].bias)
        x = torch.relu(w[1].weight @ x + w[1].bias)
        rows.append(w[2].weight @ x + w[2].bias)
    return torch.stack(rows)


@pytest.mark.parametrize("name", HOSTS)
def test_rows_equal_a_slow_version(name):
    method = composed(name).double().eval()
    plugin, draws = method.plugins[0], Draws(seed=2, step=7, index=range(B))
    views = {k: v.double() for k, v in pixels().items()}
    plain, out = method.host.encode(views, draws), method.encode(views, draws)
    rows, both = len(plain["query"]), method.host.directions == 2
    assert rows == B * method.host.directions
    away = torch.cat([plain["query"][B:], plain["query"][:B]]) if both else plain["key"]
    drawn = 0.1 * draws.scope("hallucinator").step_uniform("ratio", method.host.directions)
    shares = [float(drawn[i // B]) for i in range(rows)]
    torch.testing.assert_close(out["query"][rows:], slow_rows(plugin, plain["query"], away, shares))
    assert torch.equal(out["query"][:rows], plain["query"])
    assert torch.equal(out["key"], torch.cat([plain["key"], plain["key"]]))


def test_the_ratio_is_one_number_a_step_and_direction():
    draws = [Draws(step=s, index=range(B)).scope("hallucinator").step_uniform("ratio", 2) for s in range(200)]
    values = torch.stack(draws)
    assert len(values.unique()) == 400 and float((values[:, 0] - values[:, 1]).abs().min()) > 0
    torch.testing.assert_close(values.mean(0), torch.full((2,), 0.5), atol=0.08, rtol=0)


def test_a_ratio_of_0_gives_the_query_twice():
    method = composed("simclr", ratio=0.0).eval()
    plugin, (query, key) = method.plugins[0], torch.randn(2, B, OUT)
    expected = plugin.generator(torch.cat([query, query], dim=1))
    torch.testing.assert_close(plugin.invented(query, key, None, 1), expected)


def test_widths_follow_the_query():
    linear = [m for m in composed("simsiam").plugins[0].generator if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(2 * OUT,) * 2, (2 * OUT,) * 2, (2 * OUT, OUT)]


# --- on its hosts -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", HOSTS)
def test_without_rows_and_crops_it_is_its_host_to_the_bit(name):
    plain, method = host(name), composed(name, positives="none", centre_box=None)
    batch = {"image": torch.randint(0, 256, (B, 3, 16, 16), dtype=torch.uint8)}
    losses = []
    for m in (plain, method):
        draws = Draws(index=range(B))
        losses.append(total(m(m.views(batch, draws), draws)))
        losses[-1].backward()
    assert torch.equal(*losses)
    theirs = {n.removeprefix("host."): p.grad for n, p in method.named_parameters()}
    for n, parameter in plain.named_parameters():
        assert parameter.grad is None or torch.equal(parameter.grad, theirs[n]), n
    assert method.plateau(B) == plain.plateau(B)


@pytest.mark.parametrize("name", ["moco_v2", "simsiam", "byol"])
def test_copied_rows_leave_the_loss(name):
    method = composed(name, positives="copied").eval()
    views = pixels()
    torch.testing.assert_close(total(method(views)), total(method.host(views)))
    assert not list(method.plugins.parameters())


@pytest.mark.parametrize("name", ["moco_v2", "simsiam"])
def test_the_loss_is_the_mean_over_both_kinds_of_rows(name):
    method = composed(name).eval()
    encoded = method.encode(pixels(), Draws(index=range(B)))
    rows = len(encoded["query"]) // 2
    halves = [{k: v[part] for k, v in encoded.items()} for part in (slice(rows), slice(rows, None))]
    each = [total(method.host.loss(half)) for half in halves]
    torch.testing.assert_close(total(method.loss(encoded)), (each[0] + each[1]) / 2)


def test_a_copy_of_the_key_keeps_simclr_above_log_2():
    """Perfect rows: all else orthogonal, the copy of the key stands among the negatives."""
    method = composed("simclr", positives="copied").eval()
    rows = torch.eye(OUT)[:B]
    encoded = method.plugins[0].between({"query": rows, "key": rows}, None, method.host)
    assert float(total(method.loss(encoded))) >= math.log(2)


@pytest.mark.parametrize("name", HOSTS)
def test_plateau_when_all_rows_are_equal(name):
    method = composed(name)
    same = torch.ones(2 * B * method.host.directions, OUT)
    found = method.plateau(B)
    if name in ("simclr", "g_simclr"):
        loss = method.host.loss({"query": same, "key": same})
        assert found["nt_xent"] == pytest.approx(float(loss["nt_xent"]), abs=1e-5) == math.log(4 * B - 1)
    else:
        assert found == method.host.plateau(B)


@pytest.mark.parametrize("name", HOSTS)
def test_finite_gradients_reach_the_net_and_the_encoder(name):
    method = composed(name)
    total(method(pixels(), Draws(index=range(B)))).backward()
    for key, parameter in method.named_parameters():
        if "teacher" in key:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), key
    assert all(p.grad.any() for p in method.plugins.parameters())


@pytest.mark.parametrize(("name", "reached"), [("simclr", True), ("moco_v2", False)])
def test_the_key_gets_a_gradient_only_where_its_host_gives_one(name, reached):
    """Through the invented rows too: in SimCLR the key stands in e, in MoCo it is a constant."""
    method = composed(name)
    encoded = method.host.encode(pixels())
    key = encoded["key"].detach().requires_grad_(encoded["key"].requires_grad)
    plugin = method.plugins[0]
    out = plugin.invented(encoded["query"], key, ratios(B, 0.9), 1)
    assert key.requires_grad == reached
    if reached:
        assert float(torch.autograd.grad(out.sum(), key)[0].abs().sum()) > 0


def test_the_net_is_in_the_optimizer_of_simsiam():
    method = composed("simsiam")
    held = {id(p) for group in build_optimizer(method, method.recipe, 0.1).param_groups for p in group["params"]}
    assert {id(p) for p in method.plugins.parameters()} <= held


@pytest.mark.parametrize(("enqueue", "pushed"), [("twice", 2 * B), ("once", B)])
def test_keys_enter_the_queue(enqueue, pushed):
    method = composed("moco_v2", enqueue=enqueue)
    total(method(pixels(), Draws(index=range(B)))).backward()
    keys = method.host.encode(pixels())["key"]
    method.after_step()
    assert int(method.host.queue.filled) == pushed
    torch.testing.assert_close(method.host.queue.columns[:, :pushed], torch.cat([keys] * (pushed // B)).T)


@pytest.mark.parametrize("first", ["mochi", "hallucinator"])
@pytest.mark.parametrize("enqueue", ["twice", "once"])
def test_two_plug_ins_at_once_in_both_orders(first, enqueue):
    method = host("moco_v2")
    mochi = Mochi(method, MochiConfig(hardest=5, pairs=3, queries=2))
    hallucinator = Hallucinator(method, HallucinatorConfig(enqueue=enqueue))
    both = Composed(method, [mochi, hallucinator] if first == "mochi" else [hallucinator, mochi])
    draws = Draws(index=range(B))
    encoded = both.encode(pixels(), draws)
    extra = encoded["extra_negatives"]
    assert extra.shape == (2 * B, 5, OUT) and len(encoded["query"]) == len(encoded["key"]) == 2 * B
    assert torch.equal(extra[:B], extra[B:]) == (first == "mochi")
    total(both.loss(encoded, draws)).backward()
    assert all(bool(p.grad.isfinite().all()) for p in both.parameters() if p.grad is not None)
    assert both.plateau(B)["info_nce"] == pytest.approx(math.log(1 + K + 5))
    both.after_step()
    assert int(method.queue.filled) == (2 * B if enqueue == "twice" else B)


# --- its crops --------------------------------------------------------------------------------------------------------
def sides(n=2000):
    return np.tile([[40, 60]], (n, 1)), Draws(index=range(n))


def test_with_a_box_of_no_size_every_crop_is_central():
    source, draws = sides()
    boxes = centred_boxes(draws, source, (0.2, 1.0), (3 / 4, 4 / 3), side=0.0, beta=0.1)
    middle = boxes[:, :2] + boxes[:, 2:] / 2
    assert np.abs(middle - source / 2).max() <= 0.5


@pytest.mark.parametrize("side", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("beta", [0.1, 0.6, 1.0])
def test_crops_stay_inside_and_keep_their_size(side, beta):
    source, draws = sides()
    boxes = centred_boxes(draws, source, (0.2, 1.0), (3 / 4, 4 / 3), side, beta)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= source).all()
    assert np.array_equal(boxes[:, 2:], random_boxes(draws, source, (0.2, 1.0), (3 / 4, 4 / 3))[:, 2:])
    small = centred_boxes(draws, source, (0.01, 0.01), (1.0, 1.0), side, beta)  # no border in the way
    place = (small[:, :2] + small[:, 2:] / 2) / source - 0.5
    assert (np.abs(place) <= side / 2 + 0.5 / 40).all()


def test_a_small_beta_keeps_to_the_edges_of_the_box():
    source, draws = sides()

    def far(beta):
        boxes = centred_boxes(draws, source, (0.01, 0.01), (1.0, 1.0), 0.5, beta)
        place = np.abs((boxes[:, :2] + boxes[:, 2:] / 2) / source - 0.5)
        return (place > 0.2).mean()

    # the share of Beta(a, a) below 0.1 and above 0.9
    assert far(0.1) == pytest.approx(0.83, abs=0.05) and far(1.0) == pytest.approx(0.2, abs=0.05)


def test_only_view_1_moves_and_only_after_the_first_epochs():
    batch = {"image": torch.randint(0, 256, (B, 3, 24, 24), dtype=torch.uint8)}
    draws, method, plain = Draws(index=range(B)), composed("simclr"), host("simclr")
    spec = plain.config.view_spec()
    for progress, moved in ((0.0, False), (0.5, True)):
        method.progress = progress
        views, usual = method.views(batch, draws), plain.views(batch, draws)
        assert torch.equal(views["view2"], usual["view2"])
        assert torch.equal(views["view1"], usual["view1"]) != moved
        wanted = replace(spec, centre_box=0.5, centre_beta=0.1) if moved else spec
        assert torch.equal(views["view1"], view(batch["image"], draws.scope("view1"), wanted).pixels)


# --- mistakes ---------------------------------------------------------------------------------------------------------
def test_mistakes_are_told():
    with pytest.raises(UserError, match="DINO accepts views, terms"):
        Hallucinator(DINO(backbone("resnet8", image_size=16)))
    with pytest.raises(UserError, match=r"ratio=-0\.1"):
        composed("simclr", ratio=-0.1)
    with pytest.raises(UserError, match=r"centre_box=1\.5"):
        composed("simclr", centre_box=1.5)
    with pytest.raises(UserError, match="centre_box=2"):
        ViewSpec(size=8, centre_box=2.0)
    nameless = host("simclr")
    nameless.config = object()
    with pytest.raises(UserError, match="its Config needs 'out'"):
        Hallucinator(nameless)


def test_views_without_crops_are_refused():
    method = GSimCLR(backbone("resnet8", image_size=16), GSimCLRConfig(16, out=OUT, augmentation="paper"))
    both = Composed(method, [Hallucinator(method)])
    with pytest.raises(UserError, match="augmentation=simclr"):
        both.views({"image": torch.zeros(B, 3, 16, 16)}, Draws(index=range(B)))
