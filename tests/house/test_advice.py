"""Refused arguments: a call that is refused, what its message says, and the call that it advises, which works."""

from __future__ import annotations

import ast
import re
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robust_plugins as rp
from robust_plugins import losses


def net(outputs: int = 3, *, relu: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU() if relu else nn.Tanh(), nn.Linear(5, outputs))


class Pair(nn.Module):
    """Returns its logits and something else."""

    def __init__(self, *, wrapped: bool = False) -> None:
        super().__init__()
        self.net, self.wrapped = net(), wrapped

    def forward(self, x: Tensor) -> Any:
        return self.net(x) if self.wrapped else (self.net(x), x)


class Shaped(nn.Module):
    """Returns one matrix for each sample, or with `flat` one row."""

    def __init__(self, *, flat: bool = False) -> None:
        super().__init__()
        self.net, self.flat = net(6), flat

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if self.flat else self.net(x).view(-1, 2, 3)


def normed(*, frozen: bool = False) -> nn.Module:
    """A network with batch norm in training mode, or with that layer in evaluation mode."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).train()
    if frozen:
        model[1].eval()
    return model


def hooked(model: nn.Module) -> nn.Module:
    model.register_forward_hook(lambda m, args, out: 2 * out)
    return model


class Once:
    """Gives its batches the first time alone."""

    def __init__(self) -> None:
        self.batches = iter(BATCHES)

    def __iter__(self) -> Iterator[Any]:
        return self.batches


X, Y = torch.linspace(0, 1, 24).view(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
BALL = rp.Linf(eps=0.1, clip=(0, 1))
IBP = rp.certifier("interval:ibp")
SHARES = torch.tensor([[0.7, 0.2, 0.1]] * 6)
SMALL = losses.SmallBox(attack=rp.attack("rp:fgsm"), certifier=IBP, ratio=0.4)
BATCHES = [(X, Y), (X, Y)]


def bounds(model: Any = None, x: Any = X, ball: Any = BALL, spec: Any = None) -> Any:
    return IBP.bounds(net() if model is None else model, x, ball, spec)


def certify(y: Any, x: Tensor = X) -> Any:
    return IBP(net(), x, y, BALL)


def attacked(**options: Any) -> Any:
    return rp.attack("rp:fgsm")(net(), X, Y, BALL, **options)


def explained(y: Any) -> Any:
    return rp.explanation_certifier("interval:ibp")(net(), X, y, BALL, delta=1.0)


def loss(x: Any = X, y: Any = Y, model: Any = None, **options: Any) -> Any:
    given = {"worst": IBP, "gamma": 0.5, "ball": BALL, "schedule": rp.Ramp(start=0, end=0), **options}
    return rp.MixedLoss(**given)(net() if model is None else model, x, y)


def fit(**options: Any) -> Any:
    model = options.pop("model", None) or net()
    optimizer = options.pop("optimizer", None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if optimizer is None else optimizer
    optimizer = (
        optimizer(model) if callable(optimizer) and not isinstance(optimizer, torch.optim.Optimizer) else optimizer
    )
    scheduler = options.pop("scheduler", None)
    if callable(scheduler):
        scheduler = scheduler(optimizer)
    given = {"loader": BATCHES, "loss": rp.recipe("standard"), "epochs": 1, "progress": False, **options}
    loader, what = given.pop("loader"), given.pop("loss")
    return rp.fit(model, loader, what, optimizer=optimizer, scheduler=scheduler, **given)


def inference(made: Callable[[], Any]) -> Any:
    with torch.inference_mode():
        return made()


def frozen() -> nn.Module:
    model = net()
    model.requires_grad_(False)
    return model


def thawed() -> nn.Module:
    model = frozen()
    model.requires_grad_(True)
    return model


Call = Callable[[], Any]
CASES: dict[str, tuple[Call, str, Call]] = {
    # what every call does around a component
    "spec": (lambda: bounds(spec=torch.eye(3)), "as rp.margin_spec",
             lambda: bounds(spec=rp.margin_spec(Y, 3, dtype=X.dtype))),
    "ball": (lambda: bounds(ball=0.1), r"rp\.Linf\(eps=0\.1, clip=\(0, 1\)\)",
             lambda: bounds(ball=rp.Linf(eps=0.1, clip=(0, 1)))),
    "list": (lambda: bounds(x=X.tolist()), r"torch\.as_tensor\(x\)", lambda: bounds(x=torch.as_tensor(X.tolist()))),
    "one sample": (lambda: bounds(x=X[0]), r"x\.unsqueeze\(0\)", lambda: bounds(x=X[0].unsqueeze(0))),
    "half": (lambda: bounds(net().half(), X.half()), r"with \.float\(\)",
        lambda: bounds(net().half().float(), X.half().float())),
    "sparse": (lambda: bounds(x=X.to_sparse()), r"x\.to_dense\(\)", lambda: bounds(x=X.to_sparse().to_dense())),
    "seed": (lambda: attacked(seed=1.5), "Take 0, or None", lambda: (attacked(seed=0), attacked(seed=None))),
    "radii": (lambda: attacked(eps=0.1), r"Give \[0\.1\], or that radius", lambda: attacked(eps=[0.1])),
    "half model": (lambda: bounds(net().half(), X), r"with model\.float\(\)", lambda: bounds(net().half().float(), X)),
    "not finite": (lambda: bounds(x=torch.where(X > 0.9, torch.nan, X)), r"x\.isfinite\(\)",
                   lambda: bounds(x=torch.where(X > 0.9, torch.nan, X).nan_to_num(1.0))),
    "outside": (lambda: bounds(x=3 * X), "Scale or clamp x, or give the ball the range",
                lambda: (bounds(x=(3 * X).clamp(0, 1)), bounds(x=3 * X, ball=rp.Linf(eps=0.1, clip=(0, 3))))),
    "one-hot": (lambda: certify(SHARES), r"y\.argmax\(1\)", lambda: certify(SHARES.argmax(1))),
    "label tuple": (lambda: explained(tuple(Y.tolist())), r"torch\.tensor\(y\)",
                    lambda: explained(torch.tensor(Y.tolist()))),
    "labels from one": (lambda: certify(Y + 1), "Count classes from zero", lambda: certify(Y + 1 - 1)),
    "pair": (lambda: bounds(Pair()), "forward returns only the logits", lambda: bounds(Pair(wrapped=True))),
    "matrix": (lambda: bounds(Shaped()), "one row of logits for each sample", lambda: bounds(Shaped(flat=True))),
    "dtype": (lambda: bounds(x=X.double()), r"x\.to\(next\(model\.parameters\(\)\)\)",
              lambda: bounds(x=X.double().to(next(net().parameters())))),
    "function": (lambda: bounds(torch.sin), "Wrap a function in a small nn.Module",
        lambda: bounds(nn.Sequential(net()))),
    "chunk": (lambda: rp.certifier("interval:ibp", batch_size=0), "None fits memory",
              lambda: rp.certifier("interval:ibp", batch_size=None)),
    "hook on a wrapper": (lambda: bounds(hooked(nn.DataParallel(net()))),
        "Register the hook on the module that is wrapped",
                          lambda: bounds(nn.DataParallel(hooked(net())))),
    # losses
    "no worst": (lambda: loss(worst=None), "gamma is 1", lambda: loss(worst=None, gamma=1.0)),
    "no ball": (lambda: loss(ball=None), "rp.Linf", lambda: loss(ball=rp.Linf(eps=0.1, clip=None))),
    "gamma": (lambda: loss(gamma=2), "Try 0.5", lambda: loss(gamma=0.5)),
    "regularisers": (lambda: loss(regularisers="l1"), r"L1Penalty\(weight=1e-5\)",
                     lambda: loss(regularisers=[losses.L1Penalty(weight=1e-5)])),
    "schedule": (lambda: loss(schedule=3), r"rp\.Ramp\(start=1, end=6\)",
                 lambda: loss(schedule=rp.Ramp(start=1, end=6))),
    "no batch": (lambda: loss(X[:0], Y[:0]), "Leave the batch out", lambda: loss()),
    "loss of a list": (lambda: loss(X.tolist()), r"torch\.as_tensor\(x\)", lambda: loss(torch.as_tensor(X.tolist()))),
    "labels of a list": (lambda: loss(y=Y.tolist()), r"torch\.as_tensor\(y\)",
                         lambda: loss(y=torch.as_tensor(Y.tolist()))),
    "one label": (lambda: loss(y=Y[:1]), "one per sample", lambda: loss(y=Y)),
    "numbers": (lambda: loss(y=Y + 5), 'task="regression"', lambda: loss(y=(Y + 5.0), model=net(1), task="regression")),
    "one output": (lambda: loss(model=net(1), task="classification"), 'task="binary"',
                   lambda: loss(model=net(1), y=Y % 2, task="binary")),
    "several as binary": (lambda: loss(task="binary"), 'task="classification"', lambda: loss(task="classification")),
    "signs": (lambda: loss(model=net(1), y=(Y % 2) * 2.0 - 1, task="binary"), r"\(y \+ 1\) / 2",
              lambda: loss(model=net(1), y=((Y % 2) * 2.0 - 1 + 1) / 2, task="binary")),
    "shares with MART": (lambda: loss(y=SHARES, worst=losses.Diverging(), combiner=losses.MART(),
                                      task="classification"), r"y\.argmax\(1\), or TRADES",
                         lambda: (loss(y=SHARES.argmax(1), worst=losses.Diverging(), combiner=losses.MART()),
                                  loss(y=SHARES, worst=losses.Diverging(), combiner=losses.TRADES(),
                                       task="classification"))),
    "numbers attacked": (lambda: loss(y=X[:, :1], model=net(1), worst=rp.attack("rp:fgsm"), task="regression"),
                         "Use a certifier for numbers", lambda: loss(y=X[:, :1], model=net(1), task="regression")),
    "under inference mode": (lambda: inference(loss), r"Leave it, or evaluate under torch\.no_grad",
                             lambda: (loss(), torch.no_grad()(loss)())),
    "loss of a function": (lambda: loss(model=torch.sin), "Wrap a function in an nn.Module",
                           lambda: loss(model=nn.Sequential(net()))),
    "loss of a pair": (lambda: loss(model=Pair()), "one row, or one number", lambda: loss(model=Pair(wrapped=True))),
    "penalty": (lambda: losses.L1Penalty(weight=-1), "0 switches the term off", lambda: losses.L1Penalty(weight=0)),
    "ramp": (lambda: rp.Ramp(start=3, end=1), r"Ramp\(start=0, end=10\)", lambda: rp.Ramp(start=0, end=10)),
    "shape of a ramp": (lambda: rp.Ramp(start=0, end=1, shape="steep"), "Choose one of them",
                        lambda: rp.Ramp(start=0, end=1, shape="linear")),
    "warm up": (lambda: losses.WarmUp(tolerance=0), "Try 0.5", lambda: losses.WarmUp(tolerance=0.5)),
    "warm up without ReLU": (lambda: loss(model=net(relu=False), regularisers=[losses.WarmUp()],
                                           schedule=lambda epoch: 0.5), "Leave the regulariser out",
                             lambda: loss(model=net(relu=False))),
    "nothing to initialise": (lambda: rp.ibp_initialisation(nn.ReLU()), "There is nothing to initialise",
                              lambda: rp.ibp_initialisation(net())),
    "explained numbers": (lambda: loss(y=X[:, :1], model=net(1), task="regression",
                                       regularisers=[losses.L2Penalty()]), "Leave it out",
                          lambda: loss(y=X[:, :1], model=net(1), task="regression")),
    "steps": (lambda: losses.Diverging(steps=0), "Take one or more", lambda: losses.Diverging(steps=1)),
    "beta": (lambda: losses.HessianPenalty(beta=0), "For example 10", lambda: losses.HessianPenalty(beta=10)),
    "ratio": (lambda: losses.SmallBox(attack=rp.attack("rp:fgsm"), certifier=IBP, ratio=0), "For example 0.4",
              lambda: losses.SmallBox(attack=rp.attack("rp:fgsm"), certifier=IBP, ratio=0.4)),
    "recipe without a ball": (lambda: rp.recipe("ibp", ball=0.1, epochs=10), r"See rp\.MixedLoss",
        lambda: rp.recipe("ibp", ball=BALL, epochs=10)),
    "two inputs": (lambda: loss(combiner=losses.TRADES()), "compare two inputs",
                   lambda: loss(combiner=losses.TRADES(), worst=losses.Diverging())),
    "no divergence": (lambda: losses.TRADES(beta=-1), "0 switches the divergence off", lambda: losses.TRADES(beta=0)),
    "bounds alone": (lambda: losses.MixedMargins(attack=rp.attack("rp:fgsm"), alpha=2), "1 is the bounds alone",
                     lambda: losses.MixedMargins(attack=rp.attack("rp:fgsm"), alpha=1)),
    "units": (lambda: losses.Diverging(step=0), "in units of eps", lambda: losses.Diverging(step=0.1)),
    "fixed": (lambda: rp.GradientCertLoss(ball=BALL, radius=-1), "0 keeps parameters fixed",
              lambda: rp.GradientCertLoss(ball=BALL, radius=0)),
    "epoch": (lambda: rp.GradientCertLoss(ball=BALL, schedule=rp.Ramp(start=0, end=3))(net(), X, Y),
              "call with epoch=epoch",
              lambda: rp.GradientCertLoss(ball=BALL, schedule=rp.Ramp(start=0, end=3))(net(), X, Y, epoch=1)),
    "task": (lambda: loss(task="classes"), "What are the labels", lambda: loss(task="classification")),
    "steep schedule": (lambda: loss(schedule=lambda epoch: 2.0), "give the ball the eps of the end",
                       lambda: loss(schedule=lambda epoch: 1.0, ball=rp.Linf(eps=0.2, clip=(0, 1)))),
    "endless ramp": (lambda: rp.Ramp(start=0, end=1, first=float("inf")), "For a factor, leave them out",
                     lambda: rp.Ramp(start=0, end=1)),
    "recipe's epochs": (lambda: rp.recipe("ibp", ball=BALL, epochs=0), "As many as will be trained",
                        lambda: rp.recipe("ibp", ball=BALL, epochs=10)),
    "blended": (lambda: losses.Blended(tight=IBP, loose=IBP, beta=2), "Try None",
                lambda: losses.Blended(tight=IBP, loose=IBP, beta=None)),
    "round small box": (lambda: loss(worst=SMALL, ball=rp.L2(eps=0.1, clip=None)), "a box to lie in",
                        lambda: loss(worst=SMALL, ball=rp.Linf(eps=0.1, clip=None))),
    "bytes": (lambda: loss((255 * X).byte()), r"x\.float\(\) / 255", lambda: loss((255 * X).byte().float() / 255)),
    "double": (lambda: loss(X.double()), r"Convert them with x\.to\(", lambda: loss(X.double().to(torch.float32))),
    "batch of one": (lambda: loss(X[:1], Y[:1], model=normed(), worst=None, gamma=1.0), "drop_last=True.*its eval",
                     lambda: (loss(model=normed(), worst=None, gamma=1.0),
                              loss(X[:1], Y[:1], model=normed(frozen=True), worst=None, gamma=1.0))),
    # training
    "folder": (lambda: fit(checkpoint="/dev/null/run"), "Name another one",
               lambda: fit(checkpoint=tempfile.mkdtemp())),
    "once": (lambda: fit(loader=Once(), epochs=2), "a DataLoader or a list",
        lambda: fit(loader=list(Once()), epochs=2)),
    "epochs": (lambda: fit(epochs=0), "Take one or more", lambda: fit(epochs=1)),
    "generator": (lambda: fit(loader=(b for b in BATCHES), epochs=2), "make a list of its batches",
                  lambda: fit(loader=list(iter(BATCHES)), epochs=2)),
    "samples alone": (lambda: fit(loader=TensorDataset(X, Y)), "DataLoader",
                      lambda: fit(loader=DataLoader(TensorDataset(X, Y), batch_size=128, shuffle=True))),
    "drop_last": (lambda: fit(loader=DataLoader(TensorDataset(X, Y), batch_size=10, drop_last=True)),
        "must not be larger",
                  lambda: fit(loader=DataLoader(TensorDataset(X, Y), batch_size=3, drop_last=True))),
    "trained function": (lambda: fit(model=torch.sin, optimizer=torch.optim.SGD(net().parameters(), lr=0.1)),
        "Wrap it in one",
                         lambda: fit(model=nn.Sequential(net()))),
    "no optimizer": (lambda: fit(optimizer="adam"), r"torch\.optim\.Adam\(model\.parameters\(\)\)",
                     lambda: fit(optimizer=lambda m: torch.optim.Adam(m.parameters()))),
    "lbfgs": (lambda: fit(optimizer=lambda m: torch.optim.LBFGS(m.parameters())),
        r"torch\.optim\.Adam or torch\.optim\.SGD",
              lambda: fit(optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1))),
    "frozen": (lambda: fit(model=frozen()), r"model\.requires_grad_\(True\)", lambda: fit(model=thawed())),
    "made in inference mode": (lambda: fit(model=inference(net)), r"copy\.deepcopy\(model\), made outside of it",
                               lambda: (fit(model=net()), fit(model=deepcopy(inference(net))))),
    "another's optimizer": (lambda: fit(optimizer=lambda m: torch.optim.Adam(net().parameters())),
                            r"torch\.optim\.Adam\(model\.parameters\(\)\)",
                            lambda: fit(optimizer=lambda m: torch.optim.Adam(m.parameters()))),
    "no scheduler": (lambda: fit(scheduler=3), r"StepLR\(optimizer, step_size=10\)",
                     lambda: fit(scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=10))),
    "another's scheduler": (
        lambda: fit(scheduler=lambda o: torch.optim.lr_scheduler.StepLR(torch.optim.SGD(net().parameters(), 0.1), 1)),
        "Make it anew", lambda: fit(scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1))),
    "rising plateau": (lambda: fit(scheduler=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, mode="max")),
        "mode='min'",
                       lambda: fit(scheduler=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, mode="min"))),
    "one cycle": (lambda: fit(scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=7)),
                  "total_steps=epochs",
                  lambda: fit(scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=1))),
    "evaluate": (lambda: fit(evaluate=3), "rp.Scores",
        lambda: fit(evaluate=rp.Scores(x=X, y=Y, ball=BALL, attack=None))),
    "no scores": (lambda: fit(evaluate=lambda m: 0.9), r'\{"clean": 0\.9\}',
        lambda: fit(evaluate=lambda m: {"clean": 0.9})),
    "clipping": (lambda: fit(clip_gradient=0), "Try 10", lambda: fit(clip_gradient=10)),
    "recipe's name": (lambda: fit(loss="standard"), r'rp\.recipe\("standard"\)',
        lambda: fit(loss=rp.recipe("standard"))),
    "dictionaries": (lambda: fit(loader=[{"image": X,
        "label": Y}]), r'\[\(b\["image"\], b\["label"\]\) for b in loader\]',
                     lambda: fit(loader=[(b["image"], b["label"]) for b in [{"image": X, "label": Y}]])),
    "loss of each": (lambda: fit(loss=lambda m, x, y: m(x).sum(1)), "Take the mean",
                     lambda: fit(loss=lambda m, x, y: m(x).sum(1).mean())),
    "detached loss": (lambda: fit(loss=lambda m, x, y: m(x).mean().detach()), r"without detach\(\)",
                      lambda: fit(loss=lambda m, x, y: m(x).mean())),
    "scored shares": (lambda: rp.Scores(x=X, y=SHARES, ball=BALL, attack=None)(net()), r"y\.argmax\(1\)",
                      lambda: rp.Scores(x=X, y=SHARES.argmax(1), ball=BALL, attack=None)(net())),
    "scores of nothing": (lambda: rp.Scores(x=X[:0], y=Y[:0], ball=BALL)(net()), "Evaluate on some samples",
                          lambda: rp.Scores(x=X, y=Y, ball=BALL, attack=None)(net())),
}  # fmt: skip


@cache
def told(name: str) -> str:
    """The message of the call that is refused."""
    with pytest.raises(rp.ArgumentError) as caught:
        CASES[name][0]()
    return str(caught.value)


@pytest.mark.usefixtures("unchecked")  # the checker of types would be first
@pytest.mark.parametrize("name", CASES)
def test_what_a_message_advises_works(name: str) -> None:
    _, message, advised = CASES[name]
    assert re.search(message, told(name)), told(name)
    advised()


PACKAGE = Path(rp.__file__).parent
ELSEWHERE: tuple[str, ...] = (
    ".to(x.device)", "y.to('{}')", "torch.export.Dim", "delete the file to begin anew", "Load its full state dict",
    "The worst case needs one", "That of one epoch", "0 is no clean loss", "only the clean loss would be trained",
    "Name another file", "Name such a file", "Update robust_plugins", "Load it with", "give its figures",
    "Save the result again", "Leave it out", ".load(path, model)", "Make it as it was made for training",
    "Give y=None", "Scale bytes to the range", "Give the samples and the labels as tensors",
    "Return the numbers before they become probabilities", "Compare the shape with the model's first layer",
    "names become numbers by their place",
)  # fmt: skip
"""Hints that say what a value means, or that a test of the part itself tries."""


def hints() -> Iterator[tuple[str, str]]:
    """Each hint of a refused argument, with {} for what is put in, and its file."""
    for part in ("harness", "losses", "training"):
        for path in sorted((PACKAGE / part).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ArgumentError":
                    for keyword in node.keywords:
                        if keyword.arg == "hint" and isinstance(keyword.value, ast.JoinedStr):
                            parts = (
                                str(v.value) if isinstance(v, ast.Constant) else "{}" for v in keyword.value.values
                            )
                            yield "".join(parts), path.name
                        elif keyword.arg == "hint" and isinstance(keyword.value, ast.Constant):
                            yield str(keyword.value.value), path.name


@pytest.mark.usefixtures("unchecked")
def test_every_hint_is_tried() -> None:
    said = [told(name) for name in CASES]
    found = list(hints())
    assert len(found) > 60
    untried = [
        (text, place)
        for text, place in found
        if not any(part in text for part in ELSEWHERE)
        and not any(re.search(re.escape(text).replace(r"\{\}", ".*"), s) for s in said)
    ]
    assert not untried, untried
