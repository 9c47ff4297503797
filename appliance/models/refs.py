"""Model references: `hub:org/name[@revision]`, `path:FOLDER`, `pypi:package==version#file[;sha256=HEX]`."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from appliance.errors import UsageError

Scheme = Literal["hub", "path", "pypi"]

_FORMS = "hub:org/name[@revision], path:FOLDER, or pypi:package==version#file;sha256=HEX"
_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<version>[\w./-]+))?")
_PYPI = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[\w.!+-]+)(#(?P<file>[^;#]+))?(;sha256=(?P<sha256>[0-9a-fA-F]{64}))?")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Where a model comes from.

    `name` is the repository, folder or package; `version` the revision or package version ('' for the default);
    `file` the file inside the wheel and `sha256` the wheel's hash ('' when the catalogue knows them).
    """

    scheme: Scheme
    name: str
    version: str = ""
    file: str = ""
    sha256: str = ""

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read a reference as written in a config file; raises UsageError naming what was expected."""
        scheme, colon, rest = text.strip().partition(":")
        if not colon or scheme not in ("hub", "path", "pypi") or not rest:
            raise UsageError(f"model reference {text!r}: expected {_FORMS}")
        if scheme == "path":
            return cls("path", rest)
        if scheme == "hub":
            found = _HUB.fullmatch(rest)
            if found is None:
                raise UsageError(f"model reference {text!r}: expected hub:org/name or hub:org/name@revision")
            return cls("hub", found["name"], found["version"] or "")
        found = _PYPI.fullmatch(rest)
        if found is None:
            raise UsageError(
                f"model reference {text!r}: expected pypi:package==version#file-in-the-wheel;sha256=64-hex-digits-of-the-wheel"
            )
        # Package names compare as the packaging specification says (PEP 503).
        name = re.sub(r"[-_.]+", "-", found["name"]).lower()
        return cls("pypi", name, found["version"], found["file"] or "", (found["sha256"] or "").lower())

    def resolved(self, folder: Path) -> ModelRef:
        """The same reference with a relative `path:` made absolute against `folder`."""
        if self.scheme != "path":
            return self
        return ModelRef("path", str((folder / Path(self.name).expanduser()).resolve()))

    @property
    def slug(self) -> str:
        """A folder name: readable, and unique by the hash of the whole reference."""
        readable = re.sub(r"[^\w.-]+", "-", f"{self.name}-{self.version}").strip("-.")[-80:]
        return f"{readable}-{hashlib.sha256(str(self).encode()).hexdigest()[:8]}"

    def __str__(self) -> str:
        if self.scheme == "hub":
            return f"hub:{self.name}" + (f"@{self.version}" if self.version else "")
        if self.scheme == "path":
            return f"path:{self.name}"
        return (
            f"pypi:{self.name}=={self.version}" + (f"#{self.file}" if self.file else "") + (f";sha256={self.sha256}" if self.sha256 else "")
        )
