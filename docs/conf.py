# SPDX-License-Identifier: Apache-2.0
"""Sphinx's configuration: the site is made of the Markdown files where they are."""

import tomllib
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGE = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]

project = "Farwatch"
author = "The Farwatch maintainers"
project_copyright = f"2026, {author}"
release = _PACKAGE["version"]

extensions = ["myst_parser", "sphinxarg.ext"]
# The source directory is the checkout, so that a link is the same here and where the files are
# browsed.
include_patterns = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "docs/**.md",
    "patches/README.md",
]
exclude_patterns = [".*", "build", "guest-tests", "harness", "host-daemon", "**/venv"]
root_doc = "docs/index"
nitpicky = True
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
html_title = "Farwatch"
html_copy_source = False
html_show_sourcelink = False

# `make docs-links` asks the servers.
linkcheck_timeout = 20
linkcheck_retries = 2
