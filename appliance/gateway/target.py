"""Which domain and arm a request means, and whether its caller may have them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from appliance.gateway.errors import ApiError
from appliance.gateway.events import Answers
from appliance.types import ArmChoice, Caller
from router.types import ARMS, Arm

# The same as ArmChoice, in one literal: validation then names the field and lists every choice.
ChosenArm = Literal["auto", Arm]
# The embedding model's name in requests; which one it is the configuration says ([models] embedding).
EMBEDDING = "embedding"
# Text of any length. With a constraint, half a character (which JSON can escape, and no encoding takes) is refused too.
Words = Annotated[str, StringConstraints(min_length=0)]
# A request may see less than its key: only documents whose labels are all among these.
Labels = Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=200)]], Field(max_length=100)]


def model_ids(answering: Answers, caller: Caller) -> list[str]:
    """``auto``, every domain the caller may ask, every ``domain/arm``, and the embedding model."""
    ids = ["auto"]
    for domain in answering.domains(caller):
        ids += [domain, *(f"{domain}/{arm}" for arm in answering.arms(domain, caller))]
    return [*ids, EMBEDDING]


def check_domain(answering: Answers, caller: Caller, domain: str, param: str) -> None:
    """Raises ApiError 403 for a domain outside the key's scope, known or not, and 404 for one that does not exist."""
    allowed = caller.scope.domains
    if allowed is not None and domain not in allowed:
        raise ApiError(403, f"this key may not ask the domain {domain!r}", param=param, code="domain_not_allowed")
    known = answering.domains(caller)
    if domain not in known:
        if param == "model":
            # As OpenAI's clients know it.
            raise ApiError(404, f"the model {domain!r} does not exist; GET /v1/models lists them", param=param, code="model_not_found")
        listed = ", ".join(known) or "none yet"
        raise ApiError(404, f"unknown domain {domain!r}; known domains: {listed}", param=param, code="domain_not_found")


def narrowing(caller: Caller, labels: list[str] | None, param: str) -> frozenset[str] | None:
    """The labels a request limits itself to, None for all of its caller's. Raises ApiError 403 for one that the key does not hold."""
    for label in labels or ():
        if label not in caller.scope.labels:
            raise ApiError(403, f"this key does not hold the label {label!r}", param=param, code="label_not_allowed")
    return None if labels is None else frozenset(labels)


def resolve(answering: Answers, caller: Caller, model: str, domain: str | None, arm: ArmChoice | None) -> tuple[str | None, ArmChoice]:
    """Domain and arm from a chat request's `model` and its ``appliance`` object.

    Raises ApiError: 404 for an unknown model, 403 for a domain outside the key's scope, 400 when the two contradict each other.
    """
    model_domain, slash, model_arm = model.partition("/")
    if model == "auto":
        wanted, choice = domain, arm
    else:
        if domain not in (None, model_domain):
            raise ApiError(400, f"the model names the domain {model_domain!r}, appliance.domain is {domain!r}", param="appliance.domain")
        if model == EMBEDDING:
            raise ApiError(
                404, f"the model {EMBEDDING!r} is for POST /v1/embeddings and does not chat", param="model", code="model_not_found"
            )
        wanted, choice = model_domain, arm
        if slash:
            known = next((known for known in ARMS if known == model_arm), None)
            if known is None:
                raise ApiError(404, f"the model {model!r} does not exist; GET /v1/models lists them", param="model", code="model_not_found")
            if arm not in (None, known):
                raise ApiError(400, f"the model names the arm {known!r}, appliance.arm is {arm!r}", param="appliance.arm")
            choice = known
    if wanted is not None:
        check_domain(answering, caller, wanted, "appliance.domain" if model == "auto" else "model")
    if slash and wanted is not None:
        offered = answering.arms(wanted, caller)
        if model_arm not in offered:
            message = f"the domain {wanted!r} has no arm {model_arm!r} now; it has {', '.join(offered)}"
            raise ApiError(404, message, param="model", code="model_not_found")
    return wanted, choice or "auto"
