"""What the routes of ``/v1/admin`` share: who may use them, how failures are shown, and the forms of their fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.concurrency import run_in_threadpool

from appliance.admin.rights import Forbidden, Missing
from appliance.admin.uploads import Refused
from appliance.errors import GateMissed, UsageError
from appliance.gateway.auth import caller_of
from appliance.gateway.errors import ApiError
from appliance.store.locks import Locked
from appliance.types import Caller

P = ParamSpec("P")
T = TypeVar("T")

PREFIX = "/v1/admin"
# A NUL is text to JSON, but not to every database, nor to the command line.
Word = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*$")]
DocId = Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=50_000, pattern=r"^[^\x00]*$")]
Domain = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Name = Annotated[str, Path(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*$")]
AskedDomain = Annotated[str | None, Query(min_length=1, max_length=63, pattern=r"^[a-z0-9][a-z0-9_-]*$", description="Only this domain.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many at most.")]
Offset = Annotated[int, Query(ge=0, lt=2**31, description="How many to pass over.")]
Words = Annotated[list[Word], Field(max_length=100, default_factory=list)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def administrator(request: Request) -> Caller:
    """A caller with the scope `admin`. Raises ApiError 403."""
    return _with_scope(request, "admin")


def supplier(request: Request) -> Caller:
    """A caller with the scope `ingest` or `admin`. Raises ApiError 403."""
    return _with_scope(request, "ingest")


def _with_scope(request: Request, scope: str) -> Caller:
    caller = caller_of(request)
    if not caller.scopes & {scope, "admin"}:
        message = f"this needs a key with the scope {scope}; make one with: appliance key create NAME --scope {scope}"
        raise ApiError(403, message, code="scope_missing")
    return caller


async def done(act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run an act in a thread; its failures become those of the API."""
    try:
        return await run_in_threadpool(act, *args, **kwargs)
    except Forbidden as error:
        raise ApiError(403, str(error), code="not_allowed") from error
    except Missing as error:
        raise ApiError(404, str(error), code="not_found") from error
    except Refused as error:
        raise ApiError(400, str(error), code="upload_refused") from error
    except (Locked, GateMissed) as error:
        raise ApiError(409, str(error), code="conflict") from error
    except UsageError as error:
        raise ApiError(400, str(error), code="invalid_request") from error


Answer = dict[str, Any]
