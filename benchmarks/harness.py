"""What every benchmark shares: its options, facts about the machine, the table, and the JSON that is kept.

The JSON is ``{"machine": {}, "settings": {}, "rows": [], "claims": [{"name", "value", "unit", "target", "holds"}]}``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("appliance", "retrieval", "finetune", "router", "eval")


@dataclass(frozen=True, slots=True)
class Claim:
    """A figure and what it must be: `target` is the bound that `value` was compared with."""

    name: str
    value: float
    unit: str
    target: str
    holds: bool


def at_least(name: str, value: float, bound: float, unit: str) -> Claim:
    value = round(value, 4)
    return Claim(name, value, unit, f">= {bound:g}", value >= bound)


def above(name: str, value: float, bound: float, unit: str) -> Claim:
    """For what must be more than nothing: a bound that is only reached does not hold."""
    value = round(value, 4)
    return Claim(name, value, unit, f"> {bound:g}", value > bound)


def at_most(name: str, value: float, bound: float, unit: str) -> Claim:
    value = round(value, 4)
    return Claim(name, value, unit, f"<= {bound:g}", value <= bound)


def options(description: str) -> argparse.ArgumentParser:
    """The options of every benchmark; a benchmark may add its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="one domain of the sample only; no claim of significance")
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("APPLIANCE_DATA"),
        help="folder of public data sets (default: $APPLIANCE_DATA); what measures the sample knowledge base reads none",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, rows and claims to FILE")
    return parser


def machine() -> dict[str, Any]:
    """Where and when this ran. `commit` is '' outside a clone; `sources` is a hash of the packages' code, which also tells
    a changed working tree from the commit."""
    import psutil

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(ROOT / ".git"),
        "sources": _sources(),
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "transformers", "sentence-transformers", "faiss-cpu", "rouge-score")},
    }


def finish(path: Path | None, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], claims: Sequence[Claim]) -> None:
    """Print the claims; write the JSON beside its final name, then move it there."""
    print_table("claims", [asdict(claim) for claim in claims])
    if path is None:
        return
    found = {"machine": machine(), "settings": dict(settings), "rows": list(rows), "claims": [asdict(claim) for claim in claims]}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", "utf-8")
    beside.replace(path)


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same keys as an aligned table; numbers to the right."""
    print(f"\n{title}")
    if not rows:
        print("  (nothing)")
        return
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    text = [isinstance(value, str) for value in rows[0].values()]
    for line in cells:
        print("  " + "  ".join(c.ljust(w) if t else c.rjust(w) for c, w, t in zip(line, widths, text, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _commit(git: Path) -> str:
    if not (git / "HEAD").is_file():
        return ""
    head = (git / "HEAD").read_text("utf-8").strip()
    if not head.startswith("ref: "):
        return head
    name = head.removeprefix("ref: ")
    if (git / name).is_file():
        return (git / name).read_text("utf-8").strip()
    packed = (git / "packed-refs").read_text("utf-8") if (git / "packed-refs").is_file() else ""
    return next((line.split()[0] for line in packed.splitlines() if line.endswith(f" {name}")), "")


def _sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
