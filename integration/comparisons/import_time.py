"""What `import robust_plugins` costs beside `import torch`: the CPU time of whole processes, run in turn.

Compiled bytecode is written and used, as where the package is installed.

python integration/comparisons/import_time.py --repeats 15
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys


def seconds(code: str) -> float:
    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    return spent() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    seconds("import robust_plugins")  # the file cache and the compiled bytecode are there from here on
    pairs = [(seconds("import torch"), seconds("import torch, robust_plugins")) for _ in range(arguments.repeats)]
    ratios = sorted(ours / theirs for theirs, ours in pairs)
    figures = {
        "torch, median s": statistics.median(theirs for theirs, _ in pairs),
        "with robust_plugins, median s": statistics.median(ours for _, ours in pairs),
        "ratio": {"min": ratios[0], "median": statistics.median(ratios), "max": ratios[-1]},
    }
    if arguments.json:
        print(json.dumps(figures))
        return
    print(f"import torch: {figures['torch, median s']:.2f} s; with robust_plugins: "
          f"{figures['with robust_plugins, median s']:.2f} s")  # fmt: skip
    print(f"ratio, pair by pair: median {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}")


if __name__ == "__main__":
    main()
