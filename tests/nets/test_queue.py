"""The queue against a list."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from eyespot.errors import UserError
from eyespot.nets.queue import Queue


@given(st.integers(1, 7), st.lists(st.integers(0, 17), max_size=6))
def test_first_in_first_out(size, pushes):
    queue = Queue(3, size, normalize=False)
    kept = list(queue.columns.T.clone())
    total = 0
    for i, n in enumerate(pushes):
        keys = torch.randn(n, 3, generator=torch.Generator().manual_seed(i))
        queue.push(keys)
        kept, total = (kept + list(keys))[-size:], total + n
    torch.testing.assert_close(queue.ordered(), torch.stack(kept[::-1]))
    assert int(queue.filled) == min(total, size)
    assert queue.columns.shape == (3, size) and len(queue) == size


def test_starts_alike_everywhere_with_unit_columns():
    a, b = Queue(4, 5, seed=3), Queue(4, 5, seed=3)
    torch.testing.assert_close(a.columns, b.columns)
    torch.testing.assert_close(a.columns.norm(dim=0), torch.ones(5))
    assert not torch.equal(a.columns, Queue(4, 5, seed=4).columns)


def test_keys_are_brought_to_unit_length():
    queue = Queue(2, 3)
    queue.push(torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(queue.ordered()[0], torch.tensor([0.6, 0.8]))


def test_a_loss_of_before_the_push_still_has_its_gradient():
    queue = Queue(2, 4).double()
    q = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    columns = queue.columns.clone()
    loss = F.relu(q @ queue.columns).sum()
    queue.push(torch.rand(2, 2, dtype=torch.float64))
    loss.backward()
    torch.testing.assert_close(q.grad, ((q @ columns > 0).double() @ columns.T))


def test_hooks_change_what_is_pushed():
    queue = Queue(2, 4)
    queue.hooks.append(lambda keys: keys[:1])
    queue.push(torch.eye(2))
    assert int(queue.filled) == 1


def test_state_is_saved():
    queue, other = Queue(2, 3), Queue(2, 3, seed=9)
    queue.push(torch.rand(2, 2))
    other.load_state_dict(queue.state_dict())
    keys = torch.rand(2, 2)
    queue.push(keys)
    other.push(keys)
    torch.testing.assert_close(other.columns, queue.columns)
    assert int(other.oldest) == 1


def test_empty_queue_is_a_mistake():
    with pytest.raises(UserError, match="at least 1"):
        Queue(2, 0)
