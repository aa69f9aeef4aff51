"""How Sphinx makes the site out of this folder: `make docs`. Why Sphinx: decisions/0016-docs-site.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

project = "regional-inductor"
author = "The regional-inductor authors"
project_copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "regional-inductor"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]
exclude_patterns = ["_build"]

# Markdown: links between headings as on the web pages of code hosts.
myst_heading_anchors = 3

# Docstrings: Google's sections, and one backtick for code as in our Markdown.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature has them, and Args says what they mean
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88


def list_others(app: Sphinx, page: str, source: list[str]) -> None:
    """Pages that no list of the index names go where it says so: a new page is never lost."""
    if page == "index":
        named = set(re.findall(r"^[\w-]+$", source[0], re.MULTILINE)) | {"index"}
        others = sorted(
            name for name in app.env.found_docs if "/" not in name and name not in named
        )
        source[0] = source[0].replace("(others)", "\n".join(others))


def setup(app: Sphinx) -> None:
    app.connect("source-read", list_others)
