"""Executes the notebooks, and writes each as `.ipynb` and as a page.

    python integration/notebooks/render.py [--out out/notebooks] [NAME ...]

A notebook is a script in jupytext's percent format beside this file. What it prints and draws is kept; where a cell
fails, so does this.
"""

from __future__ import annotations

import argparse
from pathlib import Path

FOLDER = Path(__file__).parent
NOTEBOOKS = tuple(sorted(path for path in FOLDER.glob("*.py") if path.read_text(encoding="utf-8").startswith("# %%")))


def rendered(source: Path, out: Path) -> Path:
    """The page of one notebook."""
    import jupytext
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter

    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(out)}}).execute()
    nbformat.write(notebook, out / f"{source.stem}.ipynb")
    page, _ = HTMLExporter().from_notebook_node(notebook)
    target = out / f"{source.stem}.html"
    target.write_text(page, encoding="utf-8")
    return target


def main() -> None:
    """Renders those that are named, or all."""
    parser = argparse.ArgumentParser(description="Execute the notebooks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="without .py; all of them where none is named")
    parser.add_argument("--out", type=Path, default=Path("out/notebooks"))
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {path.stem for path in NOTEBOOKS}
    if unknown:
        parser.error(f"no notebook {', '.join(sorted(unknown))}; there are {', '.join(p.stem for p in NOTEBOOKS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for source in NOTEBOOKS:
        if not arguments.names or source.stem in arguments.names:
            print(rendered(source, arguments.out))


if __name__ == "__main__":
    main()
