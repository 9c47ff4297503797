"""Keys over the administration: an administrator gives away no more than it has, and knows of no key that has more."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from appliance.admin.keys import Key, Keys
from appliance.admin.rights import Forbidden, Missing, Rights
from appliance.store.database import utcnow
from appliance.types import Caller

# What the scope of an administrator contains besides itself.
_CONTAINED = frozenset({"ingest", "expert"})


class KeyActs(Rights):
    """The part of `Administration` that is about keys."""

    def own(self, caller: Caller) -> Key:
        """The key that asks. Raises Forbidden where it was revoked or has expired since."""
        own = next((key for key in Keys(self.workspace.db).list() if key.id == caller.name and key.state == "active"), None)
        if own is None:
            raise Forbidden("the key that asks is no longer one")
        return own

    def keys(self, caller: Caller) -> list[dict[str, Any]]:
        """The keys whose domains and labels are all among the caller's, oldest first, without their secrets."""
        return [key.to_json() for key in Keys(self.workspace.db).list() if _covers(caller, key)]

    def create_key(
        self,
        caller: Caller,
        name: str,
        scopes: Collection[str],
        domains: Collection[str] | None,
        labels: Collection[str],
        days: int | None,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
    ) -> dict[str, Any]:
        """Make a key; what comes back has its secret, this once, as `key`.

        What is left out (domains, an end, a quota) is as the caller's own key has it. Raises Forbidden for more than that.
        """
        own = self.own(caller)
        held = own.scopes | (_CONTAINED if "admin" in own.scopes else frozenset())
        for scope in scopes:
            if scope not in held:
                raise Forbidden(f"this key has not the scope {scope}, so it cannot give it to another one")
        for domain in domains or ():
            self.check(caller, domain)
        self.holds(caller, sorted(labels))
        made, secret = Keys(self.acting(caller).db).create(
            name,
            domains=own.domains if domains is None else domains,
            labels=labels,
            expires_at=_end(own, days),
            requests_per_minute=_quota(own.requests_per_minute, requests_per_minute, "requests"),
            tokens_per_minute=_quota(own.tokens_per_minute, tokens_per_minute, "tokens"),
            scopes=scopes,
        )
        return {**made.to_json(), "key": secret}

    def revoke_key(self, caller: Caller, identity: str) -> dict[str, Any]:
        """Make a key useless from now on; its own too."""
        keys = Keys(self.acting(caller).db)
        if not any(key.id == identity and _covers(caller, key) for key in keys.list()):
            raise Missing(f"no key {identity!r}")
        return keys.revoke(identity).to_json()


def _covers(caller: Caller, key: Key) -> bool:
    mine = caller.scope.domains
    return key.labels <= caller.scope.labels and (mine is None or (key.domains is not None and key.domains <= mine))


def _end(own: Key, days: int | None) -> datetime | None:
    if days is None:
        return own.expires_at
    end = utcnow() + timedelta(days=days)
    if own.expires_at is not None and end > own.expires_at:
        raise Forbidden(
            f"this key ends at {own.expires_at.isoformat(timespec='seconds')}, and no key that it makes after it: leave days out"
        )
    return end


def _quota(own: int | None, asked: int | None, kind: str) -> int | None:
    if own is not None and asked is not None and asked > own:
        raise Forbidden(f"this key has a quota of {own} {kind} a minute, and can give no larger one")
    return own if asked is None else asked
