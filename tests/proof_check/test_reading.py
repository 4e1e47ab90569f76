"""Files of proofs: what is damaged, cut short or something else is one clear error."""

from __future__ import annotations

import ast
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.proofs import copied, dense, proved, read, write
from torch import nn

import robust_plugins as rp
from robust_plugins.cli import commands
from robust_plugins.decisions.verifier.proofs.writing import framed, plain_record
from robust_plugins.proof_check import ProofError, network, records
from robust_plugins.proof_check.reading import LARGEST, MAGIC


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "run.proof"
    for seed in range(2):
        assert proved(dense(0), torch.rand(4, generator=torch.Generator().manual_seed(seed)), 0.05, path)
    return path


def problem(path: Path) -> str:
    try:
        for record in records(path):
            if "nodes" in record.about:
                network(record)
    except ProofError as error:
        return str(error)
    return ""


def test_proofs_of_one_network_share_it(file: Path) -> None:
    found = list(records(file))
    assert ["nodes" in record.about for record in found] == [True, False, False]
    assert {record.about["network"] for record in found[1:]} == {found[0].digest}
    before = file.read_bytes()
    assert proved(dense(0), torch.rand(4, generator=torch.Generator().manual_seed(1)), 0.05, file)
    assert file.read_bytes() == before  # it was there


def test_an_interrupted_file_is_gone_on_with(file: Path, tmp_path: Path) -> None:
    whole, path = file.read_bytes(), tmp_path / "cut.proof"
    for cut in (1, 30, 200):
        path.write_bytes(whole[:-cut])
        assert "ends within a record" in problem(path)
        assert proved(dense(0), torch.rand(4, generator=torch.Generator().manual_seed(1)), 0.05, path)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no file of proofs"),
        (b"RPP", "no file of proofs"),
        (b"[" * 10_000_000, "no file of proofs"),
        (MAGIC + bytes(range(200)), "not read"),
        (MAGIC + b"\0" * 10_000_000, "damaged"),
        (MAGIC + struct.pack("<QQ", 10, LARGEST + 1) + bytes(32), "not read"),
        (MAGIC + framed(b""), "malformed"),
        (MAGIC + framed(struct.pack("<Q", 10_000_000) + b"[" * 10_000_000), "malformed"),
        (MAGIC + framed(struct.pack("<Q", 2) + b"{}"), "malformed"),
        (MAGIC + framed(struct.pack("<Q", 2**63) + b"{}" * 99), "malformed"),
        (MAGIC + framed(plain_record({"nodes": []}, {})), "no nodes"),
        (MAGIC + framed(plain_record({"nodes": [{"size": 1e9}]}, {})), "malformed"),
    ],
)
def test_other_files_are_one_error(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.proof"
    path.write_bytes(content)
    assert message in problem(path)
    result = CliRunner().invoke(commands, ["check-proof", str(path)])
    assert result.exit_code == 1
    assert [line.startswith("Error: ") for line in result.stderr.splitlines()] == [True]
    assert message in result.stderr
    assert "proofs hold" not in result.stdout  # there are none that could


def test_a_changed_byte_is_found(file: Path, tmp_path: Path) -> None:
    path, rng, whole = tmp_path / "bad.proof", np.random.default_rng(0), file.read_bytes()
    for at in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :])
        assert problem(path)


def test_arrays_outside_of_their_record_are_refused(file: Path, tmp_path: Path) -> None:
    net, _ = read(file)
    plain = plain_record(net.about, net.arrays)
    for old, new in ((b'"data_offsets": [0, ', b'"data_offsets": [9, '), (b'"F64"', b'"F99"'), (b'"F64"', b'"F32"')):
        assert old in plain
        (tmp_path / "bad").write_bytes(MAGIC + framed(plain.replace(old, new)))
        assert problem(tmp_path / "bad")


def factory() -> nn.Module:
    return dense(0)


def other() -> nn.Module:
    """The same but for the last bit of one weight."""
    model = dense(0)
    with torch.no_grad():
        model[2].weight[3, 2] = model[2].weight[3, 2].nextafter(torch.tensor(9.0))
    return model


def deeper() -> nn.Module:
    return nn.Sequential(dense(0), nn.ReLU())


def test_the_command(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "proofs_of_tests", sys.modules[__name__])
    run = CliRunner()
    plain = run.invoke(commands, ["check-proof", str(file)])
    assert (plain.exit_code, plain.stderr) == (0, "")
    assert plain.stdout.endswith(
        "2 of 2 proofs hold; they are about the network in the file; --model compares it with yours\n"
    )
    same = run.invoke(commands, ["check-proof", str(file), "--model", "proofs_of_tests:factory"])
    assert (same.exit_code, same.stdout.splitlines()[-1]) == (0, "2 of 2 proofs hold; they are about the model")
    for name, why in (("other", "other numbers"), ("deeper", "steps")):
        refused = run.invoke(commands, ["check-proof", str(file), "--model", f"proofs_of_tests:{name}"])
        assert (refused.exit_code, "the model is another network" in refused.stderr) == (1, True)
        assert why in refused.stderr
    net, samples = (lambda found: (found[0], [copied(s) for s in found[1]]))(read(file))
    samples[0].arrays["offsets"][:] = -1e3
    write(tmp_path / "bad", net, *samples)
    found = run.invoke(commands, ["check-proof", str(tmp_path / "bad")])
    assert found.exit_code == 1
    assert "1: a property" in found.stdout
    assert "REJECTED: 0.goal.0: a leaf is not above zero" in found.stdout
    assert "1 of 2 proofs hold" in found.stdout
    assert run.invoke(commands, ["check-proof", str(file), "--weights", "w.pt"]).exit_code == 2
    assert "cannot be" not in run.invoke(commands, ["check-proof", str(tmp_path / "none")]).stdout
    assert run.invoke(commands, ["check-proof", str(tmp_path / "none")]).exit_code == 2


def test_a_file_of_something_else_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("by hand")
    component = rp.certifier("interval:branch-and-bound", proof=str(tmp_path / "notes.txt"))
    x, y = torch.rand(1, 4), torch.zeros(1, dtype=torch.long)
    with pytest.raises(rp.ArgumentError, match="choose another name"):
        component(dense(0), x, y, rp.Linf(eps=0.1, clip=None))
    assert (tmp_path / "notes.txt").read_text() == "by hand"
    missing = rp.certifier("interval:branch-and-bound", proof=str(tmp_path / "no" / "run.proof"))
    with pytest.raises(rp.ArgumentError, match="No such file"):
        missing(dense(0), x, y, rp.Linf(eps=0.1, clip=None))


def test_the_check_is_short_and_imports_nothing_of_the_search() -> None:
    folder = Path(rp.__file__).parent / "proof_check"
    allowed = {"__future__", "collections", "itertools", "typing", "hashlib", "json", "struct", "zlib", "numpy"}
    for path in folder.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 300
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.startswith("robust_plugins.proof_check.") or name.split(".")[0] in allowed
