"""Linear relaxation rounded outward holds for every layer in floating point, or the layer is refused by its name."""

from __future__ import annotations

import copy

import pytest
import torch
from support.interval_examples import EXAMPLES
from support.length import length
from torch import nn

import robust_plugins as rp
from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals import Interval, Relaxation, rounding, trace
from robust_plugins.intervals.layers import Reshape
from robust_plugins.intervals.rules.registry import BUILTIN


def behind(layer: nn.Module, shape: tuple[int, ...], draw: torch.Generator) -> nn.Module:
    """The layer between two linear ones, the last of which takes differences of what is large."""
    first = nn.Linear(shape[-1], shape[-1])
    layer = copy.deepcopy(layer).float().eval()  # other tests make it double
    size = layer(torch.zeros(1, *shape)).numel()
    last = nn.Linear(size, 3)
    with torch.no_grad():
        last.weight.mul_(10 ** (4 * torch.rand(last.weight.shape, generator=draw)))
        last.weight[:, -1] = -last.weight[:, :-1].sum(1)
    return nn.Sequential(first, layer, Reshape((size,)), last).eval()


def check(index: int, dtype: torch.dtype, eps: float, scale: float, points: int) -> None:
    _, layer, shape = EXAMPLES[index]
    draw = torch.Generator().manual_seed(index)
    torch.manual_seed(index)
    model = behind(layer, shape, draw).to(dtype)
    x = scale * torch.randn(2, *shape, generator=draw).to(dtype)
    network, box = trace(model, x), Interval(x - eps, x + eps)
    with torch.no_grad(), rounding.outward():
        values, spec = network.forward(box), torch.eye(3, dtype=dtype).expand(2, 3, 3)
        found = Relaxation(network, values).bounds(len(values) - 1, spec).to(torch.float64)
    double = copy.deepcopy(model).double()
    with torch.no_grad():
        for k in range(points):
            t = 2 * torch.rand(x.shape, generator=draw, dtype=dtype) - 1
            z = torch.minimum(torch.maximum(x + eps * (t.sign() if k % 2 else t), box.lower), box.upper)
            for out in (model(z), torch.cat([model(one) for one in z.split(1)]), double(z.double())):
                assert bool(found.contains(out.double()).all())


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("index", sorted({kind: i for i, (kind, _, _) in enumerate(EXAMPLES)}.values()))
def test_the_lines_of_every_layer_hold_in_floating_point(index: int) -> None:
    check(index, (torch.float32, torch.float64)[index % 2], (0.0, 1e-4, 0.3)[index % 3], 1.0, 2)


@pytest.mark.parametrize(("kind", "known"), [(nn.Tanh, "outward"), (nn.Linear, "terms")])
def test_layers_of_which_too_little_is_known_are_refused_by_name(
    kind: type[nn.Module], known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BUILTIN.entry(kind), known, None)
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)), torch.rand(2, 3)
    for name in ("interval:crown", "interval:crown-ibp", "interval:alpha-crown"):
        with pytest.raises(UnsupportedModelError, match=rf"'\d' \({kind.__name__}\) .* cannot be rounded outward"):
            rp.certifier(name, outward=True).bounds(model, x, rp.Linf(eps=0.1, clip=None))
    assert rp.certifier("interval:ibp", outward=True)(model, x, model(x).argmax(1), rp.Linf(eps=0.0, clip=None))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_they_hold_for_inputs_and_radii_of_any_size(index: int) -> None:
    for dtype in (torch.float32, torch.float64):
        for eps in length((1e-4, 2.0), (0.0, 1e-6, 1e-4, 0.01, 0.3, 2.0)):
            for scale in length((0.1, 10.0), (0.1, 1.0, 10.0)):
                check(index, dtype, eps * scale, scale, 40)
