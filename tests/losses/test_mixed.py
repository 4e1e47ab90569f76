"""The mixed loss: schedules, labels, batch normalisation, options, and other people's training loops."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.by_hand import MIXED, adversarial, fixed, hand_ibp, network, samples, trained
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.losses import L1Penalty, WarmUp
from robust_plugins.losses.batch import Batch

BALL = rp.Linf(eps=0.1, clip=(0, 1))


def _ibp(**parameters: object) -> rp.MixedLoss:
    return rp.MixedLoss(**({"worst": "interval:ibp", "gamma": 0.5, "ball": BALL, "schedule": fixed()} | parameters))


def test_batches_are_counted_where_their_number_is_not_given() -> None:
    loss, seen = _ibp(schedule=rp.Ramp(start=0, end=4, shape="linear")), []
    for epoch in range(3):
        for batch in range(4):
            loss.step(epoch, batch)
            seen.append(loss.epoch)
    assert seen == [0, 0, 0, 0, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3]
    loss.step(2, 9)  # a longer epoch does not reach into the next
    assert loss.epoch == 3
    for epoch in (3, 4, 5):  # once an epoch
        loss.step(epoch, 0)
    assert loss.epoch == 5
    loss.step(8, 1)  # resumed: nothing is known of the epoch before
    assert loss.epoch == 8
    with pytest.raises(rp.ArgumentError, match="batches"):
        loss.step(0, 0, 0)


def test_a_loss_that_is_never_stepped_is_warned_about() -> None:
    loss, model, (x, y) = _ibp(schedule=rp.Ramp(start=1, end=3)), network(), samples()
    for _ in range(99):
        loss(model, x, y)
    with pytest.warns(UserWarning, match=r"100 batches without loss.step"):
        loss(model, x, y)
    for batch in range(150):  # and one that is, is not: warnings are errors here
        loss(model, x, y)
        loss.step(0, batch, 150)
    for loss in (_ibp(), rp.recipe("exp-ibp", ball=BALL, epochs=1, schedule=fixed())):  # nor one that stands still
        for _ in range(101):
            loss(model, x, y)


def test_another_worst_case_is_taken_from_then_on() -> None:
    loss, model, (x, y) = _ibp(), network(), samples()
    before = loss(model, x, y).item()
    loss.worst = "art:fgsm"
    assert not loss.certified
    assert loss(model, x, y).item() < before


def test_the_schedule_ramps_eps_and_the_weight_of_the_worst_case() -> None:
    loss = _ibp(schedule=rp.Ramp(start=1, end=3, shape="linear"))
    model, (x, y) = network(), samples()
    seen = []
    for epoch, batch in ((0, 0), (1, 1), (2, 1), (2, 3)):
        loss.step(epoch, batch, 4)
        terms = loss(model, x, y).terms
        seen.append((terms.eps, terms.gamma))
        assert (terms.worst is None) == (terms.gamma == 1)
    assert seen == [(0, 1), *(pytest.approx(pair) for pair in ((0.025, 0.875), (0.075, 0.625), (0.1, 0.5)))]


def test_gamma_by_itself() -> None:
    loss = _ibp(gamma=rp.Ramp(start=0, end=4, shape="linear", first=1, last=0.5))
    model, (x, y) = network(), samples()
    for epoch, gamma in ((0, 1.0), (2, 0.75), (9, 0.5)):
        loss.step(epoch, 0)
        terms = loss(model, x, y).terms
        assert (terms.eps, terms.gamma) == (0.1, gamma)


def test_training_on_bounds_without_a_ramp_warns() -> None:
    for worst in ("interval:ibp", "lirpa:crown-ibp"):
        with pytest.warns(UserWarning, match="collapses"):
            _ibp(worst=worst, schedule=None)
    rp.MixedLoss(worst="art:fgsm", gamma=0.5, ball=BALL)


def test_one_radius_per_sample() -> None:
    model, (x, y) = network(), samples()
    radii = torch.linspace(0, 0.2, len(x), dtype=x.dtype)
    value = _ibp(gamma=0.0, ball=rp.Linf(eps=radii, clip=(0, 1)), schedule=lambda epoch: 0.5)(model, x, y)
    eps = radii.unsqueeze(1) / 2
    margins = hand_ibp(model, (x - eps).clamp(0, 1), (x + eps).clamp(0, 1), y)
    expected = 0.5 * F.cross_entropy(model(x), y) + 0.5 * F.cross_entropy(-margins, y)
    assert value.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("worst", ["art:fgsm", "interval:ibp", "lirpa:ibp"])
def test_one_logit(worst: str) -> None:
    """The logistic loss of y z, at the end of z's interval that is worse; exact for one linear layer."""
    model, (x, y) = nn.Sequential(nn.Linear(5, 1)).double(), samples(2)
    loss = rp.MixedLoss(worst=worst, gamma=0.0, ball=rp.Linf(eps=0.1, clip=None), schedule=fixed())
    sign = 2 * y - 1
    worst_z = sign * model(x).squeeze(1) - 0.1 * model[0].weight.abs().sum()
    for _ in range(2):
        assert loss(model, x, y).item() == pytest.approx(F.softplus(-worst_z).mean().item(), rel=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_takes_the_end_of_the_interval(outputs: int) -> None:
    model, (x, _) = nn.Sequential(nn.Linear(5, outputs)).double(), samples()
    target = torch.randn(len(x), outputs, dtype=torch.float64)
    value = _ibp(gamma=0.25, ball=rp.Linf(eps=0.1, clip=None))(model, x, target.squeeze(1))
    radius = 0.1 * model[0].weight.abs().sum(1)
    far = (model(x) - target).abs() + radius
    expected = 0.25 * F.mse_loss(model(x), target) + 0.75 * far.square().mean()
    assert value.item() == pytest.approx(expected.item())
    value.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("worst", ["art:fgsm", "interval:ibp"])
def test_batch_norm_sees_clean_inputs_alone(worst: str) -> None:
    model, (x, y) = network(normalise=True), samples()
    model.train()
    alone = copy.deepcopy(model)
    loss = rp.MixedLoss(worst=worst, gamma=0.0, ball=BALL, schedule=fixed())
    reference = copy.deepcopy(model)
    value = loss(model, x, y)
    alone(x)
    for buffer, expected in zip(model.buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected)
    assert all(module.training for module in model.modules())
    if worst == "art:fgsm":
        # The attack comes after the forward pass on the clean inputs, which has moved the running statistics.
        x_adv = adversarial("art:fgsm", alone, x, y, BALL)
        h = reference[0](x)
        mean, variance = h.mean(0), h.var(0, correction=0)
        z = (reference[0](x_adv) - mean) / (variance + 1e-5).sqrt()
        expected = F.cross_entropy(reference[3](reference[2](z)), y)
        assert value.item() == pytest.approx(expected.item())
        value.backward()
        expected.backward()
        torch.testing.assert_close(model[0].weight.grad, reference[0].weight.grad)


def _folded(model: nn.Sequential, mean: Tensor, variance: Tensor) -> nn.Sequential:
    """A network with batch norm after the first layer as one without, its weights functions of the first's."""
    norm = model[1]
    scale = norm.weight / (variance + norm.eps).sqrt()
    folded = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    for layer in (folded[0], folded[2]):
        del layer.weight, layer.bias
    folded[0].weight = model[0].weight * scale.unsqueeze(1)
    folded[0].bias = (model[0].bias - mean) * scale + norm.bias
    folded[2].weight, folded[2].bias = model[3].weight, model[3].bias
    return folded


@pytest.mark.parametrize("worst", ["interval:ibp", "interval:crown-ibp", "lirpa:ibp", "lirpa:crown-ibp"])
def test_bounds_use_the_statistics_of_the_clean_batch(worst: str) -> None:
    model, (x, y) = network(normalise=True), samples()
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 1.5)
        model[1].bias.uniform_(-0.5, 0.5)
    point = _ibp(worst=worst, gamma=0.0, ball=rp.Linf(eps=0.0, clip=(0, 1)))
    terms = point(model, x, y).terms
    assert terms.worst.item() == pytest.approx(terms.clean.item(), rel=1e-6)
    value = _ibp(worst=worst, gamma=0.0)(model, x, y)
    h = model[0](x)
    folded = _folded(model, h.mean(0), h.var(0, correction=0))
    if "crown" in worst:
        assert value.item() > terms.clean.item()
    else:
        margins = hand_ibp(folded, (x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1), y)
        expected = F.cross_entropy(-margins, y)
        assert value.item() == pytest.approx(expected.item(), rel=1e-6)
        if worst.startswith("interval"):  # gradients flow through the statistics, too
            slopes = torch.autograd.grad(value, list(model.parameters()))
            torch.testing.assert_close(slopes, torch.autograd.grad(expected, list(model.parameters())))
    buffers = dict(model.named_buffers())
    assert not any(b.requires_grad for b in buffers.values())
    assert int(buffers["1.num_batches_tracked"]) == 2  # once for each value of a loss


def test_a_batch_norm_used_twice() -> None:
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(self.first(x)).relu()
            return self.last(self.norm(self.first(h)).relu())

    model, (x, y) = Twice().double(), samples()
    at_clean = rp.MixedLoss(worst="art:fgsm", gamma=0.0, ball=rp.Linf(eps=0.0, clip=(0, 1)))
    terms = at_clean(model, x, y).terms
    assert terms.worst.item() == pytest.approx(terms.clean.item())
    with pytest.raises(rp.UnsupportedModelError, match="used 2 times"):
        _ibp()(model, x, y)
    assert torch.isfinite(_ibp()(model.eval(), x, y))


def test_batch_norm_folds_into_the_hand_written_bounds() -> None:
    model, (x, y) = network(normalise=True).eval(), samples()
    value = _ibp(gamma=0.0)(model, x, y)
    norm = model[1]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = nn.Sequential(copy.deepcopy(model[0]), copy.deepcopy(model[3]))
    with torch.no_grad():
        folded[0].weight.mul_(scale.unsqueeze(1))
        folded[0].bias.sub_(norm.running_mean).mul_(scale).add_(norm.bias)
    margins = hand_ibp(folded, (x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1), y)
    assert value.item() == pytest.approx(F.cross_entropy(-margins, y).item())


def test_the_model_is_left_as_found() -> None:
    model, (x, y) = network(normalise=True), samples()
    model[0].bias.requires_grad_(False)
    model[1].eval()
    model.zero_grad()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attack, certifier = rp.attack("art:pgd", steps=2), rp.certifier("interval:ibp")
    loss = _ibp(worst=rp.losses.SmallBox(attack=attack, certifier=certifier, ratio=0.5))
    loss(model, x, y).backward()
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert model[0].bias.grad is None
    assert model[0].weight.grad is not None
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_warm_up_by_hand() -> None:
    model, (x, y) = network(), samples()
    loss = _ibp(gamma=1.0, schedule=lambda epoch: 0.5, regularisers=[WarmUp(weight=0.5, tolerance=0.9)])
    low, up = (x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1)
    z, r = model[0]((low + up) / 2), F.linear((up - low) / 2, model[0].weight.abs())
    tight = max(0.9 - ((up - low) / 2).mean().item() / r.mean().item(), 0) / 0.9
    active, inactive, square = z - r > 0, z + r < 0, (z - z.mean()) ** 2
    assert active.any()
    assert inactive.any()
    balance = 0.0
    for values in ((z[active].sum(), -z[inactive].sum()), (square[active].sum(), square[inactive].sum())):
        a, b = sorted(v.item() for v in values)
        balance += max(0.9 - a / b, 0) / 0.9
    value = loss(model, x, y)
    assert value.terms.parts["WarmUp"].item() == pytest.approx(0.25 * (tight + balance))
    assert value.item() == pytest.approx(F.cross_entropy(model(x), y).item() + 0.25 * (tight + balance))
    value.backward()
    over = _ibp(gamma=1.0, regularisers=[WarmUp()])
    assert over(model, x, y).terms.parts["WarmUp"].item() == 0


def test_warm_up_is_the_mean_over_layers() -> None:
    """Of two layers of which the second repeats the first's intervals, it is the term of one."""
    (x, y), half = samples(), {"gamma": 1.0, "schedule": lambda epoch: 0.5}
    torch.manual_seed(0)
    first, second, head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def term(*layers: nn.Module) -> float:
        loss = _ibp(**half, regularisers=[WarmUp(tolerance=0.9)])
        return loss(nn.Sequential(*layers, head).double(), x, y).terms.parts["WarmUp"].item()

    one, two = term(first, nn.ReLU()), term(first, nn.ReLU(), second, nn.ReLU())
    assert one > 0
    with torch.no_grad():
        first.weight.zero_()
        first.weight[:5] = torch.eye(5)
        first.bias.zero_()
    # What comes out of the first layer is the input itself, which is positive: the second sees a network of its own.
    alone = nn.Linear(5, 8)
    with torch.no_grad():
        alone.weight.copy_(second.weight[:, :5])
        alone.bias.copy_(second.bias)
    together = term(first, nn.ReLU(), second, nn.ReLU())
    assert together == pytest.approx((term(first, nn.ReLU()) + term(alone, nn.ReLU())) / 2)
    assert together != pytest.approx(two)


def test_terms_of_one_name_are_added() -> None:
    model, (x, y) = network(), samples()
    twice = _ibp(gamma=1.0, regularisers=[L1Penalty(weight=0.01), L1Penalty(weight=0.02)])(model, x, y)
    once = _ibp(gamma=1.0, regularisers=[L1Penalty(weight=0.03)])(model, x, y)
    assert twice.terms.parts["L1Penalty"].item() == pytest.approx(once.terms.parts["L1Penalty"].item())
    assert twice.item() == pytest.approx(once.item())
    assert L1Penalty(weight=1.0).penalty(Batch(nn.Sequential(nn.Flatten()), x, y, None)).item() == 0


def test_exp_ibp_where_a_loss_is_zero() -> None:
    """Softmax saturates in single precision."""
    model = nn.Sequential(nn.Linear(5, 4))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([500.0, 0.0, 0.0, 0.0]))
    value = rp.recipe("exp-ibp", ball=BALL, epochs=1, schedule=fixed())(model, torch.rand(6, 5), torch.zeros(6).long())
    value.backward()
    assert value.item() < 1e-30
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_bounds_without_gradients_are_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Detached(rp.Certifier):
        def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
            return rp.certifier("interval:ibp").bounds(model, x, ball, spec).detach()

    model, (x, y) = network(), samples()
    for worst in (Detached(), rp.losses.SmallBox(attack=rp.attack("art:fgsm"), certifier=Detached(), ratio=0.5)):
        for gamma in (0.0, 0.5):
            with pytest.raises(rp.ArgumentError, match="differentiable in the weights"):
                _ibp(worst=worst, gamma=gamma)(model, x, y)
    with pytest.raises(rp.ArgumentError, match="differentiable in the weights"):
        _ibp(worst=Detached())(model, x, torch.zeros(6, 4, dtype=x.dtype))
    with torch.no_grad():
        assert torch.isfinite(_ibp(worst=Detached())(model, x, y))
    assert torch.isfinite(_ibp(worst=Detached())(model.requires_grad_(False), x, y))


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_wrapped_models(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, (x, y) = network(), samples()
    for worst in ("interval:ibp", "art:fgsm"):
        loss = rp.MixedLoss(worst=worst, gamma=0.5, ball=BALL, schedule=fixed())
        expected = torch.autograd.grad(loss(model, x, y), list(model.parameters()))
        found = torch.autograd.grad(loss(wrap(model), x, y), list(model.parameters()))
        torch.testing.assert_close(found, expected)


def test_labels_of_other_kinds() -> None:
    model, (x, y) = network(2), samples(2)
    expected = _ibp()(model, x, y).item()
    for labels in (y.bool(), y.to(torch.uint8), y.int(), y.unsqueeze(1)):
        assert _ibp()(model, x, labels).item() == pytest.approx(expected)


def test_l1_and_the_initialisation() -> None:
    model, (x, y) = network(), samples()
    value = _ibp(gamma=1.0, regularisers=[L1Penalty(weight=0.01)])(model, x, y)
    expected = 0.01 * (model[0].weight.abs().sum() + model[2].weight.abs().sum())
    assert value.terms.parts["L1Penalty"].item() == pytest.approx(expected.item())
    wide = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.Linear(200, 300), nn.Linear(300, 2))
    last, bias = wide[3].weight.clone(), wide[0].bias.clone()
    rp.ibp_initialisation(wide)
    assert torch.equal(wide[3].weight, last)
    assert torch.equal(wide[0].bias, bias)
    for layer, fan_in in ((wide[0], 27), (wide[2], 200)):
        assert layer.weight.std().item() == pytest.approx((2 * torch.pi) ** 0.5 / fan_in, rel=0.1)
    up = nn.Sequential(nn.ConvTranspose2d(30, 64, 3, groups=2), nn.Flatten(), nn.Linear(64, 2))
    rp.ibp_initialisation(up)
    assert up[0].weight.std().item() == pytest.approx((2 * torch.pi) ** 0.5 / (15 * 9), rel=0.1)
    with pytest.raises(rp.ArgumentError, match="linear or convolutional"):
        rp.ibp_initialisation(nn.Sequential(nn.Flatten()))


@pytest.mark.parametrize("worst", ["art:fgsm", "interval:ibp"])
def test_under_autocast(worst: str) -> None:
    model, (x, y) = network().float(), samples()
    loss = rp.MixedLoss(worst=worst, gamma=0.5, ball=BALL, schedule=fixed())
    full = loss(model, x.float(), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss(model, x.float(), y)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.02)
    if worst == "interval:ibp":
        assert half.terms.worst.item() == full.terms.worst.item()  # bounds are not computed in half precision
    half.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("worst", ["art:fgsm", "interval:ibp"])
def test_gradient_accumulation(worst: str) -> None:
    model, (x, y) = network(), samples()
    loss = rp.MixedLoss(worst=worst, gamma=0.5, ball=BALL, schedule=fixed())
    loss(model, x, y).backward()
    whole = [p.grad for p in model.parameters()]
    model.zero_grad()
    for part in (slice(0, 3), slice(3, 6)):
        (loss(model, x[part], y[part]) / 2).backward()
    for parameter, expected in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_a_bare_loop() -> None:
    model, (x, y) = network(), samples()
    loss, optimizer = _ibp(schedule=rp.Ramp(start=0, end=20)), torch.optim.Adam(model.parameters(), lr=0.02)
    values = []
    for epoch in range(60):
        optimizer.zero_grad()
        value = loss(model, x, y)
        value.backward()
        optimizer.step()
        loss.step(epoch, 0, 1)
        values.append(value.item())
    assert values[-1] < min(values[20], 1.0)


_PROCESS = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from support.by_hand import MIXED, samples, trained
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
x, y = samples()
found = [trained(x[rank::2], y[rank::2], *case, DistributedDataParallel) for case in MIXED]
torch.save(found, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_give_the_parameters_of_one(tmp_path: Path) -> None:
    here = Path(__file__).parents[1]  # where `support` is
    processes = [
        subprocess.Popen([sys.executable, "-c", _PROCESS, str(rank), str(tmp_path)], cwd=here) for rank in range(2)
    ]
    expected = [trained(*samples(), *case, lambda model: model) for case in MIXED]
    assert [process.wait(200) for process in processes] == [0, 0]
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)


@pytest.mark.usefixtures("unchecked")
def test_arguments_that_do_not_fit() -> None:
    model, (x, y) = network(), samples()
    for name, wrong in {
        "gamma": "0.5", "schedule": 3, "regularisers": L1Penalty(weight=1.0), "combiner": "mtl", "worst": 3,
        "ball": 0.1, "task": "multi-label",
    }.items():  # fmt: skip
        with pytest.raises(rp.ArgumentError, match=f"`{name}`"):
            _ibp(**{name: wrong})
    for name, parameters in {
        "gamma": {"gamma": lambda epoch: 1.5}, "schedule": {"schedule": lambda epoch: 2.0},
        "y": {"y": torch.tensor([0, 1, 2, 3, 4, 0])}, "model": {"model": lambda x: x},
    }.items():  # fmt: skip
        found = {"model": model, "y": y} | {k: parameters.pop(k) for k in ("model", "y") if k in parameters}
        with pytest.raises(rp.ArgumentError, match=f"`{name}`"):
            _ibp(**parameters)(found["model"], x, found["y"])
    for labels in (y[:3], y - 4, [0] * 6, y.numpy(), y.repeat(2, 1)):
        with pytest.raises(rp.ArgumentError, match="`y`"):
            _ibp()(model, x, labels)
    interval = rp.certifier("interval:ibp")
    with pytest.raises(rp.ArgumentError, match="beta"):
        rp.losses.Blended(tight=interval, loose=interval, beta=2.0)
    with pytest.raises(rp.ArgumentError, match="gamma"):
        _ibp(gamma=1.5)
    with pytest.raises(rp.ArgumentError, match="plain training"):
        _ibp(worst=None)
    with pytest.raises(rp.ArgumentError, match="ball"):
        _ibp(ball=None)
    with pytest.raises(rp.UnknownNameError, match="interval:ibp"):
        _ibp(worst="interval:ipb")
    with pytest.raises(rp.ArgumentError, match="empty"):
        _ibp()(model, x[:0], y[:0])
    with pytest.raises(rp.ArgumentError, match="integers"):
        _ibp()(model, x, y.double())
    with pytest.raises(rp.ArgumentError, match="certifier for numbers"):
        rp.MixedLoss(worst="art:fgsm", gamma=0.5, ball=BALL)(model, x, torch.zeros(6, 4, dtype=x.dtype))
    with pytest.raises(rp.ArgumentError, match="compare two inputs"):
        _ibp(combiner=rp.losses.TRADES())(model, x, y)
    with pytest.raises(rp.ArgumentError, match=r"outputs of shape \(batch, classes\), or one per sample"):
        _ibp()(nn.Sequential(nn.Linear(5, 8), nn.Unflatten(1, (2, 4))).double(), x, y)
    box = rp.losses.SmallBox(attack=rp.attack("art:fgsm"), certifier=rp.certifier("interval:ibp"), ratio=0.5)
    with pytest.raises(rp.ArgumentError, match=r"rp\.Linf"):
        _ibp(worst=box, ball=rp.L2(eps=0.1, clip=None))(model, x, y)
    with pytest.raises(rp.ArgumentError, match="without ReLU"):
        _ibp(schedule=lambda epoch: 0.5, regularisers=[WarmUp()])(nn.Sequential(nn.Linear(5, 4)).double(), x, y)
    for wrong in (lambda: L1Penalty(weight=-1.0), lambda: WarmUp(weight=-1.0), lambda: WarmUp(tolerance=0.0)):
        with pytest.raises(rp.ArgumentError):
            wrong()
