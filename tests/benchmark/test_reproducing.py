import json
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from click.testing import CliRunner

import robust_plugins as rp
from robust_plugins.benchmark.auditing import audit
from robust_plugins.benchmark.reproducing import reproduce
from robust_plugins.benchmark.store import Store
from robust_plugins.cli import commands
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class Bold(Certifier):
    """Interval propagation over a ball that is smaller by `lie`, which is no proof."""

    lie: float = 0.0

    def propagate(self, model, x, ball, spec):
        found = rp.certifier("interval:ibp").bounds(model, x, ball.scaled(1 - self.lie), spec)
        return Interval(found.lower.detach(), found.upper.detach())


@dataclass(frozen=True, kw_only=True)
class Sign(Attack):
    """One step along the gradient's sign."""

    def perturb(self, model, x, y, ball, *, targeted):
        x = x.requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(x), y, reduction="sum")
        return ball.project(x + ball.steepest(torch.autograd.grad(loss, x)[0]), x).detach()


class Bolds:
    @rp.hookimpl
    def register_certifiers(self, register):
        register("test:bold", Bold)

    @rp.hookimpl
    def register_attacks(self, register):
        register("test:sign", Sign)


@pytest.fixture
def bolds():
    rp.register(Bolds(), "bolds")
    yield
    rp.unregister("bolds")


def study(folder, lie):
    torch.manual_seed(0)
    return rp.Study(
        models=[{"name": "linear", "source": "linear", "train": {"epochs": 2}}],
        data=[{"name": "digits", "samples": 12}],
        balls=[{"norm": "linf", "eps": [0.1]}],
        components=[{"use": f"test:bold(lie={lie})"}, {"use": "test:sign"}],
        store=str(folder / "study.sqlite"), keep=["weights"], run={"isolate": False, "batch_size": 6},
    )  # fmt: skip


def test_a_lie_is_seen_again_from_its_folder_alone(tmp_path, bolds):
    store = study(tmp_path, 0.5).run().store
    result = CliRunner().invoke(commands, ["bench", "audit", str(store), "--out", str(tmp_path / "wrong")])
    assert result.exit_code == 3
    assert "reproduce.py" in result.output
    (folder,) = {path.parent for path in (tmp_path / "wrong").glob("*-margin-*/reproduce.py")}
    moved = folder.rename(tmp_path / "elsewhere")
    store.unlink()
    said = []
    assert reproduce(moved, said.append) == 3
    assert said[-1] == "The contradiction is there again."
    case = json.loads((moved / "case.json").read_text())
    case["records"][0]["parameters"] = case["records"][0]["parameters"].replace("0.5", "0.0")
    (moved / "case.json").write_text(json.dumps(case))
    with pytest.raises(KeyError, match="another component now"):
        reproduce(moved, said.append)


def test_a_sound_study_has_nothing_to_show(tmp_path, bolds):
    store = study(tmp_path, 0.0).run().store
    assert audit(store).violations == []
    result = CliRunner().invoke(commands, ["bench", "audit", str(store), "--out", str(tmp_path / "wrong")])
    assert result.exit_code == 0
    assert not (tmp_path / "wrong").exists()


def test_one_command_shows_it_again(tmp_path):
    sizes = [
        rp.Study(
            models=[{"name": "linear", "source": "linear"}],
            data=[{"name": "digits", "samples": 4}],
            balls=[{"norm": "linf", "eps": [0.1]}],
            components=[{"use": "interval:ibp"}],
            store=str(tmp_path / f"{size}.sqlite"),
            keep=["weights"],
            run={"isolate": False, "batch_size": size},
        )
        for size in (1, 4)
    ]
    alone, together = [one.run().store for one in sizes]
    assert len(audit([alone, together])) == 0
    with Store(alone) as store:
        wrong = [replace(r, margin=r.margin - 1.0) for r in store.records(where={"kind": "certifier", "sample": 2})]
    with Store(alone, write=True) as store:
        store.insert(wrong, replace=True)
    command = ["bench", "audit", str(alone), str(together), "--out", str(tmp_path / "wrong")]
    assert CliRunner().invoke(commands, command).exit_code == 3
    (script,) = (tmp_path / "wrong").glob("*/reproduce.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # the components are right; what was recorded is not
    assert "differs between batch sizes: linear, digits sample 2" in done.stdout
    assert "There is no contradiction any more." in done.stdout
