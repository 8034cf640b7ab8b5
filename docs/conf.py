"""Sphinx configuration."""

import sisopt

project = "sisopt"
author = "The sisopt developers"
copyright = author
version = release = sisopt.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.mathjax", "numpydoc", "myst_parser"]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
root_doc = "index"
default_role = "py:obj"  # `names` in docstrings are links
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(collections|numpy|torch)\..*")]  # no other documentation is asked

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # numpydoc's sections say it
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

linkcheck_timeout = 20
linkcheck_retries = 2

html_theme = "pydata_sphinx_theme"
html_title = "sisopt " + release.partition("+")[0]
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "navbar_center": [],  # all pages are at the side, under their captions
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {"**": ["sidebar-pages"]}
