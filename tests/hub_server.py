"""A small Hub on the loopback address, for tests that use the real huggingface_hub client.

    with HubServer({"model:org/name": {"config.json": b"{}"}, "dataset:org/set": {...}}) as hub:
        with hub.client(tmp_path):                      # HF_ENDPOINT and HF_HOME of this process
            snapshot_download("org/name")

It speaks what the client asks for: repository info, tree and refs listings, and `resolve` with ETag
and X-Repo-Commit headers, redirects to a "CDN", ranges. A revision other than main is a repository
of its own: "dataset:org/set@refs/convert/parquet". The commit is the hash of the files. Faults are
switched by attributes: `gated`, `token`, `busy`, `cut`, and `gone()`.

At the end stand rows in the true schemas of the paper's data sets.
"""

import hashlib
import importlib
import io
import json
import os
import socket
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pyarrow
from pyarrow.parquet import write_table

STATUS = {"RepoNotFound": 401, "RevisionNotFound": 404, "EntryNotFound": 404, "GatedRepo": 403}
LARGE = 1000  # bytes from which on a file is on another host, as on the Hub


class HubServer:
    def __init__(self, repos: dict[str, dict[str, bytes]]):
        self.repos = repos
        self.gated: set[str] = set()  # "org/name" of repositories whose terms were not accepted
        self.token = ""  # where set, a request with another token gets 401
        self.busy = 0  # so many downloads get 429 with Retry-After first
        self.cut: list[int] = []  # the next downloads break off after so many bytes
        self.requests: list[str] = []  # "METHOD path" of everything asked
        self.connections: list[socket.socket] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.hub = self
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        if self._http.socket.fileno() != -1:
            self.gone()

    def gone(self) -> None:
        """From here on nobody listens at the address: no network."""
        self._http.shutdown()
        self._http.server_close()
        for connection in self.connections:  # those that the client keeps for its next request
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def commit(self, repo: str) -> str:
        files = sorted(self.repos[repo].items())
        return hashlib.sha1(repr(files).encode()).hexdigest()

    def downloads(self) -> list[str]:
        """The requests that were for files."""
        return [request for request in self.requests if "/resolve/" in request]

    def env(self, home) -> dict[str, str]:
        """What a process needs in its environment to take this for the Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ETAG_TIMEOUT": "2",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "NO_PROXY": "127.0.0.1",
        }

    @contextmanager
    def client(self, home, **more: str):
        """The same for this process: the client reads its constants from the environment anew."""
        from huggingface_hub import close_session, constants

        wanted = {**self.env(home), **more}
        foreign = {name for name in os.environ if name.startswith("HF_")}
        before = {name: os.environ.pop(name, None) for name in foreign | set(wanted)}
        try:
            os.environ.update(wanted)
            importlib.reload(constants)
            close_session()
            yield self
        finally:
            for name in wanted:
                os.environ.pop(name, None)
            for name, value in before.items():
                if value is not None:
                    os.environ[name] = value
            importlib.reload(constants)
            close_session()

    def find(self, kind: str, name: str, revision: str) -> str | None:
        """The key in `repos` of a revision given by name or by commit; None if there is none."""
        for key in self.repos:
            base, _, branch = key.partition("@")
            if base == f"{kind}:{name}" and revision in (branch or "main", self.commit(key)):
                return key
        return None

    def revisions(self, kind: str, name: str) -> dict[str, str]:
        """{name of a revision: commit} of a repository; empty if there is no such repository."""
        found = {}
        for key in self.repos:
            base, _, branch = key.partition("@")
            if base == f"{kind}:{name}":
                found[branch or "main"] = self.commit(key)
        return found


class Handler(BaseHTTPRequestHandler):
    """Answers one connection of the client."""

    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.hub: HubServer = self.server.hub
        self.hub.connections.append(self.connection)

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.hub.requests.append(f"{self.command} {self.path}")
        # quoted slashes inside a revision ("refs%2Fpr%2F1") must survive the splitting
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

        if self.hub.busy > 0 and self.command == "GET" and parts[0] != "api":
            self.hub.busy -= 1
            return self.reply(429, b"slow down", {"Retry-After": "0"})
        if parts[0] == "cdn":  # where large files are: no Hub headers here
            return self.content(self.hub.repos[parts[1]]["/".join(parts[2:])])
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.hub.token and given != self.hub.token:
            return self.reply(401, b"", {"X-Error-Message": "Invalid username or password."})

        # api/models/OWNER/NAME/..., api/datasets/..., OWNER/NAME/resolve/..., datasets/...
        if parts[0] == "api":
            kind, path = parts[1].removesuffix("s"), parts[2:]
        elif parts[0] == "datasets":
            kind, path = "dataset", parts[1:]
        else:
            kind, path = "model", parts
        self.answer(kind, "/".join(path[:2]), path[2:])

    def answer(self, kind: str, name: str, path: list[str]):
        """What is asked of one repository: its revisions, its files, or one of them."""
        verb = path[0] if path else "revision"
        revision = path[1] if len(path) > 1 else "main"
        if not self.hub.revisions(kind, name):
            return self.fail("RepoNotFound", f"no {kind} {name}")
        if name in self.hub.gated and verb == "resolve":
            return self.fail("GatedRepo", f"Access to {kind} {name} is restricted")
        if verb == "refs":
            return self.json(refs_of(self.hub.revisions(kind, name)))

        key = self.hub.find(kind, name, revision)
        if key is None:
            return self.fail("RevisionNotFound", f"Invalid rev id: {revision}")
        if verb == "revision":
            return self.json(info_of(name, self.hub.commit(key), self.hub.repos[key]))
        if verb == "tree":
            return self.json(tree_of(self.hub.repos[key]))
        self.resolve(key, "/".join(path[2:]))

    def resolve(self, key: str, path: str):
        body = self.hub.repos[key].get(path)
        if body is None:
            return self.fail("EntryNotFound", "Entry not found", key)
        headers = {"X-Repo-Commit": self.hub.commit(key), "ETag": f'"{etag(body)}"'}
        if len(body) < LARGE:
            return self.content(body, headers)
        # size and ETag of a large file come with the redirect
        cdn = self.hub.url.replace("127.0.0.1", "localhost")
        headers["Location"] = f"{cdn}/cdn/{key.replace('/', '%2F')}/{path}"
        headers["X-Linked-Size"] = str(len(body))
        headers["X-Linked-Etag"] = f'"{etag(body)}"'
        self.reply(302, b"", headers)

    def content(self, body: bytes, headers: dict | None = None):
        headers = {"Accept-Ranges": "bytes", **(headers or {})}
        wanted = self.headers.get("Range", "")
        if not wanted:
            return self.reply(200, body, headers)
        start = int(wanted.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.reply(206, body[start:], headers)

    def json(self, value):
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def fail(self, code: str, message: str, key: str = ""):
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        if key:
            headers["X-Repo-Commit"] = self.hub.commit(key)
        self.reply(STATUS[code], b"", headers)

    def reply(self, status: int, body: bytes, headers: dict):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return

        is_file = status < 300 and "/api/" not in self.path
        if is_file and self.hub.cut and len(body) > self.hub.cut[0]:
            self.wfile.write(body[: self.hub.cut.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(body)


def etag(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()  # git's, as the Hub's


def info_of(name: str, commit: str, files: dict[str, bytes]) -> dict:
    return {
        "id": name,
        "sha": commit,
        "tags": [],
        "private": False,
        "downloads": 0,
        "likes": 0,
        "gated": False,
        "disabled": False,
        "siblings": [{"rfilename": path} for path in files],
    }


def tree_of(files: dict[str, bytes]) -> list[dict]:
    return [
        {"type": "file", "path": path, "size": len(body), "oid": etag(body)}
        for path, body in files.items()
    ]


def refs_of(revisions: dict[str, str]) -> dict:
    """Branches, and what the Hub made itself: "refs/convert/parquet" is the convert "parquet"."""
    refs = {"branches": [], "converts": [], "tags": []}
    for name, commit in revisions.items():
        if name.startswith("refs/convert/"):
            short = name.removeprefix("refs/convert/")
            refs["converts"].append({"name": short, "ref": name, "targetCommit": commit})
        else:
            ref = f"refs/heads/{name}"
            refs["branches"].append({"name": name, "ref": ref, "targetCommit": commit})
    return refs


# --- files and rows as the data sets on the Hub have them ----------------------------------------


def parquet(rows: list[dict], **options) -> bytes:
    out = io.BytesIO()
    write_table(pyarrow.Table.from_pylist(rows), out, **options)
    return out.getvalue()


def json_lines(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def skywork_row(source: str, prompt: str, good: str = "good", bad: str = "bad") -> dict:
    def conversation(answer: str) -> list[dict]:
        return [{"content": prompt, "role": "user"}, {"content": answer, "role": "assistant"}]

    return {"chosen": conversation(good), "rejected": conversation(bad), "source": source}


def pku_row(prompt: str, safer: int) -> dict:
    """The responses are "answer 0" and "answer 1"; the other one is the better one."""
    row = {"prompt": prompt, "better_response_id": 1 - safer, "safer_response_id": safer}
    for k in range(2):
        row[f"response_{k}"] = f"answer {k}"
        row[f"is_response_{k}_safe"] = k == safer
    return row


def webgpt_row(prompt: str, score: float) -> dict:
    """The answers are "answer 0 [1]", with this score, and "answer 1 [1]", with its negative."""
    row = {"question": {"dataset": "eli5", "id": "1", "full_text": prompt}}
    for k, own_score in enumerate((score, -score)):
        row[f"quotes_{k}"] = {"title": ["t"], "extract": ["e"]}
        row[f"answer_{k}"] = f"answer {k} [1]"
        row[f"tokens_{k}"] = {"prefix": [1, 2], "completion": [3]}
        row[f"score_{k}"] = own_score
    return row


def rewardbench_row(prompt: str) -> dict:
    return {
        "prompt": prompt,
        "chosen": "c",
        "chosen_model": "m",
        "rejected": "r",
        "rejected_model": "m",
        "subset": "hep-cpp",
        "id": 1,
    }


def judgebench_row(prompt: str) -> dict:
    return {
        "pair_id": "x",
        "original_id": "1",
        "source": "livebench-math",
        "question": prompt,
        "response_model": "m",
        "response_A": "a",
        "response_B": "b",
        "label": "A>B",
    }


def benchmark_repositories(rewardbench=(), rewardbench2=(), rmbench=(), judgebench=()) -> dict:
    """The four benchmarks, with these prompts and one more each: as few columns as are read."""
    def rows(make, prompts):
        return [make(prompt) for prompt in (*prompts, "a prompt of no pair")]

    def styles(prompt):
        return {"id": "chat/1", "prompt": prompt, "chosen": ["c"] * 3, "rejected": ["r"] * 3}

    raw = parquet(rows(rewardbench_row, rewardbench))
    return {
        "dataset:allenai/reward-bench": {
            "data/raw-00000-of-00001.parquet": raw,
            "data/filtered-00000-of-00001.parquet": parquet(rows(rewardbench_row, ())),
        },
        "dataset:allenai/reward-bench-2": {
            "data/test-00000-of-00001.parquet": parquet(rows(styles, rewardbench2)),
        },
        "dataset:THU-KEG/RM-Bench": {
            "total_dataset.json": json.dumps(rows(styles, rmbench)).encode(),
        },
        "dataset:ScalerLab/JudgeBench": {
            "data/gpt-00000-of-00001.parquet": parquet(rows(judgebench_row, judgebench)),
            "data/claude-00000-of-00001.jsonl": json_lines(rows(judgebench_row, ())),
        },
    }
