"""The import rules of ARCHITECTURE.md, checked on the real import graph."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("appliance", "retrieval", "finetune", "router", "eval")
ALLOWED = {
    "retrieval": set(),
    "eval": {"retrieval.types", "retrieval.text"},
    "router": {"retrieval.types", "retrieval.text"},
    "finetune": {"retrieval.text"},
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, cache_dir=None)


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_it_may(graph: grimp.ImportGraph, package: str) -> None:
    for module in {package} | graph.find_descendants(package):
        for imported in graph.find_modules_directly_imported_by(module):
            if imported.split(".")[0] in PACKAGES and imported.split(".")[0] != package:
                assert imported in ALLOWED[package], f"{module} imports {imported}"


def test_the_graph_sees_the_real_imports(graph: grimp.ImportGraph) -> None:
    assert "retrieval.types" in graph.find_modules_directly_imported_by("router.types")


@pytest.mark.parametrize("module", ["appliance.cli.main", "appliance.gateway.app"])
def test_thin_parts_load_no_heavy_library(module: str) -> None:
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'faiss', 'transformers', 'trl', 'datasets', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_files_stay_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if (lines := len(path.read_text("utf-8").splitlines())) > 420
    }
    assert not long
