"""Slot attention and the networks around it: recorded numbers, equivariance, shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eyespot.nets.backbones import backbone, load_backbone, save_backbone
from eyespot.nets.monet import FAINTEST, AttentionUNet, attend
from eyespot.nets.slots import RandomSlots, SlotAttention, SoftPosition, compete, coordinates
from eyespot.nets.spatial_broadcast import SpatialBroadcast


def drawn(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.golden
def test_rounds_as_recorded(golden):
    arrays, params = golden("scene_survey__slot_attention")
    a = {k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}
    weights = {k.removeprefix("w__").removesuffix("_l0"): v for k, v in a.items() if k.startswith("w__")}
    dim, width = params["slot_dim"], params["input_dim"]
    net = SlotAttention(width, dim, params["iterations"], params["mlp_hidden"], norm_inputs=False)
    net.load_state_dict(weights)
    with torch.no_grad():
        slots, attention = net(a["inputs"], a["init_slots"])
        net.iterations = 1
        _, first = net(a["inputs"], a["init_slots"])
    torch.testing.assert_close(slots, a["slots"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first, a["attention_iter1"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention, a["attention_iter3"], rtol=1e-4, atol=1e-5)


def test_slots_compete_for_places():
    attention, weights = compete(drawn(2, 3, 7))
    torch.testing.assert_close(attention.sum(1), torch.ones(2, 7))
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 3))


def test_a_slot_that_wins_nothing_has_the_mean_of_all_places():
    logits = torch.zeros(1, 2, 4)
    logits[:, 0] = 1e4
    attention, weights = compete(logits)
    assert attention[0, 1].tolist() == [0.0] * 4 and weights[0, 1].tolist() == [0.25] * 4


def test_one_round_by_a_loop():
    torch.manual_seed(0)
    net = SlotAttention(5, 4, iterations=1, hidden=6)
    x, slots = drawn(1, 6, 5), drawn(1, 3, 4, seed=1)
    with torch.no_grad():
        got, _ = net(x, slots)
        features = net.norm_inputs(x)
        keys, values, queries = net.to_k(features)[0], net.to_v(features)[0], net.to_q(net.norm_slots(slots))[0]
        shares = torch.zeros(3, 6)
        for n in range(6):
            scores = [float(queries[k] @ keys[n]) / 2 for k in range(3)]
            for k in range(3):
                shares[k, n] = np.exp(scores[k]) / np.sum(np.exp(scores)) + 1e-8
        for k in range(3):
            update = sum(shares[k, n] / shares[k].sum() * values[n] for n in range(6))
            state = net.gru(update[None], slots[0, k][None])
            state = state + net.mlp(net.norm_pre_ff(state))
            torch.testing.assert_close(got[0, k], state[0], rtol=1e-4, atol=1e-5)


def test_permuting_the_slots_permutes_the_result():
    torch.manual_seed(0)
    net = SlotAttention(8, 8)
    x, slots, order = drawn(2, 10, 8), drawn(2, 4, 8, seed=1), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        plain, attention = net(x, slots)
        moved, moved_attention = net(x, slots[:, order])
        shuffled, _ = net(x[:, torch.randperm(10)], slots)
    torch.testing.assert_close(moved, plain[:, order])
    torch.testing.assert_close(moved_attention, attention[:, order])
    torch.testing.assert_close(shuffled, plain, rtol=1e-4, atol=1e-5)  # places are a set


def test_start_is_the_learned_gaussian():
    start = RandomSlots(6)
    noise = drawn(2, 3, 6)
    assert torch.equal(start(torch.zeros(1, 1, 6)), start.mean)
    torch.testing.assert_close(start(noise), start.mean + start.log_sigma.exp() * noise)


def test_positions_are_zero_in_the_middle_and_as_large_as_features():
    torch.manual_seed(0)
    position = SoftPosition(64)
    with torch.no_grad():
        places = position(torch.zeros(1, 64, 5, 7))
    assert places[0, :, 2, 3].abs().max() < 1e-5
    assert 0.3 < float(places.std()) < 3
    assert coordinates(2, 2, places)[:, 0, 1].tolist() == [0.25, 0.75, 0.75, 0.25]


@pytest.mark.parametrize(("size", "start", "refine"), [(32, 8, 0), (32, 8, 2), (24, 8, 0), (4, 8, 0), (20, 5, 1)])
def test_decoder_gives_the_size_asked_for(size, start, refine):
    decoder = SpatialBroadcast(6, 4, size, start, width=5, kernel=3, refine=refine)
    out = decoder(drawn(3, 6))
    assert out.shape == (3, 4, size, size)
    assert not torch.allclose(out[0, :, 0, 0], out[0, :, -1, -1])  # places differ
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


@pytest.mark.parametrize("size", [16, 20, 32])
def test_attention_takes_all_and_only_what_is_left(size):
    torch.manual_seed(0)
    net = AttentionUNet(3, size, (4, 8, 8), hidden=16)
    log_masks = attend(net, drawn(2, 3, size, size), 4)
    assert log_masks.shape == (2, 4, 1, size, size)
    masks = log_masks.exp()
    torch.testing.assert_close(masks.sum(1), torch.ones(2, 1, size, size))
    assert (masks >= 0).all()
    with torch.no_grad():
        first = net(drawn(2, 3, size, size), torch.zeros(2, 1, size, size)).sigmoid()
    torch.testing.assert_close(masks[:, 0], first)


def test_encoder_of_parts_sees_the_mask(tmp_path):
    net = backbone("monet_conv", image_size=32)
    x = torch.rand(2, 3, 32, 32)
    hidden = torch.full((2, 1, 32, 32), -3.0)
    whole = net.features(x)
    torch.testing.assert_close(net.features(x, torch.zeros(2, 1, 32, 32)), whole)
    assert not torch.allclose(net.features(x, hidden), whole)
    faint = [net.features(x, torch.full_like(hidden, v)) for v in (-1e9, FAINTEST)]
    assert torch.equal(*faint)
    save_backbone(net, tmp_path)
    assert torch.equal(load_backbone(tmp_path)(x), net(x))


@pytest.mark.parametrize(
    ("name", "width", "side"), [("slot_conv", 64, 32), ("slot_conv_small", 32, 16), ("monet_conv", 64, 2)]
)
def test_encoders_by_name(name, width, side):
    net = backbone(name, image_size=32, channels=4)
    x = torch.rand(2, 4, 32, 32)
    assert net.embed_dim == width and net.forward_dense(x).shape == (2, width, side, side)
    net(x).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
