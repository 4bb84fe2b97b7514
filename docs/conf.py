"""Configuration of the site, which `make site` builds. Where the pages come from: ext/pages.py."""

import sys
from pathlib import Path

from minitf import __version__

# The extensions of this site.
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "minitf"
version = release = __version__
language = "en"
extensions = [
    "sphinx.ext.autodoc",
    "myst_nb",
    "pydata_sphinx_theme",
    "sphinx_copybutton",
    "ext.mathml",
    "ext.api",
    "ext.pages",
    "ext.search",
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
# Notebooks to download, and pictures.
exclude_patterns = ["lessons/handed_out"]
# Docstrings show quotes and dots as they are typed.
smartquotes = False

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
# Lessons are executed and committed; the site shows what they gave.
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
# Widgets would load their scripts from outside; no lesson uses them.
nb_ipywidgets_js = {}
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Defaults as they are written: 1e-06 is 1e-6, and no object shows its address.
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = "minitf"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("catalogue.js", {"defer": "defer"})]
html_search_scorer = str(HERE / "_static" / "scorer.js")
html_favicon = "_static/favicon.svg"
html_show_sourcelink = html_copy_source = False
html_show_copyright = False
html_domain_indices = False
# Light or dark as the reader's system has it. Without it the theme complains in the console.
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"text": "minitf"},
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "navigation_depth": 2,
    "footer_start": ["sphinx-version"],
    "footer_end": [],
    "search_bar_text": "Search variants, papers, lessons ...",
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
# These have no pages beside them, or need the room.
html_sidebars = {page: [] for page in ("index", "teach", "catalogue", "papers", "benchmarks")}
