"""`/docs`: all endpoints on one page, without scripts and third-party servers."""

from __future__ import annotations

from html import escape
from typing import Any

# No script runs and nothing is loaded.
HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{background:#8882;padding:.1em .3em}dt{margin-top:1em;font-weight:bold}"
)


def render(openapi: dict[str, Any]) -> str:
    """Render the page of an OpenAPI document."""
    title = escape(f"{openapi['info']['title']} {openapi['info']['version']}")
    # People's endpoints come first.
    groups: dict[str, list[str]] = {"jobs": []}
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            tag = str((operation.get("tags") or ["other"])[0])
            groups.setdefault(tag, []).append(_entry(method, path, operation))
    body = "".join(f"<h2>{escape(tag)}</h2><dl>{''.join(entries)}</dl>" for tag, entries in groups.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><p>{escape(openapi['info'].get('description', ''))}</p>"
        f'<p>The same for programs: <a href="openapi.json">openapi.json</a></p>{body}</html>'
    )


def _entry(method: str, path: str, operation: dict[str, Any]) -> str:
    names = ", ".join(
        f"<code>{escape(parameter['name'])}</code>"
        for parameter in operation.get("parameters", ())
        if parameter["in"] != "path"
    )
    message = escape(operation.get("description", "")).replace("\n\n", "<br>")
    return (
        f"<dt><code>{escape(method.upper())} {escape(path)}</code> {escape(operation.get('summary', ''))}</dt>"
        f"<dd>{message}{f'<br>Takes {names}.' if names else ''}</dd>"
    )
