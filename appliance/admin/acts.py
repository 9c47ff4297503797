"""What an administrator does to a running appliance: the acts of the command line, each in the name and within the limits of a key.

A key limited to domains administers no other, and what carries labels that it does not hold is not there for it. What is quick is done at
once; what trains, parses, measures or writes the index becomes a job (see `appliance.jobs.jobs`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from appliance.adapters import canary as canaries
from appliance.adapters.card import facts, moves
from appliance.adapters.gate_checks import gates_of, last_gate
from appliance.adapters.gates import rollback
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.admin.key_acts import KeyActs
from appliance.admin.rights import Forbidden, Missing, existing, within
from appliance.admin.uploads import Uploads
from appliance.datasets.registry import Datasets, several
from appliance.errors import ApplianceError, DatabaseFailed, GateMissed, UsageError
from appliance.evaluation.runs import parse_arms
from appliance.jobs.jobs import STATES, Job, Jobs
from appliance.jobs.schedule import Schedule
from appliance.knowledge.documents import listed
from appliance.knowledge.index_status import index_status
from appliance.types import Caller
from finetune.settings import settings_from, yields
from finetune.types import Task, TrainingError
from retrieval.types import DocumentKey

logger = logging.getLogger("appliance.admin")


class Administration(KeyActs):
    """The administration of one workspace; every method is for one caller and blocks while the database is used."""

    # --- uploads

    def receiver(self, caller: Caller) -> Uploads:
        """Takes files in the caller's name."""
        return Uploads(self.workspace, self.acting(caller).db)

    def uploads(self, caller: Caller) -> list[dict[str, Any]]:
        """The caller's files that wait or are being taken."""
        return [upload.to_json() for upload in Uploads(self.workspace).all(caller.name)]

    def drop(self, caller: Caller, identity: str) -> dict[str, Any]:
        """Remove a file that waits."""
        uploads = self.receiver(caller)
        [upload] = existing(lambda: uploads.waiting([identity], caller.name))
        uploads.remove(upload)
        return {"removed": identity}

    # --- documents and the index

    def ingest(self, caller: Caller, ids: Sequence[str], domain: str | None, labels: Sequence[str], archives: bool) -> dict[str, Any]:
        """Bring uploaded files in. A new domain is created; `labels` are those that the caller holds."""
        self.may(caller, domain)
        if domain is not None:
            self.workspace.check_name(domain)
        self.holds(caller, labels)
        uploads = Uploads(self.workspace)
        files = uploads.waiting(ids, caller.name)
        for upload in files:
            self.not_over(caller, domain, upload)
        given = {
            "uploads": [upload.id for upload in files],
            "names": [upload.name for upload in files],
            "paths": [str(uploads.place(upload)[0]) for upload in files],
            "domain": domain,
            "labels": sorted(labels),
            "archives": archives,
        }
        return self.queue(caller, "ingest", given, domain, labels, files)

    def documents(self, caller: Caller, domain: str | None, limit: int, offset: int) -> dict[str, Any]:
        """The live documents that the caller may see, `limit` of all after `offset` looked through; `next` is where to go on."""
        self.asked(caller, domain)
        page = self.service.knowledge.documents.page(domain, limit, offset, caller.scope.domains)
        rows = [listed(info, chunks) for info, chunks in page if info.labels <= caller.scope.labels]
        return {"documents": rows, "next": offset + limit if len(page) == limit else None}

    def remove_documents(self, caller: Caller, domain: str, ids: Sequence[str]) -> dict[str, Any]:
        """Delete documents for good."""
        self.check(caller, domain)
        labels: set[str] = set()
        for identity in ids:
            info = self.service.knowledge.documents.current(DocumentKey(domain, identity))
            if info is None or not info.labels <= caller.scope.labels:
                raise Missing(f"no document {identity!r} in {domain!r}")
            labels |= info.labels
        return self.queue(caller, "document-remove", {"domain": domain, "documents": list(ids)}, domain, labels)

    def index(self, caller: Caller) -> dict[str, Any]:
        """The live generation and what is wrong with it, and the schedule."""
        self.everywhere(caller)
        knowledge = self.service.knowledge
        return {**index_status(knowledge), "schedule": Schedule(knowledge).status()}

    def index_job(self, caller: Caller, kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Roll back, rebuild or compact the index, which belongs to all domains."""
        self.everywhere(caller)
        return self.queue(caller, kind, arguments, None)

    # --- data sets and training

    def datasets(self, caller: Caller) -> list[dict[str, Any]]:
        """The live versions of the data sets of the caller's domains."""
        return [
            {"name": info.name, "version": info.version, "domain": info.domain, "task": info.task, **info.counts}
            for info in Datasets(self.workspace).all()
            if within(caller, info.domain)
        ]

    def add_dataset(
        self,
        caller: Caller,
        upload: str,
        name: str | None,
        domain: str | None,
        mapping: Mapping[str, str] | None,
        task: Task | None,
        skip_bad: bool,
    ) -> dict[str, Any]:
        """Register an uploaded file as a data set."""
        self.may(caller, domain)
        if domain is not None:
            self.workspace.check_name(domain)
        uploads = Uploads(self.workspace)
        files = uploads.waiting([upload], caller.name)
        path = uploads.place(files[0])[1]
        called = name or path.stem
        other = next((info for info in Datasets(self.workspace).all() if info.name == called), None)
        if other is not None and not within(caller, other.domain):
            raise Forbidden(f"the name {called!r} is taken; choose another one")
        given = {
            "path": str(path),
            "uploads": [upload],
            "name": called,
            "domain": domain,
            "mapping": None if mapping is None else dict(mapping),
            "task": task,
            "skip_bad": skip_bad,
        }
        return self.queue(caller, "dataset-add", given, domain, uploads=files)

    def check_dataset(self, caller: Caller, name: str) -> dict[str, Any]:
        """Look for what is wrong with a data set."""
        info = self.dataset(caller, name)
        return self.queue(caller, "dataset-check", {"dataset": name}, info.domain)

    def tune(
        self, caller: Caller, domain: str, dataset: str | None, method: str | None, settings: Mapping[str, Any], promote: bool
    ) -> dict[str, Any]:
        """Train an adapter; `settings` are those of a training file, without stages and search."""
        self.check(caller, domain)
        try:
            wanted = settings_from({**settings, **({} if method is None else {"method": method})})
        except TrainingError as error:
            raise UsageError(str(error)) from error
        for name in [*several(dataset or ""), *several(wanted.eval_dataset or "")]:
            self.dataset(caller, name)
        if dataset is None and wanted.method != "pretrain":
            raise UsageError(f"method {wanted.method} learns from a data set: name it")
        if promote and yields(wanted.method) == "model":
            raise UsageError(f"method {wanted.method} makes a model, which no alias points at: leave promote out")
        given = {"domain": domain, "dataset": dataset, "method": method, "settings": dict(settings), "promote": promote}
        return self.queue(caller, "tune", given, domain)

    def retrain(self, caller: Caller, domain: str) -> dict[str, Any]:
        """Train a domain from the newest data now, as its schedule would."""
        self.check(caller, domain)
        return self.queue(caller, "retrain", {"domain": domain}, domain)

    # --- adapters

    def adapters(self, caller: Caller, domain: str | None) -> list[dict[str, Any]]:
        """The versions of the caller's domains that it may use."""
        self.asked(caller, domain)
        registry = self.service.registry
        live, deleted, tried = registry.in_use(), registry.deleted(), canaries.candidates(self.workspace.db)
        return [
            {
                "version": version.name,
                "domain": version.domain,
                "live": version.name in live,
                "on_trial": version.name in tried,
                "kind": version.kind,
                "method": version.method,
                "dataset": f"{version.dataset}@{version.dataset_version}",
                "gate": None if (gate := last_gate(self.workspace, version.name)) is None else "passed" if gate.passed else "missed",
                "problem": self._problem(version),
                "deleted_documents": [key.id for key in deleted.get(version.name, ())],
                "created_at": version.created_at.isoformat(timespec="seconds"),
            }
            for version in registry.versions(domain)
            if self.visible(caller, version)
        ]

    def adapter(self, caller: Caller, name: str) -> dict[str, Any]:
        """Everything recorded about a version."""
        version = self.version(caller, name)
        found = facts(self.service.registry, version)
        shown = {key: value for key, value in found.items() if key != "path"}
        return {**shown, "went_live": moves(self.service.registry, version), "problem": self._problem(version)}

    def _problem(self, version: AdapterVersion) -> str | None:
        """Why the domain's engine does not serve the version's files; None if it does, or has not looked at them."""
        engine = self.service.engines.started().get(self.workspace.config.engine_of(version.domain)[0])
        return None if engine is None else engine.problems.get(version.name) or None

    def gates(self, caller: Caller, name: str) -> list[dict[str, Any]]:
        """What was measured when the version was to go live, oldest first."""
        version = self.version(caller, name)
        return [gate.to_json() for gate in gates_of(self.workspace, version.name)]

    def promote(self, caller: Caller, name: str, why: str | None) -> dict[str, Any]:
        """Make a version live if it passes the gate, or with `why` without."""
        version = self.version(caller, name)
        return self.queue(caller, "adapter-promote", {"version": name, "why": why}, version.domain, version.labels)

    def rollback(self, caller: Caller, domain: str) -> dict[str, Any]:
        """Go back to the version that was live before the live one was promoted; see `appliance.adapters.gates.rollback`."""
        self.check(caller, domain)
        live = self.service.registry.live(domain)
        if live is not None and not self.visible(caller, live):
            raise Missing(f"no version of {domain!r} that this key may know of is live")
        try:
            version = rollback(Registry(self.acting(caller)), self.service.models, domain)
        except (UsageError, DatabaseFailed):
            raise
        except ApplianceError as error:
            # In full it may name paths and versions that this key may not know of.
            logger.error("rollback of %s: %s", domain, error)
            why = "the version that was live before cannot be served; the operator's log says why; promote another one"
            raise GateMissed(f"nothing was rolled back in {domain}: {why}") from error
        shown = version is not None and self.visible(caller, version)
        return {"domain": domain, "live": version.name if version is not None and shown else None}

    def canaries(self, caller: Caller, domain: str | None) -> list[dict[str, Any]]:
        """The versions on trial and those that were, newest first, with their figures."""
        self.asked(caller, domain)
        database, registry = self.workspace.db, self.service.registry
        found = [one for one in canaries.history(database, domain) if within(caller, one.domain)]
        hidden = {version.name for version in registry.versions(domain) if not self.visible(caller, version)}
        return [
            {**one.to_json(), "figures": canaries.figures(database, one)} for one in found if hidden.isdisjoint((one.candidate, one.live))
        ]

    def start_canary(self, caller: Caller, name: str, share: float | None, why: str | None) -> dict[str, Any]:
        """Try a version on a share of the questions if it passes the gate, or with `why` without."""
        version = self.version(caller, name)
        return self.queue(caller, "canary-start", {"version": name, "share": share, "why": why}, version.domain, version.labels)

    def stop_canary(self, caller: Caller, domain: str) -> dict[str, Any]:
        """End the trial in a domain."""
        self.check(caller, domain)
        for one in canaries.running(self.workspace.db, domain):
            # Raises Missing for one that is not there for this key.
            self.version(caller, one.candidate)
        return canaries.stop(self.acting(caller).db, domain).to_json()

    # --- approved answers and evaluation

    def verified(self, caller: Caller, domain: str | None) -> list[dict[str, Any]]:
        """The approved answers that the caller may see."""
        self.asked(caller, domain)
        return [answer.to_json() for answer in self.service.verified.all(domain) if self.sees(caller, answer)]

    def approve(self, caller: Caller, domain: str, question: str, answer: str, doc_ids: Sequence[str], approved_by: str) -> dict[str, Any]:
        """Approve an answer, resting on documents that the caller may see."""
        self.check(caller, domain)
        for identity in doc_ids:
            info = self.service.knowledge.documents.current(DocumentKey(domain, identity))
            if info is None or not info.labels <= caller.scope.labels:
                raise Missing(f"no document {identity!r} in {domain!r}")
        made = self.answers(caller).add(domain, question, answer, doc_ids, approved_by, self.workspace.config.answering.support)
        return {"id": made.id, "domain": made.domain, "citations": [{"doc_id": c.doc_id, "quote": c.quote} for c in made.citations]}

    def withdraw(self, caller: Caller, identity: str) -> dict[str, Any]:
        """Withdraw an approved answer."""
        if not any(answer.id == identity and self.sees(caller, answer) for answer in self.service.verified.all()):
            raise Missing(f"no verified answer {identity!r}")
        self.answers(caller).remove(identity)
        return {"removed": identity}

    def runs(self, caller: Caller) -> list[dict[str, Any]]:
        """The evaluation runs of the caller's domains, newest first; not those that rest on labels it does not hold."""
        return [
            {
                "run_id": row.id,
                "dataset": row.dataset,
                "domain": row.domain,
                "finished": row.finished_at is not None,
                "created_at": row.created_at.isoformat(timespec="seconds"),
            }
            for row in self.readable_runs(caller)
        ]

    def run(self, caller: Caller, identity: str) -> dict[str, Any]:
        """The summary of a finished run."""
        row = next((row for row in self.readable_runs(caller) if row.id == identity), None)
        if row is None:
            raise Missing(f"no run {identity!r}")
        return {
            "run_id": row.id,
            "dataset": row.dataset,
            "domain": row.domain,
            "finished": row.finished_at is not None,
            "summary": row.summary,
        }

    def evaluate(self, caller: Caller, dataset: str, arms: str, split: str, limit: int | None, max_tokens: int) -> dict[str, Any]:
        """Measure arms on a data set."""
        info = self.dataset(caller, dataset)
        parse_arms(arms)
        given = {"dataset": dataset, "arms": arms, "split": split, "limit": limit, "max_tokens": max_tokens}
        return self.queue(caller, "eval-run", given, info.domain)

    # --- jobs

    def jobs(self, caller: Caller, domain: str | None, state: str | None, limit: int) -> list[dict[str, Any]]:
        """The newest jobs that the caller may see; of a key that only brings in, its own."""
        self.asked(caller, domain)
        states = STATES if state is None else (state,)
        found = Jobs(self.workspace.db).newest(domain=domain, states=states, within=caller.scope.domains)
        return [job.to_json() for job in islice((job for job in found if self.concerns(caller, job)), limit)]

    def job(self, caller: Caller, identity: str) -> Job:
        """A job that the caller may see."""
        found = Jobs(self.workspace.db).find(identity)
        if found is None or not self.concerns(caller, found):
            raise Missing(f"no job {identity!r}")
        return found

    def cancel(self, caller: Caller, identity: str) -> dict[str, Any]:
        """Cancel a job."""
        self.job(caller, identity)
        found = Jobs(self.acting(caller).db).cancel(identity)
        if found.ended:
            # It never ran, so no worker removes its files.
            Uploads(self.workspace).taken(identity)
        return found.to_json()
