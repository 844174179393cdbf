"""Sphinx configuration: Markdown pages by MyST; `scripts/docs` builds the site."""

project = "RIPPLe"
author = "The RIPPLe developers"
copyright = "The RIPPLe developers, BSD-3-Clause"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
# Anchors of headings, for links like configuration.md#quality.
myst_heading_anchors = 3
html_theme = "furo"
html_title = "RIPPLe"
# Scripts and notebooks are downloads of the tutorials.
html_extra_path = []
html_show_sphinx = False
