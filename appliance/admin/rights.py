"""What a key may administer: its domains and labels, and whose jobs it may see."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from appliance.adapters.registry import AdapterVersion
from appliance.admin.uploads import Upload, Uploads
from appliance.answers.verified import Verified, VerifiedAnswers
from appliance.datasets.registry import DatasetInfo, Datasets
from appliance.errors import UsageError
from appliance.evaluation.runs import runs
from appliance.jobs.jobs import Job, Jobs, new_id
from appliance.service import Service
from appliance.types import Caller
from appliance.workspace import Workspace
from retrieval.parsers import ARCHIVES
from retrieval.types import DocumentKey

T = TypeVar("T")
# Formats of one file with many documents.
_CORPORA = (*ARCHIVES, ".jsonl", ".ndjson", ".csv", ".tsv")


class Forbidden(UsageError):
    """The key may not do this."""


class Missing(UsageError):
    """There is no such thing, or the key may not know of it."""


class Rights:
    """The limits of keys over one workspace. A method that gives nothing back raises Forbidden or Missing."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.workspace = service.workspace

    def acting(self, caller: Caller) -> Workspace:
        """The workspace, with the caller as the one who acts."""
        acting = copy.copy(self.workspace)
        acting.db = copy.copy(self.workspace.db)
        acting.db.actor = f"key:{caller.name}"
        return acting

    def answers(self, caller: Caller) -> VerifiedAnswers:
        acting = copy.copy(self.service.verified)
        acting.db = self.acting(caller).db
        return acting

    def queue(
        self,
        caller: Caller,
        kind: str,
        arguments: Mapping[str, Any],
        domain: str | None,
        labels: Collection[str] = (),
        uploads: Sequence[Upload] = (),
    ) -> dict[str, Any]:
        identity = new_id()
        if uploads:
            Uploads(self.workspace).take(uploads, identity)
        return Jobs(self.acting(caller).db).add(kind, arguments, domain, labels, identity).to_json()

    def may(self, caller: Caller, domain: str | None) -> None:
        """Raises Forbidden unless the caller may act on the domain (None: on all)."""
        if not within(caller, domain):
            which = "all domains: name one" if domain is None else repr(domain)
            raise Forbidden(f"this key is limited to {', '.join(sorted(caller.scope.domains or ()))} and not for {which}")

    def check(self, caller: Caller, domain: str | None) -> None:
        """The same for a domain that must exist. Raises Missing."""
        self.may(caller, domain)
        if domain is not None and domain not in self.workspace.domains():
            raise Missing(f"unknown domain {domain!r}")

    def asked(self, caller: Caller, domain: str | None) -> None:
        """`check` for the domain that a list is limited to, if it is to any."""
        if domain is not None:
            self.check(caller, domain)

    def everywhere(self, caller: Caller) -> None:
        if caller.scope.domains is not None:
            raise Forbidden("the index belongs to all domains, and this key is limited to some")

    def holds(self, caller: Caller, labels: Sequence[str]) -> None:
        for label in labels:
            if label not in caller.scope.labels:
                raise Forbidden(f"this key does not hold the label {label!r}")

    def not_over(self, caller: Caller, domain: str | None, upload: Upload) -> None:
        """Nobody replaces a document that they may not see; files that name their documents themselves need every label there is."""
        documents = self.service.knowledge.documents
        if f".{upload.kind}" in _CORPORA:
            met = frozenset[str]().union(*(info.labels for info in documents.documents(domain)))
            if not met <= caller.scope.labels:
                raise Forbidden(f"{upload.name} names its documents itself: that is for keys which hold every label of the domain")
        for name in [domain] if domain is not None else self.workspace.domains():
            info = documents.current(DocumentKey(name, upload.name))
            if info is not None and not info.labels <= caller.scope.labels:
                raise Forbidden(f"the name {upload.name!r} is taken in {name}; choose another one")

    def dataset(self, caller: Caller, name: str) -> DatasetInfo:
        found = next((info for info in Datasets(self.workspace).all() if info.name == name and within(caller, info.domain)), None)
        if found is None:
            raise Missing(f"no data set {name!r}")
        return found

    def version(self, caller: Caller, name: str) -> AdapterVersion:
        version = self.service.registry.find(name)
        if version is None or not self.visible(caller, version):
            raise Missing(f"no adapter version {name!r}")
        return self.service.registry.current(name)

    def visible(self, caller: Caller, version: AdapterVersion) -> bool:
        if not within(caller, version.domain):
            return False
        with suppress(UsageError):
            return self.service.registry.current(version.name).labels <= caller.scope.labels
        return False

    def sees(self, caller: Caller, answer: Verified) -> bool:
        if not within(caller, answer.domain) or not answer.labels <= caller.scope.labels:
            return False
        found = [self.service.knowledge.documents.current(DocumentKey(cited.domain, cited.doc_id)) for cited in answer.citations]
        return all(info.labels <= caller.scope.labels for info in found if info is not None)

    def readable_runs(self, caller: Caller) -> list[Any]:
        return [
            row
            for row in runs(self.service)
            if within(caller, row.domain) and frozenset(row.settings.get("labels", ())) <= caller.scope.labels
        ]

    def concerns(self, caller: Caller, job: Job) -> bool:
        own = job.actor == f"key:{caller.name}"
        return (own or "admin" in caller.scopes) and within(caller, job.domain) and frozenset(job.labels) <= caller.scope.labels


def within(caller: Caller, domain: str | None) -> bool:
    """Whether a domain is the caller's to administer; what belongs to none is for keys that are not limited."""
    return caller.scope.domains is None or domain in caller.scope.domains


def existing(look: Callable[[], T]) -> T:
    """What `look` finds; a UsageError of its becomes Missing."""
    try:
        return look()
    except UsageError as error:
        raise Missing(str(error)) from error
