"""The configuration of Sphinx: `make docs` builds `out/docs/index.html`, and a warning is an error."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "robust_plugins"
author = "the authors of robust_plugins"
release = version = installed("robust_plugins")
copyright = "Apache-2.0 licensed"

extensions = ["myst_parser", "sphinx_copybutton", "building.mathml", "building.reference", "building.pictures"]
exclude_patterns = ["building"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "robust_plugins"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"
maximum_signature_line_length = 60
python_use_unqualified_type_names = True
