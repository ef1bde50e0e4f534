"""From templates to pages, and how values stand in them."""

import datetime
from typing import Any

import jinja2

import sft_jax


def render(template: str, **context: Any) -> str:
    """The page that `template` makes of `context`; everything in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sft_jax.report", "templates"),
        # The style sheet is ours and is not escaped; every value that is put into a page is.
        autoescape=jinja2.select_autoescape(default=True, disabled_extensions=("css",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["share"] = share
    written = datetime.datetime.now().isoformat(sep=" ", timespec="minutes")
    return environment.get_template(template).render(version=sft_jax.__version__, written=written, **context)


def share(value: float | None, digits: int = 1) -> str:
    """0.7512 -> 75.1%, None -> a dash."""
    return "–" if value is None else f"{value:.{digits}%}"


def text(value: Any) -> str:
    """A setting's value as it is typed on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        # Pairs are written as they are typed, and a list from JSON like a tuple of the schema.
        return (
            ", ".join("=".join(map(text, part)) if isinstance(part, list | tuple) else text(part) for part in value)
            or "none"
        )
    return f"{value:g}" if isinstance(value, float) else str(value)
