"""I2P-MAE: what stays visible, what the teacher tells, and that the two ingredients can be left out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eyespot.data.clouds import open_clouds
from eyespot.data.records import RecordData
from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.methods.method import Info, total
from eyespot.methods.points.i2p_mae import I2PMAE, DepthContrast, I2PMAEConfig
from eyespot.nets.backbones import backbone
from eyespot.train.step import on_device

SIZE = 64


def make(seed=0, **changes):
    torch.manual_seed(seed)
    config = I2PMAEConfig(**({"image_size": SIZE, "teacher": "random", "depth_size": 32} | changes))
    return I2PMAE(backbone("points_nano", image_size=SIZE), config, Info(batch_size=8))


def clouds(n=8, size=SIZE):
    source = open_clouds("shapes:train")
    return torch.stack([source.record(i, {"points": size, "seed": 0})["points"] for i in range(n)])


def draws(n=8, seed=0):
    return Draws(seed, index=np.arange(n))


def test_gradients_are_finite_and_reach_everything():
    method = make().train()
    terms = method({"points": clouds()}, draws())
    assert set(terms) == {"chamfer", "features"}
    total(terms).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
    assert all(p.grad is None and not p.requires_grad for p in method.guides["teacher"].parameters())
    assert not any("teacher" in key for key in method.state_dict())


def test_as_many_tokens_stay_as_the_ratio_says_and_salient_ones_always_do():
    method, x = make(mask_ratio=0.75), clouds()
    levels = method.backbone.net.levels(x)
    assert method._stays(torch.zeros(8, SIZE), levels, draws()).sum(1).tolist() == [2] * 8
    loud = torch.zeros(8, SIZE)
    loud.scatter_(1, levels[-1].chosen[:, 3:4], 100.0)
    for seed in range(20):
        assert bool(method._stays(loud, levels, draws(seed=seed))[:, 3].all())
    assert not bool(make(mask="random")._stays(loud, levels, draws())[:, 3].all())


def test_guided_tokens_stay_by_the_softmax_of_their_salience():
    method = make(mask_ratio=0.9)  # one of eight stays
    x = clouds(1).expand(4000, -1, -1)
    levels = method.backbone.net.levels(x[:1])
    levels = [type(v)(v.centres.expand(4000, -1, -1), v.index, v.chosen.expand(4000, -1)) for v in levels]
    salience = torch.randn(1, SIZE).expand(4000, -1)
    rate = method._stays(salience, levels, draws(4000)).float().mean(0)
    wanted = salience[0, levels[-1].chosen[0]].softmax(0)
    torch.testing.assert_close(rate, wanted, atol=0.03, rtol=0)


def test_hidden_points_do_not_reach_what_is_visible():
    method = make(weight_2d=0.0, mask="random").eval()
    x = clouds(2)
    net, levels = method.backbone.net, method.backbone.net.levels(x)
    top = torch.zeros(2, 8, dtype=torch.bool)
    top[:, 0] = True
    from eyespot.nets.point_ops import pass_down

    visible = pass_down(top, levels)
    tokens = [t.detach() for t in net.run(x, levels, visible)]
    used = torch.zeros(2, SIZE, dtype=torch.bool)
    for b in range(2):
        used[b, levels[0].index[b][visible[0][b]].flatten()] = True
    moved = torch.where(used.unsqueeze(-1), x, x + 0.3)
    for before, after, seen in zip(tokens, net.run(moved, levels, visible), visible, strict=True):
        torch.testing.assert_close(before, after)
        assert float(before[~seen].abs().max()) == 0 and float(before[seen].abs().max()) > 0
    # a batch of clouds that show different numbers of tokens gives what each gives alone
    top[1, 1:5] = True
    visible = pass_down(top, levels)
    whole = net.run(x, levels, visible)[-1]
    alone = net.run(x[:1], net.levels(x[:1]), [v[:1] for v in visible])[-1]
    torch.testing.assert_close(whole[:1], alone, rtol=1e-5, atol=1e-5)


def test_without_both_ingredients_there_is_no_teacher():
    method = make(weight_2d=0.0, mask="random")
    assert not method.guides and set(method({"points": clouds()}, draws())) == {"chamfer"}
    assert not method.prepare(None, None)
    only = make(weight_2d=0.0)
    assert "teacher" in only.guides and set(only({"points": clouds()}, draws())) == {"chamfer"}


def test_features_of_visible_and_points_of_hidden_tokens_alone_count():
    method = make().eval()
    found = method._decoded(clouds(), draws())
    terms = method({"points": clouds()}, draws())
    seen = found["visible"]
    slow = []
    for b, g in (~seen).nonzero().tolist():
        d = (found["predicted"][b, g, :, None] - found["target"][b, g, None]).square().sum(-1)
        slow.append(float(d.amin(1).mean() + d.amin(0).mean()))
    assert float(terms["chamfer"]) == pytest.approx(np.mean(slow), rel=1e-4)
    said = method.features_head(found["decoded"]).unflatten(-1, found["features"].shape[-2:])
    slow = [float((said[b, g] - found["features"][b, g]).square().mean()) for b, g in seen.nonzero().tolist()]
    assert float(terms["features"]) == pytest.approx(np.mean(slow), rel=1e-4)


def test_the_loss_falls_on_one_batch():
    method, x = make().train(), clouds()
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = total(method({"points": x}, draws()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


class OneBatch:
    """Stands for the engine's tools: five steps on one batch."""

    def fit(self, method, epochs, name):
        batch = RecordData(open_clouds("shapes:train"), workers=0).batch(np.arange(8))
        optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
        for _ in range(5):
            loss = total(method(method.views(batch, draws())))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return method


def test_the_teacher_learns_before_the_training_and_is_used():
    method = make(teacher="depth")
    before = {k: v.clone() for k, v in method.guides["teacher"].net.state_dict().items()}
    method.prepared = method.prepare(None, OneBatch())
    assert method.prepared and all(k.startswith("teacher.") for k in method.prepared)
    method({"points": clouds()}, draws())
    after = method.guides["teacher"].net.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)
    assert all(torch.equal(method.prepared[f"teacher.{k}"], v) for k, v in after.items())
    assert not method.guides["teacher"].training


def test_views_are_a_function_of_the_sample_alone():
    method = make(turn=1.0)
    x = clouds()
    whole = method.views({"points": x}, draws())["points"]
    part = method.views({"points": x[[5, 2]]}, Draws(0, index=[5, 2]))["points"]
    assert torch.equal(part, whole[[5, 2]]) and not torch.equal(whole, x)
    teacher = make(teacher="depth").guides["teacher"]
    contrast = DepthContrast(teacher, I2PMAEConfig(image_size=SIZE), Info())
    views = contrast.views({"points": x}, draws())
    again = contrast.views({"points": x[3:4]}, Draws(0, index=[3]))
    assert torch.equal(views["view1"][3:4], again["view1"]) and not torch.equal(views["view1"], views["view2"])


def test_each_epoch_reads_other_points():
    method = make()
    plans = [method.read({"index": 3}, Draws(0, epoch, index=[3])) for epoch in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2] and plans[0]["points"] == SIZE


def test_pictures_show_masks_and_what_is_put_back():
    method = make().eval()
    shown = method.pictures(on_device({"points": clouds()}, torch.device("cpu")), draws())
    assert set(shown) == {"reconstruction", "depth"}
    for columns in shown.values():
        for values in columns.values():
            assert (
                values.shape[0] == 8
                and bool(values.isfinite().all())
                and 0 <= float(values.min()) <= float(values.max()) <= 1
            )
    seen, whole = (float((shown["reconstruction"][k] < 0.99).float().mean()) for k in ("visible", "cloud"))
    assert 0 < seen < whole


def test_mistakes_are_said_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match="needs points_micro or point_m2ae, not 'resnet8'"):
        I2PMAE(backbone("resnet8", image_size=32))
    with pytest.raises(UserError, match="hides none or all of 8 tokens"):
        make(mask_ratio=0.01)
    with pytest.raises(UserError, match=r"holds no backbone\.json"):
        make(teacher=str(tmp_path))
    with pytest.raises(UserError, match="even number"):
        make(depth_size=33)


def test_a_saved_network_of_pictures_is_a_teacher(tmp_path):
    from eyespot.nets.backbones import save_backbone

    save_backbone(backbone("vit_nano", image_size=32), tmp_path)
    method = make(teacher=str(tmp_path))
    features, salience = method.teacher()(clouds())
    assert features.shape == (8, SIZE, 3 * 64) and salience.shape == (8, SIZE)
    assert float(total(method({"points": clouds()}, draws())).detach()) > 0
    # attention of the class token over 64 patches sums to one
    _, attended = method.teacher().looked_at(torch.rand(2, 3, 32, 32))
    assert bool((attended.sum((1, 2, 3)) <= 1).all())


@pytest.mark.golden
def test_salient_tokens_stay_as_often_as_recorded(golden):
    """The token that is drawn first is drawn with the recorded probabilities."""
    arrays, _ = golden("i2p_mae__multiscale_mask")
    salience = torch.from_numpy(arrays["saliency"])
    count, tokens = 20_000, salience.shape[1]
    config = SimpleNamespace(mask="guided", mask_temperature=1.0)
    asked = SimpleNamespace(config=config, tokens=tokens, hidden=tokens - 1)
    levels = [SimpleNamespace(chosen=torch.arange(tokens).expand(count, -1))]
    stays = I2PMAE._stays(asked, salience.expand(count, -1), levels, Draws(0, index=range(count)))
    assert bool((stays.sum(1) == 1).all())
    wanted = torch.from_numpy(arrays["mask_probability"])[0]
    assert (stays.float().mean(0) - wanted).abs().max() < 4 * (0.25 / count) ** 0.5
