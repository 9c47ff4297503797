"""``/v1/admin/keys``: made, listed and revoked."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field

from appliance.admin.acts import Administration
from appliance.admin.keys import LONGEST, KeyScope
from appliance.gateway.admin_parts import Answer, Domain, Name, Strict, Word, Words, administrator, done
from appliance.types import Caller

Scopes = Annotated[list[KeyScope], Field(min_length=1, max_length=4, default_factory=lambda: ["chat"])]
Quota = Annotated[int, Field(ge=1, lt=2**31)]


class KeyRequest(Strict):
    """What is left out (domains, days, a quota) is as the key that asks has it; nothing may be more."""

    name: Annotated[Word, Field(max_length=100)]
    scopes: Scopes
    domains: Annotated[list[Domain], Field(min_length=1, max_length=100)] | None = None
    labels: Words
    days: Annotated[int, Field(ge=1, le=LONGEST)] | None = None
    requests_per_minute: Quota | None = None
    tokens_per_minute: Quota | None = None


def keys_router(administration: Administration, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    router = APIRouter(prefix="/v1/admin/keys", tags=["Administration: keys"], responses=responses)
    who = Depends(administrator)

    @router.get("", summary="The keys, without their secrets")
    async def keys(caller: Caller = who) -> list[Answer]:
        """Oldest first, revoked and expired ones too; those only whose domains and labels are all among this key's."""
        return await done(administration.keys, caller)

    @router.post("", summary="Make a key", status_code=201)
    async def create(body: KeyRequest, caller: Caller = who) -> Answer:
        """`key` is the secret: it is stored as a hash and cannot be shown again. A key gives away no more than it has."""
        limits = (body.days, body.requests_per_minute, body.tokens_per_minute)
        return await done(administration.create_key, caller, body.name, body.scopes, body.domains, body.labels, *limits)

    @router.delete("/{id}", summary="Revoke a key")
    async def revoke(id: Name, caller: Caller = who) -> Answer:
        """It is useless from now on; keys that it made are not."""
        return await done(administration.revoke_key, caller, id)

    return router
