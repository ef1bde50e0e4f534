"""Renders templates and formats values in them."""

import datetime
from typing import Any

import jinja2

import sft_jax


def render(template: str, **context: Any) -> str:
    """Renders `template` with `context`, whose values are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sft_jax.report", "templates"),
        # Only the style sheet, which is ours, is not escaped.
        autoescape=jinja2.select_autoescape(default=True, disabled_extensions=("css",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["percent"] = percent
    written = datetime.datetime.now().isoformat(sep=" ", timespec="minutes")
    return environment.get_template(template).render(version=sft_jax.__version__, written=written, **context)


def percent(value: float | None, digits: int = 1) -> str:
    """Formats a fraction, e.g. 0.7512 as 75.1%, and None as a dash."""
    return "–" if value is None else f"{value:.{digits}%}"


def text(value: Any) -> str:
    """Formats a config value as on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        # Lists come from JSON, tuples from the schema; nested ones are pairs.
        return (
            ", ".join("=".join(map(text, part)) if isinstance(part, list | tuple) else text(part) for part in value)
            or "none"
        )
    return f"{value:g}" if isinstance(value, float) else str(value)
