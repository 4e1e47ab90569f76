"""Poisoned trainings in a study: one training, bounded and attacked, and asked at every sample of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugins.benchmark.configuration import Configuration, Poisoning
from robust_plugins.benchmark.hashing import component_hash, model_hash, parameters_of, tensor_hash
from robust_plugins.benchmark.planning import Batch, machine, versions, versions_of
from robust_plugins.benchmark.records import POISONING_CERTIFIER, Record, canonical, digest, ranges
from robust_plugins.benchmark.subjects import read_data, read_model, samples_of
from robust_plugins.benchmark.work import POISONED, Answers, Job
from robust_plugins.data import Dataset
from robust_plugins.decisions.results import Verdict
from robust_plugins.intervals import Interval
from robust_plugins.poisoning import SGD, Adam, AdamW, PoisoningAttack, abstract_gradient_training, poisoning_attack
from robust_plugins.poisoning.attacks.builtin import GradientAlignment, LossAscent, RandomPoisoning
from robust_plugins.poisoning.budget_text import parse_budget
from robust_plugins.registry.information import Kind

OPTIMIZERS = {"sgd": SGD, "adam": Adam, "adamw": AdamW}

CERTIFIER = "abstract-gradient-training"
"""The method of the records about what was proved."""


@dataclass(frozen=True, eq=False)
class Case:
    """A training with its data and whoever poisons it, ready to be sent."""

    entry: Poisoning
    model: nn.Module
    batches: list[tuple[Tensor, Tensor]]
    x: Tensor
    y: Tensor
    seed: int
    attacks: tuple[tuple[str, PoisoningAttack], ...]

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides how the training goes, ready for JSON."""
        kept = self.entry.model_dump(exclude={"name", "model", "data", "attacks", "timeout", "train_samples"})
        return kept | {"samples": sum(len(x) for x, _ in self.batches)}

    def hash(self) -> str:
        """The hash of the initial model, the training data in their order, all settings and the budget."""
        data = [tensor_hash(t) for batch in self.batches for t in batch]
        return digest(model_hash(self.model), *data, canonical(self.settings))

    def answers(self) -> Answers:
        """Bounds the training, attacks it, and asks both about every sample: the rows in the order of the records."""
        entry, x, y = self.entry, self.x, self.y
        budget = parse_budget(entry.budget, "budget")
        settings: dict[str, Any] = {
            "loss": "cross_entropy", "optimizer": OPTIMIZERS[entry.optimizer](lr=entry.lr), "epochs": entry.epochs,
            "clip_gradient": entry.clip_gradient,
        }  # fmt: skip
        run = abstract_gradient_training(
            self.model, self.batches, budget, domain=entry.domain, stop_when_vacuous=True, progress=False, **settings
        )
        with torch.no_grad():
            nominal = _two(run.nominal(x)).argmax(1)
        proved, logits = run.certified_prediction(x), run.logits(x)
        least = _least_margin(*_two_bounds(logits), y)
        share = sum(epoch.seconds for epoch in run.history) / len(x)
        found = Answers([])
        for i in range(len(x)):
            wrong, certified = bool(nominal[i] != y[i]), bool(proved[i] == y[i])
            verdict = Verdict.CERTIFIED if certified else Verdict.FALSIFIED if wrong else Verdict.UNKNOWN
            found.rows.append(
                {"verdict": verdict.value, "margin": least[i].item(), "prediction": int(nominal[i]), "seconds": share}
            )
        for _, attack in self.attacks:
            result = attack(
                self.model,
                self.batches,
                budget,
                parameters=list(run.parameters),
                validation=(x, y),
                seed=self.seed,
                **settings,
            )
            z = torch.stack([_two(outputs) for outputs in result.outputs(x)])
            margins = torch.stack([_least_margin(each, each, y) for each in z])
            worst, where = margins.min(0)
            decisions = z.argmax(2)
            for i in range(len(x)):
                wrong_ones = (decisions[:, i] != y[i]).nonzero()
                chosen = int(wrong_ones[0]) if len(wrong_ones) else int(where[i])
                success = bool(len(wrong_ones))
                found.rows.append(
                    {
                        "verdict": (Verdict.FALSIFIED if success else Verdict.UNKNOWN).value,
                        "success": success,
                        "margin": worst[i].item(),
                        "prediction": int(decisions[chosen, i]),
                        "seconds": result.seconds / len(x),
                    }
                )
        return found


def poisoned_batches(configuration: Configuration, folder: Path, created: str) -> Iterator[Batch]:
    """A batch for each poisoned training of a study."""
    for entry in configuration.poisoning:
        for seed in configuration.seeds:
            case, first = _case(configuration, entry, folder, seed)
            own = list(_rows(configuration, case, first, created))
            import cloudpickle

            packed = bytes(cloudpickle.dumps(case))
            job = Job(
                subject=digest(packed),
                kind=POISONED,
                component=b"",
                ball=None,
                samples=tuple(range(len(own))),
                seed=seed,
                threads=configuration.run.threads,
                timeout=entry.timeout,
            )
            identities = [Record(**row, verdict="").identity for row in own]
            yield Batch(job, packed, entry.name, {}, own, identities)


def trained_again(configuration: Configuration, name: str, seed: int, folder: Path) -> dict[tuple[str, ...], Any]:
    """The answers of a poisoned training that is done once more, by the hashes of training, component and input."""
    entry = next(p for p in configuration.poisoning if p.name == name)
    case, first = _case(configuration, entry, folder, seed)
    rows = _rows(configuration, case, first, "")
    return {
        (row["model_hash"], row["component_hash"], row["input_hash"]): answer
        for row, answer in zip(rows, case.answers().rows, strict=True)
    }


def _case(configuration: Configuration, entry: Poisoning, folder: Path, seed: int) -> tuple[Case, int]:
    model_entry = next(m for m in configuration.models if m.name == entry.model)
    data_entry = next(d for d in configuration.data if d.name == entry.data)
    data = read_data(data_entry, folder)
    model = read_model(model_entry, data, folder)
    x, y = samples_of(data_entry, data, model)
    attacks: list[tuple[str, PoisoningAttack]] = [(text, poisoning_attack(text)) for text in entry.attacks]
    if not attacks:
        standard = (RandomPoisoning(), LossAscent(), GradientAlignment())
        attacks = [(attack.name, attack) for attack in standard]
    batches = _training_batches(data, entry, x.dtype, seed)
    return Case(entry, model, batches, x, y, seed, tuple(attacks)), data_entry.first


def _training_batches(data: Dataset, entry: Poisoning, dtype: torch.dtype, seed: int) -> list[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(seed))[: entry.train_samples]
    x, y = data.x_train[order].to(dtype), data.y_train[order].long()
    return list(zip(x.split(entry.batch_size), y.split(entry.batch_size), strict=True))


def _rows(configuration: Configuration, case: Case, first: int, created: str) -> Iterator[dict[str, Any]]:
    """The fields of the rows of the certifier, and of each attack, without their answers."""
    entry, run = case.entry, configuration.run
    budget = parse_budget(entry.budget, "budget")
    said = {field.name: getattr(budget, field.name) for field in fields(budget)}
    samples = [first + i for i in range(len(case.x))]
    parameters = canonical({"training": case.settings, "budget": said})
    common = {
        "model": entry.model, "data": entry.data, "norm": budget.norm if budget.points else "",
        "eps": budget.eps if isinstance(budget.eps, float) else 0.0, "component": entry.name, "method": CERTIFIER,
        "kind": POISONING_CERTIFIER, "parameters": parameters, "seed": case.seed, "model_hash": case.hash(),
        "component_hash": component_hash(CERTIFIER, None, parameters), "versions": versions(CERTIFIER),
        "threads": run.threads, "batch_size": entry.batch_size, "batch": ranges(samples), "machine": machine(),
        "created": created,
    }  # fmt: skip
    kinds = [common]
    for name, attack in case.attacks:
        method, own = _method(name), parameters_of(attack, {"training": case.settings, "budget": said})
        kinds.append(common | {
            "component": f"{entry.name}: {name}", "method": method, "kind": Kind.POISONING_ATTACK.value,
            "parameters": own, "component_hash": component_hash(method, attack, own),
            "versions": versions_of(method, attack),
        })  # fmt: skip
    hashes = [tensor_hash(x) for x in case.x]
    for row in kinds:
        for i, sample in enumerate(samples):
            yield row | {"sample": sample, "label": int(case.y[i]), "input_hash": hashes[i]}


def _method(name: str) -> str:
    return name.partition("(")[0]


def _two(z: Tensor) -> Tensor:
    """Logits of two classes for a model of one output."""
    return torch.cat((-z / 2, z / 2), 1) if z.shape[1] == 1 else z


def _two_bounds(z: Interval) -> tuple[Tensor, Tensor]:
    if z.shape[1] > 1:
        return z.lower, z.upper
    return torch.cat((-z.upper / 2, z.lower / 2), 1), torch.cat((-z.lower / 2, z.upper / 2), 1)


def _least_margin(lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:
    own = lower.gather(1, y.unsqueeze(1)).squeeze(1)
    return own - upper.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
