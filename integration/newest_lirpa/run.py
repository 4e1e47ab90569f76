"""Repeats the certifier and conformance tests on a checkout of auto_LiRPA, which the package index does not have.

    git clone https://github.com/Verified-Intelligence/auto_LiRPA
    pip install appdirs graphviz ninja packaging pyyaml setuptools tqdm
    python integration/newest_lirpa/run.py --checkout auto_LiRPA [pytest's own arguments]

The checkout is put before the installed release on the path, for the tests alone. Without one, or where something that
it imports is missing, nothing is run, and that is said; the exit code is then 0, else that of the tests.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/adapters/lirpa", "tests/testing/test_builtins.py")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, help="the folder that holds the folder auto_LiRPA")
    arguments, others = parser.parse_known_args()
    checkout = arguments.checkout
    if checkout is None or not (checkout / "auto_LiRPA" / "__init__.py").is_file():
        print(f"skipped: no checkout of auto_LiRPA at {checkout}; give one with --checkout PATH")
        return 0
    path = os.pathsep.join(filter(None, (str(ROOT), str(checkout.resolve()), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    code = "from robust_plugins.adapters.lirpa import compat; print(*compat.load().version, sep='.')"
    tried = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if tried.returncode:
        print(f"skipped: {checkout} cannot be imported: {tried.stderr.strip().splitlines()[-1]}")
        return 0
    print(f"auto_LiRPA {tried.stdout.strip()} from {checkout}", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-k", "lirpa", *TESTS, *others]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
