"""What importing the package costs and brings along."""

from __future__ import annotations

import subprocess
import sys


def test_import_brings_no_backend() -> None:
    code = (
        "import sys, robust_plugins; "
        "print([m for m in ('art', 'auto_LiRPA', 'sklearn', 'mlxtend', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
