"""Self-distillation losses against recorded numbers, slow loops and the values they take in known cases."""

import math

import pytest
import torch

from eyespot.losses.distillation import (
    across_views,
    dino,
    hidden_tokens,
    moved_centre,
    teacher_probability,
    token_weights,
)


def softmax(row):
    top = max(row)
    e = [math.exp(x - top) for x in row]
    return [x / sum(e) for x in e]


def slow_dino(student, teacher, centre, ts, tt):
    pairs = []
    for g, t in enumerate(teacher.tolist()):
        for v, s in enumerate(student.tolist()):
            if g == v:
                continue
            rows = []
            for a, b in zip(t, s, strict=True):
                q = softmax([(x - c) / tt for x, c in zip(a, centre.tolist(), strict=True)])
                p = softmax([x / ts for x in b])
                rows.append(-sum(x * math.log(y) for x, y in zip(q, p, strict=True)))
            pairs.append(sum(rows) / len(rows))
    return sum(pairs) / len(pairs)


@pytest.mark.golden
def test_golden(golden):
    arrays, _ = golden("joint_embedding_bases__losses")
    s1, s2 = torch.from_numpy(arrays["s1"]), torch.from_numpy(arrays["s2"])
    centre = torch.from_numpy(arrays["dino_center"])[0]
    teacher = torch.stack([1.1 * s2, 0.9 * s1])
    # the recorded pairs are (teacher 0, student 1) and (teacher 1, student 0); 0.055 is epoch 1 of 0.04 -> 0.07 in 3
    loss = dino(torch.stack([s1, s2]), teacher, centre, 0.1, 0.055)
    assert loss.item() == pytest.approx(arrays["loss_dino"].item(), rel=1e-4)
    after = moved_centre(centre, teacher.mean((0, 1)), 0.9)
    torch.testing.assert_close(after, torch.from_numpy(arrays["dino_center_after"])[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("views", [2, 5])
def test_is_the_slow_loop(views):
    student, teacher = torch.randn(views, 3, 4).double(), torch.randn(2, 3, 4).double()
    centre = torch.randn(4).double()
    loss = dino(student, teacher, centre, 0.1, 0.05)
    assert loss.item() == pytest.approx(slow_dino(student, teacher, centre, 0.1, 0.05), rel=1e-9)


@pytest.mark.parametrize("classes", [2, 50])
def test_uniform_sides_give_log_p(classes):
    same = torch.ones(4, 3, classes)
    assert dino(same, same[:2], torch.zeros(classes)).item() == pytest.approx(math.log(classes), rel=1e-5)


def test_centre_moves_towards_the_mean():
    centre, mean = torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])
    assert moved_centre(centre, mean, 1.0).tolist() == [0, 0, 0]
    assert moved_centre(centre, mean, 0.0).tolist() == [1, 2, 3]


def test_a_sharper_teacher_has_less_entropy():
    logits = torch.randn(5, 8)
    entropy = [
        -(q * q.log()).sum(-1).mean() for q in (teacher_probability(logits, torch.zeros(8), t) for t in (1.0, 0.3))
    ]
    assert entropy[1] < entropy[0]


def test_the_mean_of_two_halves_is_the_whole():
    student, teacher, centre = torch.randn(4, 6, 5), torch.randn(2, 6, 5), torch.randn(5)
    halves = [dino(student[:, r], teacher[:, r], centre) for r in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, dino(student, teacher, centre))


def test_only_the_student_gets_a_finite_gradient():
    student = torch.full((3, 4, 5), 1e3, requires_grad=True)
    teacher = torch.randn(2, 4, 5, requires_grad=True)
    dino(student, teacher, torch.zeros(5)).backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()
    assert teacher.grad is None


# --- iBOT -------------------------------------------------------------------------------------------------------
@pytest.mark.golden
def test_ibot_agrees_with_the_recorded_numbers(golden):
    arrays, params = golden("masked_bases__losses")
    a = {k: torch.from_numpy(arrays[k]) for k in arrays if k.startswith("ib_")}
    n, student_t, teacher_t = len(a["ib_s_cls"]) // 2, params["student_temp"], params["teacher_temp"]

    def views(rows):
        return rows.unflatten(0, (-1, n))

    student, teacher = torch.cat([views(a["ib_s_cls"]), views(a["ib_s_local"])]), views(a["ib_t_cls"])
    assert len(student) == 2 + params["locals"]
    classes = dino(student, teacher, a["ib_center"][0], student_t, teacher_t)
    torch.testing.assert_close(classes, a["ib_loss_cls"], rtol=1e-4, atol=1e-4)
    mask = a["ib_mask"].bool().flatten(0, 1).flatten(1)
    target = teacher_probability(a["ib_t_patch"], a["ib_center2"][0, 0], params["teacher_patch_temp"])
    patches = hidden_tokens(a["ib_s_patch"][mask], target[mask], token_weights(mask), student_t)
    torch.testing.assert_close(patches, a["ib_loss_patch"], rtol=1e-4, atol=1e-4)
    moved = moved_centre(a["ib_center"], a["ib_t_cls"].mean(0, keepdim=True))
    torch.testing.assert_close(moved, a["ib_center_new"], rtol=1e-4, atol=1e-4)
    moved = moved_centre(a["ib_center2"], a["ib_t_patch"].mean((0, 1)))
    torch.testing.assert_close(moved, a["ib_center2_new"], rtol=1e-4, atol=1e-4)


def test_hidden_tokens_is_the_slow_loop():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 6, 3).double(), torch.randn(4, 6, 3).double()
    mask = torch.rand(4, 6) < 0.4
    mask[1] = False
    views = []
    for b in range(4):
        tokens = []
        for i in range(6):
            if mask[b, i]:
                q, p = softmax((teacher[b, i] / 0.07).tolist()), softmax((student[b, i] / 0.1).tolist())
                tokens.append(-sum(x * math.log(y) for x, y in zip(q, p, strict=True)))
        views.append(sum(tokens) / max(len(tokens), 1))
    target = teacher_probability(teacher, torch.zeros(3), 0.07)
    loss = hidden_tokens(student[mask], target[mask], token_weights(mask, torch.float64))
    assert loss.item() == pytest.approx(sum(views) / 4, rel=1e-9)


def test_nothing_hidden_costs_nothing_and_breaks_no_gradient():
    mask, student = torch.zeros(3, 5, dtype=torch.bool), torch.randn(3, 5, 4, requires_grad=True)
    loss = hidden_tokens(student[mask], torch.empty(0, 4), token_weights(mask))
    assert loss.item() == 0
    loss.backward()
    assert student.grad is not None and not student.grad.any()


def test_weights_count_every_masked_picture_alike():
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    torch.testing.assert_close(token_weights(mask), torch.tensor([1 / 9, 1 / 9, 1 / 9, 1 / 3]))


def test_a_student_scaled_by_the_ratio_of_temperatures_costs_the_entropy():
    teacher, weight = torch.randn(7, 5).double(), torch.full((7,), 1 / 7).double()
    q = teacher_probability(teacher, torch.zeros(5), 0.04)
    entropy = -(q * q.log()).sum(-1).mean()
    torch.testing.assert_close(hidden_tokens(teacher * 0.1 / 0.04, q, weight, 0.1), entropy)
    views = teacher.unsqueeze(0).expand(3, -1, -1) * 0.1 / 0.04
    torch.testing.assert_close(across_views(views, q.expand(2, -1, -1), 0.1), entropy)


def test_hidden_tokens_teaches_the_student_only():
    student = torch.full((3, 5), 1e3, requires_grad=True)
    target = torch.full((3, 5), 0.2, requires_grad=True)
    hidden_tokens(student, target, torch.full((3,), 1 / 3)).backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()
    assert target.grad is None
