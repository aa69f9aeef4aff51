"""How Sphinx makes the site out of this folder: `make docs`. Why Sphinx: decisions/0016-docs-site.md."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

project = "regional-inductor"
author = "The regional-inductor authors"
project_copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "regional-inductor"
html_show_copyright = False
exclude_patterns = ["_build"]

# Markdown: links between headings as on the web pages of code hosts.
myst_heading_anchors = 3
suppress_warnings = [
    # A page that no list names yet still gets built; the index lists new pages by itself.
    "toc.multiple_toc_parents",
]

# Docstrings: Google's sections, and one backtick for code as in our Markdown.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature has them, and Args says what they mean
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
