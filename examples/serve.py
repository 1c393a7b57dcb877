"""A score server: other programs ask over HTTP, and share one model.

    python examples/serve.py runs/NAME --port 8000

    curl localhost:8000/compare -d '{"prompt": "What is 2 + 2?", "a": "4", "b": "5"}'
        {"probability": 0.98}                   # that a is better
    curl localhost:8000/rank -d '{"prompt": "What is 2 + 2?", "responses": ["5", "4"]}'
        {"best": 1, "ranks": [2, 1], "wins": [0.02, 0.98], "scores": [-1.9, 1.9],
         "agree": [1.0, 1.0], "asked": 1}
    curl localhost:8000/health
        {"model": "runs/NAME", "waiting": 0, "rows": 6, "truncated rows": 0}

Texts are strings or lists of messages; a request may name its "domain". What is wrong with a
request is answered with 400 and {"error": "..."}.

Every connection has a thread of its own. One more thread holds the model: it takes all questions
that wait, asks them together in full batches, and answers each.

It has no password and no encryption: leave it on this machine (--host 127.0.0.1), or put a proxy in
front of it. On Ctrl-C and SIGTERM it answers what it has accepted, and ends.
"""

import argparse
import json
import queue
import signal
import sys
import threading
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data import Item  # noqa: E402
from evaluate import Ranked, RewardModel, make_items  # noqa: E402
from infra.ranked_rows import ranking_of  # noqa: E402
from infra.stopping import exit_code_of  # noqa: E402

MOST_BYTES = 2**20  # of a request
MOST_RESPONSES = 256  # of a request
MOST_WAITING = 1024  # requests; more are turned away
MOST_AT_ONCE = 128  # requests that are asked together
SECONDS = 30  # that a connection may keep silent


class Question(NamedTuple):
    item: Item
    answer: Future  # of list[Ranked]


class Refused(ValueError):
    """A request that cannot be answered, with the status that says why."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


# -------------------------------------------------------------------------------- the model's side


def answer_questions(reward_model: RewardModel, waiting: queue.Queue):
    """What the model's thread does, until it finds None."""
    while True:
        question = waiting.get()
        questions = []
        while question is not None:
            questions.append(question)
            if waiting.empty() or len(questions) == MOST_AT_ONCE:
                break
            question = waiting.get()

        answer_together(reward_model, questions)
        if question is None:
            return


def answer_together(reward_model: RewardModel, questions: list[Question]):
    try:
        rankings = reward_model.rank_items([question.item for question in questions])
    except Exception as error:  # whatever it is: who asked must hear of it, and the next be served
        for question in questions:
            question.answer.set_exception(error)
        return
    for question, ranked in zip(questions, rankings, strict=True):
        question.answer.set_result(ranked)


# ------------------------------------------------------------------------------ the requests' side


def item_to_compare(request: dict) -> Item:
    return one_item(request, [request.get("a"), request.get("b")])


def item_to_rank(request: dict) -> Item:
    responses = request.get("responses")
    if not isinstance(responses, list) or not 0 < len(responses) <= MOST_RESPONSES:
        raise Refused(400, f'"responses": give a list of 1 to {MOST_RESPONSES}')
    return one_item(request, responses)


def one_item(request: dict, responses: list) -> Item:
    domain = request.get("domain", "")
    if not isinstance(domain, str):
        raise Refused(400, '"domain": give a string')
    (item,) = make_items([request.get("prompt")], [responses], [domain])
    return item


def probability(ranked: list[Ranked]) -> dict:
    wins = {one.index: one.win for one in ranked}
    return {"probability": wins[0]}


# path: how a request becomes an item, and a ranking the answer
PATHS = {"/compare": (item_to_compare, probability), "/rank": (item_to_rank, ranking_of)}


class Handler(BaseHTTPRequestHandler):
    """A connection, in a thread of its own."""

    timeout = SECONDS

    def do_GET(self):
        if self.path != "/health":
            self.reply(404, {"error": "give GET /health, POST /compare or POST /rank"})
            return
        seen = self.server.reward_model.seen
        self.reply(200, {"model": self.server.reward_model.about["model"],
                         "waiting": self.server.waiting.qsize(), "rows": seen["rows"],
                         "truncated rows": seen["truncated rows"]})

    def do_POST(self):
        try:
            self.reply(200, self.answer())
        except Refused as error:
            self.reply(error.status, {"error": str(error)})
        except (ValueError, RecursionError) as error:  # of a text or a domain
            self.reply(400, {"error": str(error)})

    def answer(self) -> dict:
        # what was sent is read before any answer: a client that is still sending hears none
        body = self.read_body()
        if self.path not in PATHS:
            raise Refused(404, "give POST /compare or POST /rank, or GET /health")
        read_item, show = PATHS[self.path]
        question = Question(read_item(parse_request(body)), Future())
        try:
            self.server.waiting.put_nowait(question)
        except queue.Full:
            raise Refused(503, f"{MOST_WAITING} requests wait already: ask again later") from None
        try:
            return show(question.answer.result())
        except Exception as error:  # of the model's thread
            raise Refused(500, f"{type(error).__name__}: {error}") from None

    def read_body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Refused(411, "give Content-Length")
        if int(length) > MOST_BYTES:
            self.discard(min(int(length), 16 * MOST_BYTES))
            raise Refused(413, f"{length[:20]} bytes: at most {MOST_BYTES}")
        return self.rfile.read(int(length))

    def discard(self, length: int):
        """Read so many bytes and keep none."""
        while length > 0:
            part = self.rfile.read(min(length, 65_536))
            if not part:  # nothing more comes
                return
            length -= len(part)

    def reply(self, status: int, answer: dict):
        body = json.dumps(answer).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *about):
        """A line a request is too much."""


def parse_request(body: bytes) -> dict:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"not valid JSON ({error})") from None
    if not isinstance(request, dict):
        raise Refused(400, 'give an object, {"prompt": ...}')
    return request


class Server(ThreadingHTTPServer):
    daemon_threads = False  # closing waits for the answers
    request_queue_size = 128  # connections that the system holds while none is taken

    def __init__(self, reward_model: RewardModel, host: str, port: int):
        self.reward_model = reward_model
        self.waiting = queue.Queue(MOST_WAITING)
        self.asking = threading.Thread(target=answer_questions, args=(reward_model, self.waiting))
        self.asking.start()
        super().__init__((host, port), Handler)  # which closes itself where the port is taken

    def handle_error(self, request, client_address):
        """Who asked has gone: nobody needs to know. Anything else is printed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def server_close(self):
        super().server_close()  # every connection that was taken has its answer
        self.waiting.put(None)
        self.asking.join()


def stop(number, frame):
    raise KeyboardInterrupt


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run, a model folder or a Hub name")
    add("--host", default="127.0.0.1", help="who may ask (default: 127.0.0.1, this machine)")
    add("--port", type=int, default=8000, help="0: any that is free (default: 8000)")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--dtype", default="auto", help="auto, fp32 or bf16 (default: auto)")
    flags = parser.parse_args(argv)

    reward_model = RewardModel.load(flags.model, device=flags.device, dtype=flags.dtype)
    try:
        server = Server(reward_model, flags.host, flags.port)
    except (OSError, OverflowError) as error:
        raise ValueError(f"--host {flags.host} --port {flags.port}: {error}") from None
    try:
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)  # a shell's background jobs ignore it
        print(f"{flags.model} answers on http://{flags.host}:{server.server_port}", flush=True)
        server.serve_forever(poll_interval=0.1)
    except KeyboardInterrupt:
        for number in (signal.SIGTERM, signal.SIGINT):  # a second one ends it at once
            signal.signal(number, signal.SIG_DFL)
        print("answering what was asked, then ending (again: at once)", flush=True)
    finally:
        server.server_close()


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
