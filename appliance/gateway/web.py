"""The chat page's files and a plain page that describes the API; nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/api.js": ("api.js", "text/javascript; charset=utf-8"),
    "/words.js": ("words.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def web_router(schema: Callable[[], dict[str, Any]]) -> APIRouter:
    """The page, its files, and ``/docs`` made from the OpenAPI description that `schema` returns."""
    router = APIRouter(include_in_schema=False)
    folder = files("appliance.gateway") / "web"
    for path, (name, media_type) in _FILES.items():
        router.add_api_route(path, _file((folder / name).read_bytes(), media_type), methods=["GET", "HEAD"])

    @router.get("/docs")
    async def docs() -> Response:
        return HTMLResponse(docs_page(schema()))

    return router


def _file(content: bytes, media_type: str) -> Callable[[], Response]:
    def serve() -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return serve


def docs_page(schema: dict[str, Any]) -> str:
    """An OpenAPI description as one page of HTML: every operation with its fields and responses."""
    sections = [
        _operation(method, path, operation, schema)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    info = schema["info"]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(info["title"])} API</title>
<link rel="icon" href="/icon.svg"><link rel="stylesheet" href="/style.css">
</head>
<body class="docs">
<h1>{escape(info["title"])} API <small>{escape(info["version"])}</small></h1>
<p>{escape(info.get("description", ""))}</p>
<p><a href="/openapi.json">openapi.json</a> · <a href="/">chat</a></p>
{"".join(sections)}
</body>
</html>
"""


def _operation(method: str, path: str, operation: dict[str, Any], schema: dict[str, Any]) -> str:
    fields = [_row(field["name"], field["schema"], field.get("required", False)) for field in operation.get("parameters", [])]
    content = operation.get("requestBody", {}).get("content", {})
    body = content.get("application/json", {}).get("schema", {})
    body = schema["components"]["schemas"][body["$ref"].rpartition("/")[2]] if "$ref" in body else body
    fields += [_row(name, field, name in body.get("required", [])) for name, field in body.get("properties", {}).items()]
    table = f"<table><tr><th>field</th><th>type</th><th></th></tr>{''.join(fields)}</table>" if fields else ""
    statuses = ", ".join(escape(status) for status in operation["responses"] if status != "default")
    return f"""<section>
<h2><code>{method.upper()} {escape(path)}</code></h2>
<p><strong>{escape(operation.get("summary", ""))}.</strong> {escape(operation.get("description", ""))}</p>
{table}
<p class="muted">Responses: {statuses}</p>
</section>
"""


def _row(name: str, field: dict[str, Any], required: bool) -> str:
    return f"<tr><td><code>{escape(name)}</code></td><td>{escape(_kind(field))}</td><td>{'required' if required else ''}</td></tr>"


def _kind(field: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in field:
        return str(field["$ref"].rpartition("/")[2])
    if "anyOf" in field:
        return " or ".join(_kind(option) for option in field["anyOf"] if option.get("type") != "null")
    if "enum" in field:
        return " or ".join(repr(value) for value in field["enum"])
    if "const" in field:
        return repr(field["const"])
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}))}"
    return str(field.get("type", "any"))
