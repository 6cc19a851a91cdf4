"""The Hugging Face Hub imitated on this machine, as far as huggingface_hub asks it: repositories with commits and branches.

Files above `LARGE` bytes go through the protocol of Git LFS, the others through the commit itself.
"""

import base64
import hashlib
import json
import os
import threading
import time
import types
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote

LARGE = 30


@dataclass
class Repository:
    """commits: hash -> {path: bytes}. branches: name -> hash."""

    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    private: bool = False

    def commit(self, files, branch="main"):
        """The hash of a new commit with those files and no others."""
        digest = hashlib.sha1(repr(sorted(files.items())).encode() + str(len(self.commits)).encode()).hexdigest()
        self.commits[digest], self.branches[branch] = dict(files), digest
        return digest

    def at(self, revision):
        """(Hash, files). KeyError for an unknown revision."""
        digest = self.branches.get(revision, revision)
        return digest, self.commits[digest]


class Refused(Exception):
    """status, the Hub's code for it, and perhaps the content of the answer."""


@dataclass
class Hub:
    """What the server holds, and what was asked of it. status: of every answer, if it refuses all. tokens: that it knows."""

    repositories: dict = field(default_factory=dict)
    objects: dict = field(default_factory=dict)  # of Git LFS, by sha256
    requests: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    tokens: set = field(default_factory=set)
    refusal: tuple = ()  # (status, code)
    broken: str = ""  # part of a path whose connection is cut
    address: str = ""

    def new(self, repo_id, files=None, **options):
        repository = self.repositories[repo_id] = Repository(**options)
        repository.commit(files or {".gitattributes": b"*.onnx filter=lfs"})
        return repository

    def fetched(self):
        """The paths of the files whose bytes were asked for."""
        return sorted(
            one.split("/resolve/")[1].split("/", 1)[1]
            for one in self.requests
            if one.startswith("GET") and "/resolve/" in one
        )

    def answer(self, method, path, body, token):
        """(Headers, body) of the answer. Raises Refused."""
        if path == "/api/repos/create":
            return {}, self.create(json.loads(body), token)
        if path == "/api/validate-yaml":
            return {}, {"errors": [], "warnings": []}
        if path.startswith("/lfs/"):
            self.objects[path.removeprefix("/lfs/")] = body
            return {}, b""
        parts = [unquote(part) for part in path.removeprefix("/api/models").strip("/").split("/")]
        repo_id, rest = "/".join(parts[:2]).removesuffix(".git"), parts[2:]
        repository = self.repositories.get(repo_id)
        if repository is None or (repository.private and token not in self.tokens):
            raise Refused(401, "RepoNotFound")
        if method == "POST" and token not in self.tokens and rest[:1] != ["paths-info"]:
            raise Refused(403, "")
        if rest[:1] == ["info"]:  # lfs/objects/batch
            return {}, {"objects": [self.action(one) for one in json.loads(body)["objects"]]}
        kind, revision, *name = rest or ["revision", "main"]
        if kind == "branch":
            return {}, self.branch(repository, revision)
        return self.at(repo_id, repository, kind, revision, "/".join(name), body)

    def create(self, asked, token):
        repo_id = f"{asked['organization']}/{asked['name']}"
        if token not in self.tokens:
            raise Refused(401, "")
        if repo_id in self.repositories:
            raise Refused(409, "", {"url": f"{self.address}/{repo_id}"})
        self.new(repo_id, private=asked.get("visibility") == "private" or asked.get("private") is True)
        return {"url": f"{self.address}/{repo_id}"}

    def branch(self, repository, name):
        if name in repository.branches:
            raise Refused(409, "")
        repository.branches[name] = repository.branches["main"]
        return {}

    def at(self, repo_id, repository, kind, revision, name, body):
        """(Headers, body) of what is asked about a revision."""
        try:
            commit, files = repository.at(revision)
        except KeyError:
            raise Refused(404, "RevisionNotFound") from None
        if kind == "revision":
            return {}, {"id": repo_id, "sha": commit, "private": repository.private, "siblings": []}
        if kind == "tree":
            return {}, [self.entry(path, data) for path, data in files.items()]
        if kind == "paths-info":
            paths = parse_qs(body.decode())["paths"]
            return {}, [self.entry(path, data) for path, data in files.items() if path in paths]
        if kind == "preupload":
            return {}, {"files": [self.mode(one, files) for one in json.loads(body)["files"]]}
        if kind == "commit":
            return {}, self.commit(repo_id, repository, revision, files, body)
        assert kind == "resolve", kind
        if name not in files:
            raise Refused(404, "EntryNotFound")
        return {"ETag": f'"{self.etag(files[name])}"', "X-Repo-Commit": commit}, files[name]

    def etag(self, data):
        return hashlib.sha256(data).hexdigest() if len(data) > LARGE else blob_id(data)

    def entry(self, path, data):
        entry = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
        return entry | (
            {"lfs": {"oid": self.etag(data), "size": len(data), "pointerSize": 130}} if len(data) > LARGE else {}
        )

    def mode(self, asked, files):
        known = files.get(asked["path"])
        oid = None if known is None else self.etag(known)
        mode = "lfs" if asked["size"] > LARGE else "regular"
        return {"path": asked["path"], "uploadMode": mode, "shouldIgnore": asked["path"] in ignored(files), "oid": oid}

    def action(self, asked):
        if asked["oid"] in self.objects:
            return asked
        return asked | {"actions": {"upload": {"href": f"{self.address}/lfs/{asked['oid']}"}}}

    def commit(self, repo_id, repository, branch, files, body):
        header, *lines = [json.loads(line) for line in body.splitlines()]
        files = dict(files)
        for line in lines:
            value = line["value"]
            is_inline = line["key"] == "file"
            files[value["path"]] = base64.b64decode(value["content"]) if is_inline else self.objects[value["oid"]]
        commit = repository.commit(files, branch)
        self.requests.append(f"COMMIT {header['value']['summary']}")
        return {"commitUrl": f"{self.address}/{repo_id}/commit/{commit}", "commitOid": commit}


def blob_id(data):
    """Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def ignored(files):
    return files.get(".gitignore", b"").decode().split()


@contextmanager
def serving(hub):
    """The Hub's address answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            hub.headers.append(dict(self.headers))
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if hub.broken and hub.broken in path:
                self.close_connection = True
                return
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            try:
                if hub.refusal:
                    raise Refused(*hub.refusal)
                status, (headers, data) = 200, hub.answer(self.command, path, body, token)
            except Refused as refused:
                status, code, *content = refused.args
                headers, data = {"X-Error-Code": code} if code else {}, (*content, b"")[0]
                if code == "EntryNotFound":
                    headers["X-Repo-Commit"] = "0" * 40
            if not isinstance(data, bytes):
                headers, data = headers | {"Content-Type": "application/json"}, json.dumps(data).encode()
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_HEAD = do_POST = do_PUT = do_GET

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        hub.address = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        yield hub
        http.shutdown()


def tell(patch, hub, home):
    """huggingface_hub of this process knows no other Hub, cache or token. It does not wait between its attempts."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    values = {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
    }
    for name, value in values.items():
        patch.setattr(constants, name, value)
    patch.setattr(_http, "time", types.SimpleNamespace(**{**vars(time), "sleep": lambda _seconds: None}))
    for name in [name for name in os.environ if name.startswith("HF_") or name.lower().endswith("_proxy")]:
        patch.delenv(name)
