"""`--box`: radii and ranges for each feature in the place of a norm."""

import json

from click.testing import CliRunner

import robust_plugins as rp
from robust_plugins.cli import commands


def run(*more):
    shared = ["--model", "mlp(widths=(4,))", "--data", "moons", "--epochs", "0", "--samples", "6"]
    return CliRunner().invoke(commands, ["compare", *shared, "--component", "interval:crown", *more])


def test_a_box_is_what_it_is_in_python():
    result = run("--eps", "0.5", "--eps", "1", "--box", "radius=[0.2, 0.0]", "--seed", "3", "--json")
    assert result.exit_code == 0, result.output
    import torch

    data = rp.dataset("moons")
    torch.manual_seed(3)
    model = rp.model("mlp(widths=(4,))", input_shape=data.input_shape, classes=data.classes)
    x, y = data.x_test[:6], data.y_test[:6]
    for eps, said in zip((0.5, 1.0), json.loads(result.stdout)["comparisons"], strict=True):
        ball = rp.Box(eps=eps, clip=data.clip, radius=[0.2, 0.0])
        expected = rp.compare(model, x, y, ball, ["interval:crown"]).to_dict()
        assert said["rows"][0]["verdicts"] == expected["rows"][0]["verdicts"]
        assert said["bracket"] == expected["bracket"]
        assert rp.Ball.from_dict(said["ball"]) == ball
        wide = rp.compare(model, x, y, rp.Linf(eps=eps, clip=data.clip), ["interval:crown"]).to_dict()
        assert said["bracket"]["certified"] > wide["bracket"]["certified"]


def test_what_is_no_box_is_refused():
    for text in ("integers=[0]", "radius=[0.2, 0.0], norm=2", "wide", "radius=[0.2"):
        result = run("--eps", "1", "--box", text)
        assert result.exit_code == 2
        assert "accepted: radius=..., and any of clip, one_hot, integers, immutable" in result.output
    assert "leave --norm out" in run("--eps", "1", "--norm", "l2", "--box", "radius=1").output
    assert "`radius` is -1.0; accepted: numbers >= 0" in run("--eps", "1", "--box", "radius=-1").output
