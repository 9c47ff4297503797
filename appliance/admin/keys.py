"""API keys of a workspace: made, listed, revoked and checked. Only a hash is stored; the key itself is shown once."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

import sqlalchemy as sa

from appliance.errors import UsageError
from appliance.store import schema
from appliance.store.database import Database, utcnow
from appliance.store.lookup import Lookup
from retrieval.types import Scope

PREFIX = "apl_"
# What a key may do: ask, bring documents and data sets in, administer (which includes bringing in and judging), judge answers blind.
KeyScope = Literal["chat", "ingest", "admin", "expert"]
SCOPES = get_args(KeyScope)
# Days that a key may be made for.
LONGEST = 36_500
_NAME_LENGTH = 100


@dataclass(frozen=True, slots=True)
class Key:
    """One key without its secret. `domains` None means every domain; times are UTC; the quotas are None where there is none.

    `scopes` are some of SCOPES.
    """

    id: str
    name: str
    domains: frozenset[str] | None
    labels: frozenset[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    scopes: frozenset[str] = frozenset({"chat"})

    @property
    def scope(self) -> Scope:
        return Scope(self.domains, self.labels)

    def to_json(self) -> dict[str, Any]:
        """As it is listed."""
        return {
            "id": self.id,
            "name": self.name,
            "domains": None if self.domains is None else sorted(self.domains),
            "labels": sorted(self.labels),
            "scopes": sorted(self.scopes),
            "expires_at": None if self.expires_at is None else self.expires_at.isoformat(timespec="seconds"),
            "revoked": self.revoked_at is not None,
            "requests_per_minute": self.requests_per_minute,
            "tokens_per_minute": self.tokens_per_minute,
        }

    @property
    def state(self) -> Literal["active", "expired", "revoked"]:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= utcnow() else "active"


_BY_DIGEST = Lookup(sa.select(schema.api_key).where(schema.api_key.c.sha256 == sa.bindparam("digest")))


class Keys:
    """The keys in one workspace's database. Every call reads the database, so a revoked key stops working at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        domains: Iterable[str] | None = None,
        labels: Iterable[str] = (),
        expires_at: datetime | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        scopes: Iterable[str] = ("chat",),
    ) -> tuple[Key, str]:
        """Make a key; returns it and its secret (``apl_`` and 32 random bytes, url-safe), which is stored nowhere.

        Raises UsageError for an empty or overlong name, an unknown domain, an empty label, an expiry without zone or in the past, a
        quota below 1, or a scope that is none.
        """
        name = name.strip()
        if not name or len(name) > _NAME_LENGTH or not name.isprintable():
            raise UsageError(f"a key needs a name of 1 to {_NAME_LENGTH} printable characters, not {name[:40]!r}")
        held = frozenset(labels)
        if any(not label.strip() for label in held):
            raise UsageError("a label must not be empty; leave --label out for a key without labels")
        now = utcnow()
        if expires_at is not None and (expires_at.tzinfo is None or expires_at <= now):
            raise UsageError(f"a key must expire in the future, at a time with a zone, not at {expires_at.isoformat()}")
        if any(quota is not None and not 1 <= quota < 2**31 for quota in (requests_per_minute, tokens_per_minute)):
            raise UsageError("a quota is a number from 1 to 2147483647 a minute; leave it out for a key without one")
        may = frozenset(scopes)
        if not may or not may <= frozenset(SCOPES):
            raise UsageError(f"a key needs one or more of the scopes {', '.join(SCOPES)}, not {', '.join(sorted(may)) or 'none'}")
        limited = None if domains is None else frozenset(domains)
        key = Key(secrets.token_hex(8), name, limited, held, now, expires_at, None, requests_per_minute, tokens_per_minute, may)
        secret = PREFIX + secrets.token_urlsafe(32)
        with self._database.write() as connection:
            if key.domains is not None:
                known = set(connection.execute(sa.select(schema.domain.c.name)).scalars())
                _check_domains(key.domains, known)
            connection.execute(
                schema.api_key.insert().values(
                    id=key.id,
                    name=key.name,
                    sha256=_digest(secret),
                    domains=None if key.domains is None else sorted(key.domains),
                    labels=sorted(key.labels),
                    created_at=key.created_at,
                    expires_at=key.expires_at,
                    requests_per_minute=key.requests_per_minute,
                    tokens_per_minute=key.tokens_per_minute,
                    scopes=sorted(key.scopes),
                )
            )
            domains_named = None if key.domains is None else sorted(key.domains)
            facts = {"key": key.id, "domains": domains_named, "labels": sorted(key.labels), "scopes": sorted(key.scopes)}
            self._database.audit(connection, "key.create", facts)
        return key, secret

    def list(self) -> list[Key]:
        """Every key, oldest first, revoked and expired ones too."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(schema.api_key).order_by(schema.api_key.c.created_at, schema.api_key.c.id)).all()
        return [_key(row) for row in rows]

    def revoke(self, which: str) -> Key:
        """Revoke the key with this id, or the only unrevoked one with this name; revoking twice is harmless.

        Raises UsageError when there is no such key, or several of that name.
        """
        keys = self.list()
        found = [key for key in keys if key.id == which] or [key for key in keys if key.name == which and key.revoked_at is None]
        if not found:
            raise UsageError(f"there is no key {which!r}; `appliance key list` shows them")
        if len(found) > 1:
            raise UsageError(f"{len(found)} keys are named {which!r}; give one of the ids {', '.join(key.id for key in found)}")
        table = schema.api_key
        with self._database.write() as connection:
            still_valid = (table.c.id == found[0].id, table.c.revoked_at.is_(None))
            if connection.execute(table.update().where(*still_valid).values(revoked_at=utcnow())).rowcount:
                self._database.audit(connection, "key.revoke", {"key": found[0].id})
            return _key(connection.execute(sa.select(table).where(table.c.id == found[0].id)).one())

    async def identify(self, token: str) -> Key | None:
        """`authenticate` for an event loop."""
        return await self._database.look(self.authenticate, token)

    def authenticate(self, token: str) -> Key | None:
        """The active key with this secret, else None. Looked up by hash, so timing tells nothing about stored secrets."""
        if not token.startswith(PREFIX):
            return None
        key = next((_key(row) for row in self._database.rows(_BY_DIGEST, digest=_digest(token))), None)
        return key if key is not None and key.state == "active" else None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: Any) -> Key:
    domains = None if row.domains is None else frozenset(row.domains)
    return Key(
        row.id,
        row.name,
        domains,
        frozenset(row.labels),
        row.created_at,
        row.expires_at,
        row.revoked_at,
        row.requests_per_minute,
        row.tokens_per_minute,
        frozenset(row.scopes),
    )


def _check_domains(wanted: frozenset[str], known: set[str]) -> None:
    if not wanted:
        raise UsageError("a key limited to no domain at all could ask nothing; name at least one domain, or leave --domain out for all")
    if unknown := sorted(wanted - known):
        listed = ", ".join(sorted(known)) or "none yet; `appliance ingest` makes the first"
        raise UsageError(f"unknown domain {', '.join(map(repr, unknown))}; known domains: {listed}")
