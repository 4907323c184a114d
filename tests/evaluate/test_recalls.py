"""WAR and UAR."""

import pytest
import torch

from eyespot.evaluate import linear, recalls
from eyespot.metrics.classification import recalls as measured


def test_a_hand_computed_case():
    labels = torch.tensor([0, 0, 0, 0, 1, 2])
    said = torch.tensor([0, 0, 0, 1, 1, 0])
    scores = torch.nn.functional.one_hot(said, 4).float()
    war, uar = measured(scores, labels)  # 4 of 6; 3/4, 1 and 0 of the three classes that occur
    assert war == pytest.approx(400 / 6) and uar == pytest.approx(100 * (0.75 + 1 + 0) / 3)
    with pytest.raises(ValueError, match="no samples"):
        measured(scores[:0], labels[:0])


def test_the_protocol_is_the_linear_probes_and_sees_the_rare_class():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 90 + [1] * 10)
    train, test = (torch.randn(100, 5, generator=generator) + labels[:, None] * 0.8 for _ in range(2))
    found, config = recalls.run(train, labels, test, labels, 2)
    accuracy, used = linear.run(train, labels, test, labels, 2)
    assert found["war"] == pytest.approx(accuracy["top1"]) and config["strength"] == used["strength"]
    assert found["uar"] < found["war"] - 5  # the rare class is missed more often
