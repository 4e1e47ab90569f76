"""Options and objects of Captum in the place of ours."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import robust_plugins as rp

explain = rp.explain


def case() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(5, 4)
    return model, x, model(x).argmax(1)


def test_captum_s_options_of_attribute() -> None:
    model, x, y = case()
    signed = explain.Saliency(model).attribute(x, y, abs=False)
    assert torch.equal(signed, explain.Saliency(model, abs=False).attribute(x, y))
    assert torch.equal(signed.abs(), explain.Saliency(model, abs=False).attribute(x, y, abs=True))
    seen = []
    model.register_forward_hook(lambda m, given, out: seen.append(len(given[0])))
    whole = explain.IntegratedGradients(model, n_steps=7).attribute(x, y)
    assert max(seen) == 35
    seen.clear()
    parts = explain.IntegratedGradients(model, n_steps=7).attribute(x, y, internal_batch_size=8)
    torch.testing.assert_close(parts, whole)
    assert max(seen) == 8
    with pytest.raises(rp.ArgumentError, match="It is an option of Saliency"):
        explain.InputXGradient(model).attribute(x, y, abs=True)
    with pytest.raises(rp.ArgumentError, match="`internal_batch_size` is 0"):
        explain.Saliency(model).attribute(x, y, internal_batch_size=0)


def test_objects_of_captum_are_scored_as_ours() -> None:
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    model, x, y = case()
    pairs = [
        (attr.Saliency(model), explain.Saliency(model)),
        (attr.Saliency(model).attribute, explain.Saliency(model)),
        (partial(attr.Saliency(model).attribute, abs=False), explain.Saliency(model, abs=False)),
        (attr.InputXGradient(model), explain.InputXGradient(model)),
        (partial(attr.IntegratedGradients(model).attribute, n_steps=4), explain.IntegratedGradients(model, n_steps=4)),
    ]
    for theirs, ours in pairs:
        found, expected = (explain.sensitivity_max(e, x, target=y, n_perturb_samples=2, seed=0) for e in (theirs, ours))
        assert torch.equal(found.sampled, expected.sampled)
        assert torch.equal(found.bracket.certified, expected.bracket.certified)
    for wrong, said in (
        (attr.NoiseTunnel(attr.Saliency(model)), "Captum's NoiseTunnel"),
        (attr.Saliency(lambda z: model(z)), "of a function"),
        (partial(attr.InputXGradient(model).attribute, additional_forward_args=1), "additional_forward_args"),
        (attr.IntegratedGradients(model, multiply_by_inputs=False), "without its inputs"),
    ):
        with pytest.raises(rp.ArgumentError, match=said):
            explain.sensitivity_max(wrong, x, target=y, seed=0)
