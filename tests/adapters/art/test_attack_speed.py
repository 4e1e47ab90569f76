"""The comparison of speeds runs, and names what it compares."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "integration" / "comparisons" / "attack_speed.py"


@pytest.mark.slow
def test_attack_speed() -> None:
    command = [sys.executable, str(SCRIPT), "--batch", "4", "--steps", "2", "--repeats", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    record = json.loads(done.stdout)
    compared = {(row["network"], row["contender"]) for row in record["rows"]}
    for network in ("MLP", "CNN"):
        for name in ("minimal loop", "art:pgd", "rp:pgd", "rp:margin-pgd", "rp:apgd", "ART, batch_size=32"):
            assert (network, name) in compared
        for optional in ("torchattacks", "foolbox"):
            assert ((network, optional) in compared) != (optional in record["missing"])
