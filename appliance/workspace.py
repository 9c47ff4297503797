"""A workspace: the folder, its configuration and its database."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from appliance import config as configuration
from appliance.config_template import template
from appliance.errors import UsageError
from appliance.files import write_whole
from appliance.models.refs import ModelRef
from appliance.store import schema
from appliance.store.database import Database, utcnow
from appliance.store.lookup import Lookup

_DOMAINS = Lookup(sa.select(schema.domain.c.name).order_by(schema.domain.c.name))
_DOMAIN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
# What the API calls other models: a domain of such a name could not be asked there.
_TAKEN = ("auto", "embedding")
FOLDERS = ("index", "adapters", "datasets", "models", "runs")


class Workspace:
    """An opened workspace. Close it, or use it in a `with`."""

    def __init__(self, root: Path, flags: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.flags = dict(flags or {})
        self.config, self.origins = configuration.load(root / configuration.FILE_NAME, flags)
        self.db = Database(self.config.database.url or f"sqlite:///{root / 'appliance.db'}")
        self.db.migrate()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.db.close()

    @classmethod
    def create(cls, root: Path) -> Workspace:
        """Make a new workspace in `root` (created if missing). Raises UsageError if there is one, or if a file is in the way."""
        root = root.resolve()
        file = root / configuration.FILE_NAME
        if file.exists():
            raise UsageError(f"{root} is a workspace already; open it with --workspace {root}")
        if root.exists() and not root.is_dir():
            raise UsageError(f"{root} is a file; name a folder")
        try:
            root.mkdir(parents=True, exist_ok=True)
            for name in FOLDERS:
                (root / name).mkdir(exist_ok=True)
            file.write_text(template(), "utf-8")
        except OSError as error:
            raise UsageError(f"cannot create a workspace in {root}: {error.strerror}") from error
        return cls(root)

    @classmethod
    def find(cls, given: Path | None, flags: Mapping[str, str] | None = None, cwd: Path | None = None) -> Workspace:
        """`--workspace`, else APPLIANCE_WORKSPACE, else the nearest parent folder with appliance.toml. Raises UsageError."""
        named = given or (Path(os.environ["APPLIANCE_WORKSPACE"]) if os.environ.get("APPLIANCE_WORKSPACE") else None)
        if named is not None:
            if not (named / configuration.FILE_NAME).is_file():
                raise UsageError(f"{named} is not a workspace (it has no {configuration.FILE_NAME}); make one with: appliance init {named}")
            return cls(named.resolve(), flags)
        start = (cwd or Path.cwd()).resolve()
        for folder in (start, *start.parents):
            if (folder / configuration.FILE_NAME).is_file():
                return cls(folder, flags)
        raise UsageError(
            "no workspace here or above; make one with `appliance init DIR`, or name one with --workspace or APPLIANCE_WORKSPACE"
        )

    def folder(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(exist_ok=True)
        return path

    def model(self, reference: str) -> ModelRef:
        """A model reference of the configuration; a relative path starts at the workspace."""
        return ModelRef.parse(reference).resolved(self.root)

    # --- domains

    def domains(self) -> list[str]:
        return [row.name for row in self.db.rows(_DOMAINS)]

    def check_domain(self, name: str) -> str:
        """`name` if it is known; else UsageError listing those that are."""
        known = self.domains()
        if name not in known:
            listed = ", ".join(known) if known else "none yet; `appliance ingest PATH --domain NAME` creates one"
            raise UsageError(f"unknown domain {name!r}; known: {listed}")
        return name

    def only_domain(self, given: str | None) -> str:
        """`given` checked, or the only domain there is. Raises UsageError when there is a choice to make."""
        if given is not None:
            return self.check_domain(given)
        known = self.domains()
        if len(known) == 1:
            return known[0]
        raise UsageError(f"name the domain with --domain; known: {', '.join(known) or 'none yet'}")

    @staticmethod
    def check_name(name: str) -> None:
        """Raises UsageError for a name no domain can have."""
        if not _DOMAIN.fullmatch(name):
            raise UsageError(f"{name!r} cannot be a domain's name; use lower-case letters, digits, - and _ (at most 63)")
        if name in _TAKEN:
            raise UsageError(f"{name!r} cannot be a domain's name: the API calls a model so; choose another one")

    def create_domain(self, name: str) -> str:
        """Create the domain if it is new. Raises UsageError for a name that is not lower-case letters, digits, - and _."""
        self.check_name(name)
        if name not in self.domains():
            with self.db.write() as connection:
                known = connection.execute(sa.select(schema.domain.c.name).where(schema.domain.c.name == name)).scalar_one_or_none()
                if known is None:
                    connection.execute(schema.domain.insert().values(name=name, created_at=utcnow()))
        return name

    def save_setting(self, path: str, value: Any) -> None:
        """Write one dotted setting into appliance.toml, keeping its comments and layout."""
        import tomlkit

        file = self.root / configuration.FILE_NAME
        document = tomlkit.parse(file.read_text("utf-8"))
        here: Any = document
        *parents, leaf = path.split(".")
        for key in parents:
            here = here.setdefault(key, tomlkit.table())
        here[leaf] = value
        write_whole(file, tomlkit.dumps(document))
        with self.db.write() as connection:
            self.db.audit(connection, "config.set", {"setting": path})
        self.config, self.origins = configuration.load(file, self.flags)
