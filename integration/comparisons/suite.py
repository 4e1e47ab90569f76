"""The comparisons that `compare.py` runs: for each what is compared with what, its lines, and what was left out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import attack_speed
import bound_speed
import gradient_bounds
import torch
import training_speed
from paired import Line, line, lines, seconds
from torch import nn

import robust_plugins as rp


@dataclass
class Section:
    """One comparison."""

    title: str
    text: str
    """What a ratio is of, in a sentence or two."""
    lines: list[Line] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """What could not be compared here, why, and what to do about it."""
    packages: tuple[str, ...] = ()
    seconds: float = 0.0
    """The CPU seconds that all of it took."""

    @property
    def versions(self) -> dict[str, str]:
        """Of the packages that are compared, as far as they are installed."""
        return {name: version for name in self.packages if (version := _version(name))}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _lacking(section: Section, **packages: str) -> bool:
    """Whether one of these modules is missing; the section then says so, and how it is installed."""
    missing = [name for name in packages if find_spec(name) is None]
    section.skipped += [f"{name} is not installed: {packages[name]}" for name in missing]
    return bool(missing)


def attacks(quick: bool, vnncomp: Path | None) -> Section:
    found = Section(
        "Attacks: PGD",
        "The same steps of projected gradient descent from the same kind of start, against the shortest loop that "
        "PyTorch allows. `art:pgd` also keeps the best iterate, checks its arguments and recomputes what it reports.",
        packages=("adversarial-robustness-toolbox", "torchattacks", "foolbox"),
    )
    _lacking(found, torchattacks=attack_speed.INSTALL, foolbox=attack_speed.INSTALL)
    if _lacking(found, art='pip install "robust_plugins[art]"'):
        return found
    batch, steps = (32, 5) if quick else (128, 40)
    for name, model in attack_speed.networks().items():
        x = torch.rand(batch, 1, 28, 28, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            y = model(x).argmax(1)
        runs = attack_speed.contenders(model, x, y, steps=steps)
        found.lines += lines(
            f"{name}, {steps} steps, batch {batch}", runs, base="minimal loop", repeats=2 if quick else 9
        )
    return found


def certifiers(quick: bool, vnncomp: Path | None) -> Section:
    found = Section(
        "Certifiers: bounds of margins",
        "The same bounds of the margins of a batch: interval propagation against a loop by hand in PyTorch, CROWN "
        "against auto_LiRPA called directly on a module that is built already. The certifiers check their arguments "
        "and that the model is the one they know.",
        packages=("auto_LiRPA",),
    )
    lirpa = not _lacking(found, auto_LiRPA="pip install --no-deps auto_LiRPA==0.3")
    batch, few, repeats = (16, 4, 2) if quick else (256, 32, 21)
    for name, (model, shape) in bound_speed.models().items():
        if lirpa:
            runs = bound_speed.contenders(model, shape, batch)
            runs = {"loop by hand": runs["torch"], "auto_LiRPA": runs["direct"], "lirpa:ibp": runs["adapter"]}
        else:
            x, _, spec, _ = _bounded(shape, batch)
            runs = {"loop by hand": lambda model=model, x=x, spec=spec: bound_speed.plain_torch(model, x, spec)}
        runs["interval:ibp"] = _bounds("interval:ibp", model, shape, batch)
        with torch.no_grad():
            found.lines += lines(f"IBP, {name}, batch {batch}", runs, base="loop by hand", repeats=repeats)
            if lirpa:
                crown = {
                    "auto_LiRPA": bound_speed.direct_crown(model, *_bounded(shape, few)[::2]),
                    "lirpa:crown": _bounds("lirpa:crown", model, shape, few),
                    "interval:crown": _bounds("interval:crown", model, shape, few),
                }
                found.lines += lines(f"CROWN, {name}, batch {few}", crown, base="auto_LiRPA", repeats=repeats // 3 or 2)
    return found


def _bounded(shape: tuple[int, ...], batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, rp.Ball]:
    torch.manual_seed(1)
    x, y = torch.rand(batch, *shape), torch.randint(0, 10, (batch,))
    return x, y, rp.margin_spec(y, 10), rp.Linf(eps=bound_speed.EPS, clip=(0.0, 1.0))


def _bounds(name: str, model: nn.Module, shape: tuple[int, ...], batch: int) -> Callable[[], object]:
    x, _, spec, ball = _bounded(shape, batch)
    component = rp.certifier(name)
    return lambda: component.bounds(model, x, ball, spec)


BY_HAND = {training_speed.IBP: training_speed.ibp_by_hand, training_speed.PGD: training_speed.pgd_by_hand}


CTRAIN = (
    "CTRAIN 0.6, which wraps the trainings of auto_LiRPA: it needs Gurobi, whose licence not everybody has who would "
    "repeat this, and a numpy below 2, so that it cannot be installed beside the others"
)
"""Why it is not compared."""


def trainings(quick: bool, vnncomp: Path | None) -> Section:
    found = Section(
        "Training: epochs against standard training",
        "An epoch of robust training at full strength over the same batches, against one of standard training by "
        "`rp.fit`: recipes, the least that PyTorch allows for the same loss (by hand), and ART's own trainers.",
        packages=("adversarial-robustness-toolbox", "auto_LiRPA"),
    )
    found.skipped.append(CTRAIN)
    subjects = ["ibp", training_speed.IBP, "crown-ibp", "madry(gamma=0.5)", training_speed.PGD, "trades"]
    if not _lacking(found, auto_LiRPA="pip install --no-deps auto_LiRPA==0.3"):
        subjects.append('ibp(certifier="lirpa:ibp")')
    if not _lacking(found, art='pip install "robust_plugins[art]"'):
        subjects += training_speed.ART
    batch, batches, repeats = (32, 2, 2) if quick else (128, 5, 7)
    data = _images(batch * batches)
    ball = rp.Linf(eps=training_speed.EPS, clip=data.clip)
    for name in training_speed.NETWORKS:
        sizes = {"batch": batch, "batches": batches}
        standard = training_speed.epoch(name, training_speed.plain, data, **sizes)
        for subject in subjects:
            if subject in training_speed.ART:
                run = training_speed.art_epoch(name, data, **sizes, certified=training_speed.ART[subject])
            else:
                loss = BY_HAND.get(subject) or training_speed.recipe(subject, ball)
                run = training_speed.epoch(name, loss, data, **sizes)
            ratios = training_speed.ratios(run, standard, repeats)
            found.lines.append(line(f"{name}, {batches} batches of {batch}", subject, ratios, seconds(run)))
    return found


def _images(count: int) -> rp.Dataset:
    """Random images of the size of MNIST's, which take as long."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(count, 1, 28, 28, generator=generator), torch.randint(10, (count,), generator=generator)
    return rp.Dataset(name="noise", x_train=x, y_train=y, x_test=x, y_test=y, classes=10, clip=(0.0, 1.0))


def poisoning(quick: bool, vnncomp: Path | None) -> Section:
    found = Section(
        "Abstract gradient training",
        "Four steps of training with an interval of every parameter, the nominal ones included, against the same four "
        "steps of SGD by hand: 10 samples of each batch may move by 0.01 in every feature.",
    )
    for width, batch in ((16, 20),) if quick else ((64, 100), (64, 500), (256, 100)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
        batches = [(torch.randn(batch, 64), torch.randint(10, (batch,)))] * 4
        runs = {
            "SGD by hand": _sgd(model, batches),
            'relaxation="none"': _abstract(model, batches, "none"),
            'relaxation="auto"': _abstract(model, batches, "auto"),
        }
        found.lines += lines(
            f"64-{width}-{width}-10, batch {batch}", runs, base="SGD by hand", repeats=2 if quick else 9
        )
    return found


def _sgd(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], object]:
    from copy import deepcopy

    own = deepcopy(model)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.01)

    def run() -> None:
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(own(x), y).backward()
            optimizer.step()

    return run


def _abstract(
    model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], relaxation: str
) -> Callable[[], object]:
    def run() -> None:
        with warnings.catch_warnings():
            # What an untrained network says of random data cannot be certified.
            warnings.filterwarnings("ignore", message=".*the bounds decide no sample")
            rp.abstract_gradient_training(
                model, batches, rp.PoisoningBudget(points=10, eps=0.01), loss="cross_entropy",
                optimizer=rp.SGD(lr=0.01), epochs=1, relaxation=relaxation, progress=False,
            )  # fmt: skip

    return run


def explanations(quick: bool, vnncomp: Path | None) -> Section:
    found = Section(
        "Bounds of explanations",
        "Bounds of the gradient of the true class's logit over the ball of radius 0.01, against that gradient alone by "
        "autograd.",
    )
    batch = 8 if quick else 32
    for name, (model, shape) in gradient_bounds.networks().items():
        torch.manual_seed(1)
        x, y = torch.rand(batch, *shape), torch.randint(0, 10, (batch,))
        runs: dict[str, Callable[[], object]] = {
            "autograd": lambda model=model, x=x, y=y: gradient_bounds.plain(model, x, y)
        }
        for certifier in gradient_bounds.CERTIFIERS:
            component = rp.explanation_certifier(certifier)
            runs[certifier] = lambda c=component, model=model, x=x, y=y: c.bounds(
                model, x, y, gradient_bounds.BALL, of="logit"
            )
        found.lines += lines(f"{name}, batch {batch}", runs, base="autograd", repeats=2 if quick else 9)
    return found


SOLVED = ("unsat", "sat")
EACH = 5.0
"""Wall-clock seconds for an instance, where its own limit is longer."""


def verification(quick: bool, vnncomp: Path | None) -> Section:
    found = Section(
        "Verification against published answers",
        "CPU seconds of `rp.verify` on one thread, files read and answers confirmed, over the wall-clock seconds that "
        "the fastest tool of VNN-COMP published for the same instance on its own machine; of the instances that both "
        "solved. Their times include about a second of starting.",
        packages=("onnx", "onnxruntime"),
    )
    if vnncomp is None or not vnncomp.is_dir():
        where = "no folder was named" if vnncomp is None else f"{vnncomp} is no folder"
        found.skipped.append(f"published instances: {where}; make compare VNNCOMP=FOLDER, with a folder per benchmark")
        return found
    if _lacking(found, onnx='pip install "robust_plugins[onnx]"', onnxruntime='pip install "robust_plugins[onnx]"'):
        return found
    from instances import found_at, rows

    for folder in sorted(path.parent for path in vnncomp.glob("*/answers.csv")):
        budget, most = (5.0, 3) if quick else (20.0, 10**6)
        ratios, ours, wrong, tried = [], [], [], 0
        for row in rows(folder)[:most]:
            if sum(ours) > budget or row["answer"] not in SOLVED or not row.get("fastest_s"):
                continue
            tried += 1
            answers: list[str] = []

            def run(row=row, answers=answers, folder=folder) -> None:
                limit = min(EACH, float(row["timeout_s"]))
                try:
                    network, prop = found_at(folder / row["onnx"]), found_at(folder / row["vnnlib"])
                    answers.append(rp.verify(network, prop, timeout=limit).answer)
                except rp.RobustPluginsError:
                    answers.append("error")

            ours.append(seconds(run))
            if answers[0] in SOLVED:
                ratios.append(ours[-1] / max(float(row["fastest_s"]), 0.01))
            if answers[0] in SOLVED and answers[0] != row["answer"]:
                wrong.append(row["vnnlib"])
        if not ratios:
            found.skipped.append(f"{folder.name}: none of {tried} instances was solved within {EACH:.0f} s")
            continue
        said = f"{len(wrong)} contradict the published answers" if wrong else "no published answer contradicted"
        subject = f"{folder.name}: {len(ratios)} of {tried} solved within {EACH:.0f} s, {said}"
        found.lines.append(line(subject, "rp.verify", ratios, sorted(ours)[len(ours) // 2]))
    return found


SECTIONS: dict[str, Callable[[bool, Path | None], Section]] = {
    "attacks": attacks,
    "certifiers": certifiers,
    "training": trainings,
    "poisoning": poisoning,
    "explanations": explanations,
    "verification": verification,
}
