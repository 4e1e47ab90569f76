"""Models behind a normalisation: the bounds and attacks are those of the network in a box of its own units."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch

import robust_plugins as rp
from robust_plugins.intervals.network.code import reads

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
CERTIFIERS = [c.name for c in rp.certifiers() if c.name.startswith(("interval:", "lirpa:"))]


def _images() -> tuple[torch.nn.Module, torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    network = rp.model("cnn", input_shape=(3, 6, 6), classes=3).double().eval()
    model = rp.normalised(network, MEAN, STD)
    x = torch.rand((4, 3, 6, 6), dtype=torch.float64)
    return network, model, x, model(x).argmax(1)


@pytest.mark.parametrize("name", [n for n in CERTIFIERS if "alpha" not in n])
def test_bounds_are_those_of_the_network_in_its_own_units(name) -> None:
    network, model, x, y = _images()
    mean, std = (t.double().view(3, 1, 1) for t in (MEAN, STD))
    box = rp.Box(eps=0.01, radius=1 / std, clip=((0 - mean) / std, (1 - mean) / std))
    one = rp.certifier(name)(model, x, y, rp.Linf(eps=0.01, clip=(0, 1)))
    other = rp.certifier(name)(network, (x - mean) / std, y, box)
    assert one.verdicts == other.verdicts
    if "branch" not in name:
        torch.testing.assert_close(one.margin, other.margin, rtol=1e-5, atol=1e-6)


def test_attacks_and_explanations_are_in_the_units_of_the_data() -> None:
    _, model, x, y = _images()
    ball = rp.Linf(eps=0.02, clip=(0, 1))
    found = rp.attack("rp:margin-pgd")(model, x, y, ball, seed=0)
    assert ball.contains(found.x_adv, x, tolerance=0).all()
    assert not rp.compare(model, x, y, ball, ["rp:margin-pgd", "interval:crown"], seed=0).crossings
    gradient = rp.explanation_certifier("interval:ibp").bounds(model, x, y, ball, of="logit")
    at = found.x_adv.clone().requires_grad_()
    model(at).gather(1, y[:, None]).sum().backward()
    assert gradient.contains(at.grad, tolerance=1e-9).all()


@pytest.mark.parametrize(
    ("shape", "mean", "std"),
    [((5,), torch.arange(5.0), 2.0), ((5,), 0.5, [1.0, 2, 3, 4, 5]), ((3, 6, 6), MEAN, STD), ((3, 6, 6), 0.5, 0.2),
     ((2, 7), [0.1, 0.2], [1, 2]), ((3, 6, 6), torch.rand(3, 6, 6), torch.rand(1, 6, 6) + 0.5)],
)  # fmt: skip
def test_rows_channels_and_samples_are_normalised(shape, mean, std) -> None:
    x = torch.rand(4, *shape)
    parts = [torch.as_tensor(t, dtype=torch.float32) for t in (mean, std)]
    shaped = [t.view(-1, *[1] * (len(shape) - 1)) if t.dim() == 1 else t for t in parts]
    model = rp.normalised(torch.nn.Flatten(), mean, std)
    torch.testing.assert_close(model(x), ((x - shaped[0]) / shaped[1]).flatten(1))
    # The engine can read its code, so that its graph is kept, and bounds cost what they cost without it.
    assert reads(inspect.unwrap(type(model).forward).__code__) is not None


def test_it_keeps_dtype_mode_and_can_be_saved_and_exported(tmp_path) -> None:
    network, model, x, _ = _images()
    assert not model.training
    assert model.get_buffer("mean").dtype is torch.float64
    other = rp.normalised(network, MEAN + 1, STD)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), model(x))
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))
    path = tmp_path / "net.onnx"
    pytest.importorskip("onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.float(), (x[:1].float(),), path, dynamo=False)
    read = rp.load_model(str(path))
    torch.testing.assert_close(read(x[:1].float()), model(x[:1].float()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((torch.nn.Flatten(), 0.0, 0.0), r"`std` is 0 somewhere.*std 1"),
        ((torch.nn.Flatten(), [0.0, 1.0], [1.0, 0.0]), "`std`"),
        ((torch.nn.Flatten(), 0.0, [1.0, -1.0]), "`std` is -1"),
        ((torch.nn.Flatten(), float("nan"), 1.0), "`mean`"),
        ((torch.nn.Flatten(), "half", 1.0), "`mean`"),
        ((torch.nn.Flatten(), [0.0, 1.0], [1.0, 1.0, 1.0]), "`std` is of shape"),
        ((torch.relu, 0.0, 1.0), "`model`"),
    ],
)
def test_wrong_arguments_are_named(arguments, named, unchecked) -> None:
    with pytest.raises(rp.ArgumentError, match=named):
        rp.normalised(*arguments)
