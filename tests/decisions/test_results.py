"""Records of attacks and certifiers are shown in one line."""

from __future__ import annotations

import pytest
import torch

import robust_plugins as rp


@pytest.mark.parametrize("count", [0, 3])
def test_a_repr_is_one_line_that_counts(count) -> None:
    model = torch.nn.Linear(4, 2).eval()
    x = torch.linspace(0.1, 0.9, 4 * count).reshape(count, 4)
    y, ball = model(x).argmax(1), rp.Linf(eps=1e-3, clip=(0.0, 1.0))
    certificate = rp.certifier("interval:ibp")(model, x, y, ball)
    assert "\n" not in repr(certificate)
    assert f"{count} samples" in repr(certificate)
    assert "certified" in repr(certificate) or not count
    cascade = rp.cascade(["interval:ibp", "interval:crown"])(model, x, 1 - y, ball)
    assert repr(cascade).startswith(f"<Certificate: {count} samples, {'3 falsified' if count else 'no verdict'}")
    assert all(repr(stage).startswith(f"<Stage {stage.name}: 0 samples, no verdict") for stage in cascade.stages)
    result = rp.attack("art:fgsm")(model, x, y, ball, seed=0)
    assert repr(result).startswith(f"<AttackResult: success on {int(result.success.sum())} of {count} samples")
    explained = rp.explanation_certifier("interval:crown")(model, x, y, ball, delta=0.1)
    assert repr(explained).startswith(f"<ExplanationCertificate of the logit: {count} samples")
    assert "\n" not in repr(explained)
