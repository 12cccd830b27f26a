"""The reference of a service as one HTML page: no script, no foreign assets, readable offline."""

import json
from html import escape
from typing import Any, Final

_STYLE: Final = """
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
code,pre{font:14px/1.45 ui-monospace,monospace}pre{overflow:auto;padding:.75rem;border:1px solid #8884;border-radius:6px}
details{border:1px solid #8884;border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}summary{cursor:pointer}
.m{display:inline-block;min-width:4.5em;font-weight:700}table{border-collapse:collapse}td,th{text-align:left;padding:.2rem .8rem .2rem 0;vertical-align:top}
"""
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
_METHODS: Final = ("get", "post", "put", "patch", "delete")


def render(document: dict[str, Any]) -> str:
    """HTML for an OpenAPI 3.1 document."""
    info = document.get("info", {})
    title = escape(info.get("title", "API"))
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title} <small>{escape(info.get('version', ''))}</small></h1>"
        f"<p>{escape(info.get('description', ''))}</p><p>Machine-readable: <a href=/openapi.json>/openapi.json</a></p>"
    ]
    for path, item in document.get("paths", {}).items():
        parts += [_operation(path, method, item[method]) for method in _METHODS if method in item]
    schemas = document.get("components", {}).get("schemas", {})
    if schemas:
        parts.append("<h2>Schemas</h2>")
        parts += [
            f"<details id='{escape(name)}'><summary><code>{escape(name)}</code></summary>{_json(schema)}</details>"
            for name, schema in sorted(schemas.items())
        ]
    return "".join(parts)


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    summary = escape(operation.get("summary", ""))
    parts = [
        f"<details><summary><code><span class=m>{method.upper()}</span>{escape(path)}</code> {summary}</summary>"
        f"<p>{escape(operation.get('description', ''))}</p>"
    ]
    parameters = operation.get("parameters", [])
    if parameters:
        rows = "".join(
            f"<tr><td><code>{escape(p['name'])}</code><td>{escape(p['in'])}"
            f"<td>{'required' if p.get('required') else ''}<td>{escape(p.get('description', ''))}"
            for p in parameters
        )
        parts.append(f"<table><tr><th>Parameter<th>In<th><th>Meaning{rows}</table>")
    bodies = operation.get("requestBody", {}).get("content", {}).values()
    parts += [f"<p>Body</p>{_json(media.get('schema', {}))}" for media in bodies]
    for status, answer in operation.get("responses", {}).items():
        parts.append(f"<p>Answer <code>{escape(status)}</code>: {escape(answer.get('description', ''))}</p>")
        schemas = [media["schema"] for media in answer.get("content", {}).values() if media.get("schema")]
        parts += map(_json, schemas)
    return "".join([*parts, "</details>"])


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
