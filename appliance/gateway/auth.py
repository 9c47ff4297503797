"""Who asks, as the middleware found out, and how the API documents its key."""

from __future__ import annotations

from fastapi.security import HTTPBearer
from starlette.requests import Request

from appliance.gateway.trace import trace_of
from appliance.types import Caller

# Only for the API's description: the middleware has checked the key before any handler runs.
BEARER = HTTPBearer(auto_error=False, description="An API key made with `appliance key create`.")


def caller_of(request: Request) -> Caller:
    """The caller of a ``/v1/`` request."""
    caller = trace_of(request.scope).caller
    assert caller is not None, "the key is checked before any handler runs"
    return caller
