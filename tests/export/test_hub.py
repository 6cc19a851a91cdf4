"""The download, against a small server on this machine that answers the routes of the Hub that huggingface_hub uses."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sdturbo.errors import InvalidRequest
from sdturbo_export.errors import LicenceNotAccepted
from sdturbo_export.weights import hub

REVISION = "0123456789abcdef0123456789abcdef01234567"
COMMON = [
    "model_index.json",
    "LICENSE.md",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
]
FP16 = [
    "text_encoder/model.fp16.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors",
]
FP32 = [name.replace(".fp16", "") for name in FP16]
UNWANTED = [
    ".gitattributes",
    "README.md",
    "image.png",
    "sd_turbo.safetensors",
    "safety_checker/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder/pytorch_model.fp16.bin",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "vae/diffusion_pytorch_model.fp16.bin",
    "unet/openvino_model.xml",
]
SHARDS_FP16 = [
    "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
]
SHARDS_FP32 = [
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
]


@dataclass
class Hub:
    """What the server holds and answers, and what was requested of it, in order."""

    files: list[str] = field(default_factory=lambda: COMMON + FP16 + FP32 + UNWANTED)
    status: int = 200
    error_code: str = ""
    requests: list[str] = field(default_factory=list)
    address: str = ""

    def fetched(self) -> list[str]:
        """The files whose bytes were asked for."""
        gets = [request.split("/resolve/")[1] for request in self.requests if request.startswith("GET /someone/")]
        assert all(get.startswith(f"{REVISION}/") for get in gets)
        return sorted(get.removeprefix(f"{REVISION}/") for get in gets)


@pytest.fixture
def server() -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            state.requests.append(f"{self.command} {path}")
            headers, body = {}, b""
            if state.status != 200:
                headers = {"X-Error-Code": state.error_code}
            elif path.startswith("/api/models/"):
                listing = [{"type": "file", "path": name, "size": len(name), "oid": "0" * 40} for name in state.files]
                headers, body = {"Content-Type": "application/json"}, json.dumps(listing).encode()
            elif "/resolve/" in path:
                revision, name = path.split("/resolve/")[1].split("/", 1)
                body = name.encode()  # each file holds its own name
                headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": revision}
            self.send_response(state.status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.address = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield state
        http.shutdown()


SCRIPT = """
import json, sys, time, urllib.request
from sdturbo_export.weights import hub
time.sleep = lambda seconds: None  # huggingface_hub waits 23 s in all between its attempts
address, request = sys.argv[1], json.loads(sys.argv[2])
hub.SD_TURBO_SHA256.update(request.pop("sha256", {}))
answer = request.pop("answer", None)
def ask(question):
    urllib.request.urlopen(address + "/asked").close()
    return answer
try:
    result = {"path": str(hub.download(**request, ask=None if answer is None else ask))}
except Exception as error:
    result = {"error": type(error).__name__, "message": str(error), "faults": getattr(error, "faults", ())}
print(json.dumps(result))
"""


def download(server: Hub, home: Path, *, environment: dict[str, str] | None = None, **request: Any) -> dict[str, Any]:
    """`hub.download` in a process that knows no other Hub than the server: result or error as a dictionary."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    kept |= {"HF_ENDPOINT": server.address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    request = {"repo_id": "someone/model", "revision": REVISION, "accept_license": True} | request
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, server.address, json.dumps(request)],
        env=kept | (environment or {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("variant", "weights"), [("fp16", FP16), ("", FP32)])
def test_only_the_wanted_variant_of_the_pinned_revision_is_fetched(
    server: Hub, tmp_path: Path, variant: str, weights: list[str]
) -> None:
    path = Path(download(server, tmp_path, variant=variant)["path"])
    assert server.fetched() == sorted(COMMON + weights)
    assert all(REVISION in request for request in server.requests)
    assert sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()) == server.fetched()
    assert all((path / name).read_text() == name for name in server.fetched())


@pytest.mark.parametrize(("variant", "weights", "shards"), [("fp16", FP16, SHARDS_FP16), ("", FP32, SHARDS_FP32)])
def test_shards_and_their_index_belong_to_their_variant(
    server: Hub, tmp_path: Path, variant: str, weights: list[str], shards: list[str]
) -> None:
    others = [name for name in weights if not name.startswith("unet/")]
    server.files = COMMON + [name for name in FP16 + FP32 if not name.startswith("unet/")] + SHARDS_FP16 + SHARDS_FP32
    assert "path" in download(server, tmp_path, variant=variant)
    assert server.fetched() == sorted(COMMON + others + shards)


def test_what_is_cached_is_not_requested_again_and_works_offline(server: Hub, tmp_path: Path) -> None:
    first = download(server, tmp_path)
    server.requests.clear()
    assert download(server, tmp_path) == first
    assert download(server, tmp_path, environment={"HF_HUB_OFFLINE": "1"}) == first
    assert server.requests == []


def test_nothing_is_requested_before_the_licence_is_accepted(server: Hub, tmp_path: Path) -> None:
    refused = download(server, tmp_path, accept_license=False)
    assert refused["error"] == "LicenceNotAccepted"
    assert server.requests == []
    refused = download(server, tmp_path, accept_license=False, answer=False)
    assert refused["error"] == "LicenceNotAccepted"
    assert server.requests == ["GET /asked"]
    assert "path" in download(server, tmp_path, accept_license=False, answer=True)
    assert server.requests[:2] == ["GET /asked", "GET /asked"]
    assert server.requests.count("GET /asked") == 2
    assert server.fetched() == sorted(COMMON + FP16)


@pytest.mark.parametrize(
    ("repo_id", "revision", "words"),
    [
        (hub.SD_TURBO, None, ["Stability AI Community License", "https://stability.ai/license", "USD 1M"]),
        ("someone/model", REVISION, ["its own licence", "https://huggingface.co/someone/model"]),
    ],
)
def test_question_names_the_licence(repo_id: str, revision: str | None, words: list[str]) -> None:
    questions: list[str] = []

    def ask(question: str) -> bool:
        questions.append(question)
        return False

    with pytest.raises(LicenceNotAccepted, match="--accept-license") as caught:
        hub.download(repo_id, revision=revision, accept_license=False, ask=ask)
    (question,) = questions
    assert all(word in question and word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"repo_id": "someone/model", "revision": None}, r"There is no directory someone/model\. .* 40 hex digits"),
        ({"repo_id": "someone/model", "revision": "main"}, "Got revision 'main' .* 40 hex digits"),
        ({"repo_id": hub.SD_TURBO, "revision": "main"}, "Got revision 'main' .* 40 hex digits"),
        ({"repo_id": "someone/model", "revision": REVISION[:12]}, "40 hex digits"),
        ({"repo_id": "someone/model", "revision": REVISION + "\n"}, "40 hex digits"),
        ({"repo_id": "a/b/c", "revision": REVISION}, "'a/b/c'.* or an existing directory"),
        ({"repo_id": "", "revision": REVISION}, "or an existing directory"),
        ({"repo_id": "someone/model", "revision": REVISION, "variant": "*"}, r"Got variant '\*'. Expected a word"),
    ],
)
def test_unusable_request_is_refused_before_the_licence_question(request_: dict[str, Any], message: str) -> None:
    def ask(question: str) -> bool:
        raise AssertionError(question)

    with pytest.raises(InvalidRequest, match=message):
        hub.download(**request_, accept_license=False, ask=ask)


def test_sd_turbo_is_pinned_and_its_weights_are_checked(server: Hub, tmp_path: Path) -> None:
    altered = download(server, tmp_path, repo_id=hub.SD_TURBO, revision=None)
    assert altered["error"] == "CheckpointError"
    assert [fault.split()[0] for fault in altered["faults"]] == list(hub.SD_TURBO_SHA256)
    for fault, digest in zip(altered["faults"], hub.SD_TURBO_SHA256.values(), strict=True):
        assert f"expected {digest}: delete {tmp_path}" in fault
    assert all(hub.SD_TURBO_REVISION in request for request in server.requests)

    genuine = {name: hashlib.sha256(name.encode()).hexdigest() for name in FP16}
    assert download(server, tmp_path, repo_id=hub.SD_TURBO, revision=None, sha256=genuine)["path"].endswith(
        hub.SD_TURBO_REVISION
    )
    assert "path" in download(server, tmp_path, repo_id=hub.SD_TURBO, revision=REVISION)


def test_missing_files_are_all_named(server: Hub, tmp_path: Path) -> None:
    server.files = [name for name in COMMON if name != "vae/config.json"] + FP16[:1] + FP32
    result = download(server, tmp_path, variant="fp16")
    assert result["error"] == "CheckpointError"
    assert result["faults"] == [
        "vae/config.json is missing",
        "unet: there is no variant fp16, only none",
        "vae: there is no variant fp16, only none",
    ]
    assert server.fetched() == []


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (FP32, FP32),
        (FP16[:1] + FP32, FP16[:1] + FP32[1:]),
        ([name.replace("fp16", "bf16") for name in FP16], [name.replace("fp16", "bf16") for name in FP16]),
    ],
)
def test_what_is_there_is_taken_and_fp16_first(
    server: Hub, tmp_path: Path, files: list[str], weights: list[str]
) -> None:
    other = [name for name in UNWANTED if "non_ema" not in name or files == FP32]
    server.files = COMMON + files + other
    assert "path" in download(server, tmp_path)
    assert server.fetched() == sorted(COMMON + weights)


def test_between_variants_without_an_order_the_user_chooses(server: Hub, tmp_path: Path) -> None:
    server.files = COMMON + FP32[:2] + [FP32[2].replace(".safe", f".{variant}.safe") for variant in ("ema", "bf16")]
    result = download(server, tmp_path)
    assert result["faults"] == ["vae: choose one of its variants with --variant: bf16, ema"]


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "NOTICE"])
def test_what_belongs_to_a_checkpoint_is_fetched(server: Hub, tmp_path: Path, name: str) -> None:
    server.files.append(name)
    assert (Path(download(server, tmp_path)["path"]) / name).is_file()


def test_a_repository_with_one_file_in_another_layout_gives_that_file(server: Hub, tmp_path: Path) -> None:
    server.files = ["README.md", "LICENSE.md", "style.safetensors", "style.ckpt"]
    assert "path" in download(server, tmp_path)
    assert server.fetched() == ["LICENSE.md", "style.safetensors"]


def test_files_that_another_program_fetched_are_taken_offline(server: Hub, tmp_path: Path) -> None:
    """Without the list of the repository's files, which older versions of huggingface_hub did not keep."""
    path = Path(download(server, tmp_path, variant="")["path"])
    shutil.rmtree(path.parents[1] / "trees")
    assert download(server, tmp_path, environment={"HF_HUB_OFFLINE": "1"}) == {"path": str(path)}


@pytest.mark.parametrize(
    ("status", "error_code", "words"),
    [
        (401, "RepoNotFound", ["401", "gated", "hf auth login"]),
        (403, "GatedRepo", ["403", "gated", "hf auth login"]),
        (403, "", ["403", "gated", "hf auth login"]),
        (404, "RepoNotFound", ["404", "no such repository"]),
        (404, "RevisionNotFound", ["404", "no such revision"]),
        (503, "", ["503", "Check the connection"]),
    ],
)
def test_refusal_of_the_hub_says_what_to_do(
    *, server: Hub, tmp_path: Path, status: int, error_code: str, words: list[str]
) -> None:
    server.status, server.error_code = status, error_code
    result = download(server, tmp_path)
    assert result["error"] == "BuildError"
    for word in ["someone/model", REVISION, "MODEL=seeded", "directory", *words]:
        assert word in result["message"]


def test_unreachable_hub_offline_mode_and_unwritable_cache_say_what_to_do(server: Hub, tmp_path: Path) -> None:
    offline = download(server, tmp_path / "a", environment={"HF_HUB_OFFLINE": "1"})
    assert server.requests == []
    (tmp_path / "file").touch()
    unwritable = download(server, tmp_path / "file")
    server.address = "http://127.0.0.1:9"  # the discard port: nobody listens
    unreachable = download(server, tmp_path / "b")
    for result, words in [
        (offline, "HF_HUB_OFFLINE is set"),
        (unwritable, "Check the connection and the free disk space"),
        (unreachable, "Check the connection and the free disk space"),
    ]:
        assert result["error"] == "BuildError"
        assert words in result["message"]
        assert "MODEL=seeded" in result["message"]
