"""The adapter to auto_LiRPA's Jacobian, on a stand-in for the version that has it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.adapters.lirpa import compat
from robust_plugins.adapters.lirpa.jacobian import Jacobian
from robust_plugins.registry.backends import available
from robust_plugins.registry.information import Kind, Status
from robust_plugins.registry.registry import Registry
from robust_plugins.testing.networks import cnn_case, mlp_case


class _Operator:
    """As `JacobianOP`: for each output the derivatives by the input, (batch, outputs, *input)."""

    @staticmethod
    def apply(output: Tensor, x: Tensor) -> Tensor:
        assert output.shape == (1, 1)
        return torch.autograd.grad(output.sum(), x)[0].unsqueeze(1)


class _Box(SimpleNamespace):
    """As `PerturbationLpNorm`."""


class _Bounded:
    """As `BoundedTensor`."""

    def __init__(self, x: Tensor, ptb: _Box) -> None:
        self.x, self.ptb = x, ptb


class _Module(nn.Module):
    """Bounds by sampling, so that what was handed in can be told from what comes back."""

    def __init__(self, model: nn.Module, x: Tensor, *, device: torch.device, bound_opts: object) -> None:
        super().__init__()
        assert x.shape[0] == 1, "the backend is wrong on batches"
        assert torch.get_default_dtype() == x.dtype
        self.model = model

    def compute_jacobian_bounds(self, inputs: tuple[_Bounded], *, optimize: bool) -> tuple[Tensor, Tensor]:
        box = inputs[0].ptb
        if any(isinstance(m, nn.BatchNorm2d) for m in self.model.modules()):
            raise NotImplementedError("build_gradient_node")
        ends = [self.model(t.clone().requires_grad_()) for t in (box.x_L, box.x_U, (box.x_L + box.x_U) / 2)]
        return torch.stack(ends).amin(0), torch.stack(ends).amax(0)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compat.LiRPA(
        version=(0, 7, 1),
        module_class=_Module,
        tensor_class=_Bounded,
        perturbation_class=_Box,
    )
    monkeypatch.setattr(compat, "load", lambda: made)
    monkeypatch.setitem(sys.modules, "auto_LiRPA.jacobian", SimpleNamespace(JacobianOP=_Operator))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_sample_a_call_and_the_right_gradient(dtype: torch.dtype) -> None:
    case = mlp_case().to(dtype, "cpu")
    point = rp.Linf(eps=0.0, clip=(0.0, 1.0))
    for of in ("logit", "margin"):
        certificate = Jacobian()(case.model, case.x, case.y, point, of=of, delta=0.0)
        assert certificate.gradient.dtype == dtype
        torch.testing.assert_close(certificate.gradient.lower, certificate.value)
        torch.testing.assert_close(certificate.gradient.upper, certificate.value)
    wide = Jacobian().bounds(case.model, case.x, case.y, case.ball, of="logit")
    assert (wide.width > 0).any()


@pytest.mark.usefixtures("backend")
def test_what_it_cannot_do_is_said() -> None:
    case = cnn_case()
    certificate = Jacobian()(case.model, case.x, case.y, case.ball, delta=1.0)
    assert set(certificate.verdicts) == {rp.Verdict.UNSUPPORTED}
    assert "build_gradient_node" in certificate.messages[0]
    with pytest.raises(rp.ArgumentError, match="loss"):
        Jacobian().bounds(case.model, case.x, case.y, case.ball, of="loss")
    with pytest.raises(rp.ArgumentError, match="weights"):
        Jacobian().bounds(case.model, case.x, case.y, case.ball, of="logit", radius=0.1)


@pytest.mark.parametrize(("installed", "there"), [("0.3", False), ("0.7", True), ("0.7.1.dev1", True), ("", True)])
def test_only_versions_that_have_it_count(installed: str, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["robust_plugins.registry.backends"], "imported_version", lambda name: installed)
    assert available(rp.Backend("torch", "pip install torch", "0.7")) is there


def test_an_older_backend_is_a_status() -> None:
    if not compat.load().legacy:
        pytest.skip("needs auto_LiRPA 0.3")
    registry = Registry(entry_points=False)
    found = {info.name: info for info in registry.components(Kind.EXPLANATION_CERTIFIER)}["lirpa:jacobian"]
    assert found.status is Status.BACKEND_MISSING
    with pytest.raises(rp.PluginError, match=r"needs auto_LiRPA 0\.7, of which an older one is installed"):
        registry.create(Kind.EXPLANATION_CERTIFIER, "lirpa:jacobian")
