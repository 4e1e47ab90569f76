"""Models as people have them: wrapped, of one output, with a softmax at the end, changing their input; all modes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from support import attacked
from support.toys import Boxes, SignStep
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.decisions.certifier import LEFT_OUT
from robust_plugins.harness.arguments import decided
from robust_plugins.harness.wrappers import QUANTISED, TORCHSCRIPT, unwrapped
from robust_plugins.registry.information import Status

pytestmark = pytest.mark.usefixtures("unchecked")

BALL = rp.Linf(eps=0.02, clip=(0.0, 1.0))
WIDE = rp.Linf(eps=0.4, clip=(0.0, 1.0))
CERTIFIERS = [info.name for info in rp.certifiers() if info.status is Status.LOADED]
ATTACKS = [info.name for info in rp.attacks() if info.status is Status.LOADED and info.name in attacked.ATTACKS]
FEW = ["interval:crown", *(name for name in CERTIFIERS if name == "lirpa:crown")]


def _body(outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, outputs)).eval()


X = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
Y = _body(4)(X).argmax(1)


class Applied(nn.Module):
    """A function of what another module returns."""

    def __init__(self, body: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.function = body, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.body(x))


class Undecided(nn.Module):
    """A softmax behind code that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = _body(4), nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x)) if x.isfinite().all() else x


@contextlib.contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no_grad": torch.no_grad,
    "float64": lambda: _default(torch.float64),
    "bfloat16": lambda: _default(torch.bfloat16),
}


@pytest.mark.parametrize("mode", MODES)
class TestModes:
    @pytest.mark.parametrize("name", CERTIFIERS)
    def test_certifiers(self, name: str, mode: str) -> None:
        certifier = rp.certifier(name)
        model = nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4)).eval()
        spec = rp.margin_spec(Y, 4, dtype=X.dtype)
        expected, bounds = certifier(model, X, Y, BALL), certifier.bounds(model, X, BALL, spec)
        with MODES[mode]():
            x, y = X.clone(), Y.clone()  # inference tensors there
            found = certifier(model, x, y, BALL)
            again, lower = certifier.bounds(model, x, BALL, spec), certifier.lower_bounds(model, x, BALL, spec)
        assert found.verdicts == expected.verdicts
        assert torch.equal(found.margin, expected.margin)
        assert torch.equal(found.logits, expected.logits)
        for ours, theirs in ((again.lower, bounds.lower), (again.upper, bounds.upper), (lower, bounds.lower)):
            torch.testing.assert_close(ours, theirs.to(ours), rtol=1e-5, atol=1e-6)
            assert ours.dtype == torch.float32

    @pytest.mark.parametrize("name", ATTACKS)
    def test_attacks(self, name: str, mode: str) -> None:
        attack, model = rp.attack(name), _body(4)
        expected, search = attack(model, X, Y, WIDE, seed=0), attack.search(model, X, Y, WIDE, seed=0)
        targeted = attack(model, X, Y, WIDE, seed=0, target="random")
        with MODES[mode]():
            x, y = X.clone(), Y.clone()
            found, again = attack(model, x, y, WIDE, seed=0), attack.search(model, x, y, WIDE, seed=0)
            aimed = attack(model, x, y, WIDE, seed=0, target="random")
        assert torch.equal(found.x_adv, expected.x_adv)
        assert torch.equal(found.loss, expected.loss)
        assert torch.equal(again, search)
        assert torch.equal(aimed.target, targeted.target)


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model, x = _body(4), X.clone()
    weights = list(model.parameters())
    for name in FEW:
        assert torch.equal(
            rp.certifier(name)(model, x, Y, BALL).margin, rp.certifier(name)(_body(4), X, Y, BALL).margin
        )
        assert rp.certifier(name).bounds(model, x, BALL).shape == (6, 4)
    assert torch.equal(SignStep()(model, x, Y, WIDE, seed=0).x_adv, SignStep()(_body(4), X, Y, WIDE, seed=0).x_adv)
    assert all(a is b for a, b in zip(weights, model.parameters(), strict=True))


@pytest.fixture
def group(tmp_path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def _compiled_in_place() -> nn.Module:
    model = _body(4)
    model.compile(backend="eager")
    return model


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "compiled": lambda: torch.compile(_body(4), backend="eager"),
    "compiled in place": _compiled_in_place,
    "DataParallel": lambda: nn.DataParallel(_body(4)),
    "DistributedDataParallel": lambda: nn.parallel.DistributedDataParallel(_body(4)),
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(_body(4)),
    "compiled inside": lambda: nn.Sequential(nn.Identity(), torch.compile(_body(4), backend="eager")),
    "parallel inside": lambda: Applied(nn.DataParallel(_body(4)), lambda z: z),
    "twice": lambda: nn.DataParallel(torch.compile(_body(4), backend="eager")),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_that_compute_the_same_are_taken_off(wrapper: str, group) -> None:
    model, plain = WRAPPED[wrapper](), _body(4)
    model.train()
    for name in CERTIFIERS:
        certifier = rp.certifier(name)
        torch.testing.assert_close(certifier(model, X, Y, BALL).margin, certifier(plain, X, Y, BALL).margin)
        assert certifier.bounds(model, X, BALL).shape == (6, 4)
    for name in ATTACKS:
        found = rp.attack(name)(model, X, Y, WIDE, seed=0)
        assert torch.equal(found.x_adv, rp.attack(name)(plain, X, Y, WIDE, seed=0).x_adv)
    assert all(module.training for module in model.modules())


def test_a_wrapper_with_a_hook_is_not_taken_off() -> None:
    model = nn.DataParallel(_body(4))
    model.register_forward_hook(lambda module, args, out: -out)
    for component in (SignStep(), Boxes()):
        with pytest.raises(rp.ArgumentError, match="hook on its wrapper DataParallel"):
            component(model, X, Y, BALL)
    inside = nn.DataParallel(_body(4))
    inside.module.register_forward_hook(lambda module, args, out: -out)  # the hint
    assert torch.equal(SignStep()(inside, X, Y, BALL).logits.argmax(1), inside(X).argmax(1))
    assert unwrapped(inside) is inside.module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: torch.jit.script(_body(4)), TORCHSCRIPT),
        (lambda: torch.jit.trace(_body(4), X), TORCHSCRIPT),
        (lambda: torch.jit.freeze(torch.jit.script(_body(4))), TORCHSCRIPT),
        (lambda: nn.Sequential(nn.Identity(), torch.jit.script(_body(4))), TORCHSCRIPT),
        (lambda: torch.ao.quantization.quantize_dynamic(_body(4), {nn.Linear}, dtype=torch.qint8), QUANTISED),
    ],
    ids=["scripted", "traced", "frozen", "scripted inside", "quantised"],
)
def test_models_that_nobody_can_read_are_refused_with_one_sentence(make, why) -> None:
    model = make()
    for name in CERTIFIERS:
        certificate = rp.certifier(name)(model, X, Y, BALL)
        assert set(certificate.messages) - {""} == {why}
        assert not certificate.certified.any()
        with pytest.raises(rp.UnsupportedModelError) as error:
            rp.certifier(name).bounds(model, X, BALL)
        assert str(error.value) == why
    for name in ATTACKS:
        if why == QUANTISED:
            with pytest.raises(rp.UnsupportedModelError, match="floating point that it was made from"):
                rp.attack(name)(model, X, Y, WIDE, seed=0)
        else:
            found = rp.attack(name)(model, X, Y, WIDE, seed=0)
            torch.testing.assert_close(found.x_adv, rp.attack(name)(_body(4), X, Y, WIDE, seed=0).x_adv)


ONE: dict[str, Callable[[], nn.Module]] = {
    "(n, 1)": lambda: _body(1),
    "(n,)": lambda: Applied(_body(1), lambda z: z.squeeze(1)),
    "sigmoid module": lambda: nn.Sequential(*_body(1), nn.Sigmoid()),
    "sigmoid function": lambda: Applied(_body(1), torch.sigmoid),
}


@pytest.mark.parametrize("labels", [torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", ONE)
def test_a_model_of_one_output_works(shape: str, labels: torch.dtype) -> None:
    """Its margin is its output, so the answers are those of the two logits (-z/2, z/2)."""
    model, z = ONE[shape](), _body(1)(X).detach()[:, 0]
    y = (z > 0).to(labels)
    y[0] = 1 - y[0].long()
    radius = torch.tensor([1e-4] * 6)
    for name in CERTIFIERS:
        certifier = rp.certifier(name)
        certificate = certifier(model, X, y, rp.Linf(eps=radius, clip=(0.0, 1.0)))
        assert certificate.verdicts == (rp.Verdict.FALSIFIED, *[rp.Verdict.CERTIFIED] * 5)
        told = certificate.margin.isfinite()  # a search bounds nothing that is falsified before
        assert told[1:].all()
        torch.testing.assert_close(certificate.margin[told], torch.where(y.bool(), z, -z)[told], atol=1e-3, rtol=0)
        bounds = certifier.bounds(model, X, BALL, rp.margin_spec(y, 2, dtype=X.dtype))
        assert bounds.contains(torch.where(y.bool(), z, -z).unsqueeze(1), tolerance=1e-6).all()
        assert certifier.bounds(model, X, BALL).shape == (6, 2)
    for name in ATTACKS:
        found = rp.attack(name)(model, X, y, rp.Linf(eps=1.0, clip=(0.0, 1.0)), seed=0)
        assert torch.equal(found.success, (_body(1)(found.x_adv)[:, 0] > 0) != y.bool())
        assert found.success[0]
        assert rp.attack(name).search(model, X, y, WIDE).shape == X.shape
    comparison = rp.compare(model, X, y.long(), BALL, [ATTACKS[0] if ATTACKS else SignStep(), *FEW])
    assert not any(row.error for row in comparison.rows)
    assert not comparison.crossings


MONOTONE: dict[str, Callable[[], nn.Module]] = {
    "Softmax": lambda: nn.Sequential(*_body(4), nn.Softmax(1)),
    "LogSoftmax": lambda: nn.Sequential(_body(4), nn.LogSoftmax(dim=-1)),
    "inside, before the identity": lambda: nn.Sequential(nn.Sequential(*_body(4), nn.Softmax(1)), nn.Identity()),
    "F.softmax": lambda: Applied(_body(4), lambda z: F.softmax(z, 1)),
    "F.log_softmax": lambda: Applied(_body(4), lambda z: F.log_softmax(input=z, dim=1)),
    "twice": lambda: nn.Sequential(_body(4), nn.LogSoftmax(1), nn.Softmax(1)),
    "method": lambda: Applied(_body(4), lambda z: z.softmax(-1)),
    "behind a layer in place": lambda: Applied(
        nn.Sequential(nn.LeakyReLU(1.0, inplace=True), _body(4)), lambda z: z.log_softmax(1)
    ),
}


@pytest.mark.parametrize("last", MONOTONE)
def test_a_monotone_last_layer_is_left_out_of_margins(last: str) -> None:
    model, plain = MONOTONE[last](), _body(4)
    for name in CERTIFIERS:
        certificate, expected = (rp.certifier(name)(m, X, Y, BALL) for m in (model, plain))
        assert certificate.verdicts == expected.verdicts
        torch.testing.assert_close(certificate.margin, expected.margin)
        torch.testing.assert_close(certificate.logits, expected.logits)
        assert LEFT_OUT in certificate.soundness
        assert LEFT_OUT not in expected.soundness
    for name in ATTACKS:
        found, expected = (rp.attack(name)(m, X, Y, WIDE, seed=0) for m in (model, plain))
        assert torch.equal(found.x_adv, expected.x_adv)
        torch.testing.assert_close(found.loss, expected.loss)
    comparison = rp.compare(model, X, Y, WIDE, [SignStep(), *FEW], seed=0)
    assert not comparison.crossings
    assert not any(row.error for row in comparison.rows)


def test_a_softmax_behind_untraceable_code_is_left_out() -> None:
    found = SignStep()(Undecided(), X, Y, WIDE, seed=0)
    torch.testing.assert_close(found.loss, SignStep()(_body(4), X, Y, WIDE, seed=0).loss)


@pytest.mark.parametrize(
    "model",
    [
        Applied(_body(4), lambda z: F.softmax(z, 0)),
        Applied(_body(4), lambda z: F.softmax(z, 1) * torch.tensor([1.0, 1.0, 1.0, 0.5])),
        Applied(_body(4), lambda z: F.softmax(z, 1) + z),
    ],
    ids=["over the batch", "weighted", "read twice"],
)
def test_what_is_no_monotone_last_layer_stays(model: nn.Module) -> None:
    with torch.no_grad():
        assert torch.equal(decided(model, X)[1], model(X))


def test_a_forward_that_changes_its_input() -> None:
    model = nn.Sequential(nn.LeakyReLU(0.2, inplace=True), *_body(4))
    plain, x = nn.Sequential(nn.LeakyReLU(0.2), *_body(4)), X - 0.5
    ball, before = rp.Linf(eps=0.1, clip=(-1.0, 1.0)), (X - 0.5).clone()
    y = plain(x.clone()).argmax(1)
    for name in CERTIFIERS:
        certifier = rp.certifier(name)
        torch.testing.assert_close(certifier(model, x, y, ball).margin, certifier(plain, x, y, ball).margin)
        certifier.bounds(model, x, ball)
        assert torch.equal(x, before)
    for name in ATTACKS:
        assert torch.equal(
            rp.attack(name)(model, x, y, ball, seed=0).x_adv, rp.attack(name)(plain, x, y, ball, seed=0).x_adv
        )
        rp.attack(name).search(model, x, y, ball)
        assert torch.equal(x, before)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "expanded": lambda x: x[:1].expand(x.shape),
    "requires gradients": lambda x: x.clone().requires_grad_(),
    "at the border": torch.round,
    "one sample": lambda x: x[:1],
    "no sample": lambda x: x[:0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_input(layout: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).eval()
    x = LAYOUTS[layout](torch.rand(4, 2, 6, 6))
    plain = x.detach().contiguous().clone()
    y = model(plain).argmax(1)
    for name in CERTIFIERS:
        certifier = rp.certifier(name)
        torch.testing.assert_close(certifier(model, x, y, BALL).margin, certifier(model, plain, y, BALL).margin)
        assert certifier.bounds(model, x, BALL).shape == (len(x), 4)
    for name in ATTACKS:
        found, expected = (rp.attack(name)(model, t, y, WIDE, seed=0) for t in (x, plain))
        torch.testing.assert_close(found.x_adv, expected.x_adv)
        assert not found.x_adv.requires_grad
        assert rp.attack(name).search(model, x, y, WIDE).shape == x.shape
    assert x.grad is None if x.is_leaf else True


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32])
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    for name in CERTIFIERS:
        certifier = rp.certifier(name)
        assert torch.equal(certifier(_body(4), X, Y.to(dtype), BALL).margin, certifier(_body(4), X, Y, BALL).margin)
    for name in ATTACKS:
        found = rp.attack(name)(_body(4), X, Y.to(dtype), WIDE, seed=0)
        assert torch.equal(found.x_adv, rp.attack(name)(_body(4), X, Y, WIDE, seed=0).x_adv)


def test_the_original_is_shared_and_not_copied() -> None:
    """Training sees the parameters of a model whose child is compiled, and copies are as deep as the wrapper."""
    model = nn.Sequential(nn.Linear(5, 5), torch.compile(_body(4), backend="eager"))
    bare = unwrapped(model)
    assert bare[0] is model[0]
    assert [id(p) for p in bare.parameters()] == [id(p) for p in model.parameters()]
    assert unwrapped(copy.deepcopy(bare)) is not bare
    rp.certifier("interval:ibp").bounds(model, X, BALL).lower.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + torch.randn_like(x)).flatten(1)[:, :3]


@pytest.mark.parametrize("name", ["interval:ibp", "interval:crown"])
def test_a_model_that_draws_is_refused_and_leaves_torch_s_random_state(name: str) -> None:
    certifier, model, spec = rp.certifier(name), Noisy(), torch.eye(3).expand(len(X), -1, -1)
    for ask in (
        lambda: certifier.bounds(model, X, BALL),
        lambda: certifier.bounds(model, X, BALL, spec),
        lambda: certifier.lower_bounds(model, X, BALL, spec),
    ):
        before = torch.get_rng_state()
        with pytest.raises(rp.UnsupportedModelError, match="draws random numbers"):
            ask()
        assert torch.equal(torch.get_rng_state(), before)
