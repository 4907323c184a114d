"""MapNet: known and unknown frames, relative poses, metres, and that odometry alone teaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eyespot.data.posed import open_posed
from eyespot.data.records import RecordData
from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.poses import as_logarithms, mapnet_loss, odometry, pose_loss
from eyespot.methods.method import Info, total
from eyespot.methods.points.mapnet import MapNet, MapNetConfig, resized
from eyespot.nets.backbones import backbone
from eyespot.train.step import on_device

SIZE = 16


def make(seed=0, **changes):
    torch.manual_seed(seed)
    config = MapNetConfig(**({"image_size": SIZE, "hidden": 16} | changes))
    return MapNet(backbone("resnet8", image_size=SIZE, width=8), config, Info(batch_size=6))


@pytest.fixture(scope="module")
def data():
    return RecordData(open_posed("tour:train"), workers=0)


def batch_of(data, method, rows=(0, 50, 100, 200, 300, 390)):
    rows = np.array(rows)
    plans = [method.read({"index": int(i)}, Draws(index=[i])) for i in rows]
    return data.batch(rows, plans=plans)


def views_of(data, method, rows=(0, 50, 100, 200, 300, 390)):
    return method.views(batch_of(data, method, rows), Draws(0, index=np.array(rows)))


@pytest.mark.parametrize("changes", [{}, {"relative": "frame"}, {"relative": "none"}, {"labelled": 0.5}])
def test_gradients_are_finite_and_reach_everything(data, changes):
    method = make(**changes).train()
    terms = method(views_of(data, method), None)
    assert all(v.dim() == 0 and bool(v.isfinite()) for v in terms.values())
    total(terms).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name


def test_the_terms_are_the_losses_of_the_paper(data):
    method = make().eval()
    views = views_of(data, method)
    predicted = method._poses(views["frames"])
    terms = method(views)
    assert float(total(terms)) == pytest.approx(float(mapnet_loss(predicted, views["target"])), rel=1e-5)
    alone = make(relative="none").eval()
    alone.load_state_dict({k: v for k, v in method.state_dict().items() if k != "between"})
    assert float(total(alone(views))) == pytest.approx(float(pose_loss(predicted, views["target"])), rel=1e-5)


def test_unknown_frames_teach_by_their_odometry_alone(data):
    method = make(labelled=0.5).eval()
    views = views_of(data, method)
    assert views["known"].tolist() == [True, True, True, False, False, False]
    before = method(views)
    changed = {**views, "target": views["target"].clone()}
    changed["target"][3:] += 5.0
    after = method(changed)
    assert all(float(before[k]) == float(after[k]) for k in before)
    measured = method({**views, "odometry": views["odometry"] + 1.0})
    assert float(measured["odometry"]) > float(before["odometry"])
    assert float(measured["absolute"]) == float(before["absolute"])


def test_perfect_predictions_leave_the_constants(data):
    method = make(labelled=0.5, relative="frame").eval()
    method.prepared = {"mean": torch.tensor([0.1, 0.2, 0.3]), "deviation": torch.tensor([1.5, 0.7, 0.2])}
    views = views_of(data, method)
    mean, deviation = method.prepared["mean"], method.prepared["deviation"]
    scaled = torch.cat([(views["target"][..., :3] - mean) / deviation, views["target"][..., 3:]], -1)
    method._poses = lambda frames: scaled
    terms = method(views)
    assert [round(float(v), 4) for v in terms.values()] == [-3.0, -3.0, -3.0]


def test_odometry_noise_belongs_to_the_sample(data):
    method = make(labelled=0.5, odometry_noise=0.2)
    batch = batch_of(data, method)
    first, later = (method.views(batch, Draws(0, e, 7 * e, np.arange(6)))["odometry"] for e in (0, 3))
    assert torch.equal(first, later)
    true = odometry(as_logarithms(batch["pose"]))
    error = (first - true)[..., :3].norm(dim=-1) / true[..., :3].norm(dim=-1).clamp_min(1e-6)
    assert 0.05 < float(error.median()) < 1.0


def test_poses_come_in_metres(data):
    class Tools:
        pass

    method = make().eval()
    method.prepared = method.prepare(data, Tools())
    places = np.stack([data.source.pose(i)[:3] for i in range(len(data))])
    np.testing.assert_allclose(method.prepared["mean"], places.mean(0), atol=1e-5)
    np.testing.assert_allclose(method.prepared["deviation"], places.std(0), rtol=1e-4)
    frames = batch_of(data, method)["image"].float() / 255
    poses = method.predict_poses(frames)
    assert poses.shape == (6, 7)
    torch.testing.assert_close(poses[:, 3:].norm(dim=1), torch.ones(6))
    half = make(labelled=0.5).prepare(data, Tools())
    np.testing.assert_allclose(half["mean"], places[:200].mean(0), atol=1e-5)


def test_the_loss_falls_on_one_batch(data):
    method = make(labelled=0.6).train()
    views = views_of(data, method)
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = total(method(views))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5


def test_views_are_a_function_of_the_sample_alone(data):
    method = make(labelled=0.5, odometry_noise=0.1)
    whole, part = views_of(data, method), views_of(data, method, (300, 50))
    for key, value in part.items():
        torch.testing.assert_close(value[0], whole[key][4])
        torch.testing.assert_close(value[1], whole[key][1])


def test_frames_keep_their_shape():
    frames = torch.randint(0, 256, (2, 3, 3, 24, 36), dtype=torch.uint8)
    out = resized(frames, 12)
    assert out.shape == (2, 3, 3, 12, 18) and float(out.min()) >= 0 and float(out.max()) <= 1
    torch.testing.assert_close(resized(frames, 24), frames.float() / 255)


def test_pictures_and_mistakes(data):
    method = make().eval()
    shown = method.pictures(on_device(batch_of(data, method), torch.device("cpu")), Draws(index=np.arange(6)))["poses"]
    assert list(shown) == ["frame 1", "frame 2", "frame 3", "from above"]
    assert all(len(v) == 6 and v.shape[1] == 3 for v in shown.values())
    with pytest.raises(UserError, match="frames=1 has nothing relative"):
        make(frames=1)
    assert make(frames=1, relative="none").between is None
