"""Sphinx configuration. Build with ``sphinx-build -W -n -b html docs docs/_build/html``."""

import importlib.metadata
import os

# What the engine in C has of its own has no annotations, and no docstrings of attributes.
os.environ["GREENBACK_PURE"] = "1"

project = "greenback"
author = "the greenback authors"
copyright = "the greenback authors"
release = version = importlib.metadata.version("greenback")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 80

nitpicky = True
# Names that other projects document. Links to them would need their inventories, so a network.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(asyncio|collections\.abc|contextlib|datetime|json|opentelemetry|os|sniffio|trio|types|typing)\..*",
    ),
    ("py:.*", r"(Async)?(ContextManager|Iterable|Iterator)|Awaitable|Callable|Mapping|Optional"),
    ("py:.*", r"(Base)?Exception|(Attribute|Key|Runtime|Type)Error|None|Any"),
    ("py:.*", r"FrameType|Task|(Meter|Tracer)Provider"),
    # Type variables.
    ("py:.*", r"(greenback\..*\.)?[A-Z](\.(args|kwargs))?"),
    # In docstrings of classes that are documented in another module than the one that defines them.
    ("py:obj", "await_"),
    # Types of fields, by the modules that define them.
    ("py:.*", r"greenback_trace\.report\.[\w.]+"),
    # settings.rst describes these.
    ("py:.*", r"greenback_trace\.count\.snapshot\.\w+Totals|Config\.\w+"),
]

html_theme = "furo"
html_title = f"greenback {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]


def without_constructor(app, what, name, obj, options, signature, returns):
    """Hide the constructors of classes whose objects a program gets but never makes."""
    if name in {"greenback.instruments.Bridge", "greenback.instruments.Portal"} or (
        what == "class" and name.startswith("greenback_trace.report.")
    ):
        return "", None
    return None


def setup(app):
    app.connect("autodoc-process-signature", without_constructor)
