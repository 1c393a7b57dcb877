"""The score server: its answers are the model's, also when many ask at once.

    python -m pytest tests/test_serve.py
"""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from evaluate import RewardModel
from examples import serve
from infra.hub import ROOT


@pytest.fixture(scope="module")
def judge(tiny):
    return RewardModel.load(tiny, device="cpu")


@pytest.fixture
def server(judge):
    """A server in threads of this process, at a port that the system gives."""
    server = serve.Server(judge, "127.0.0.1", 0)
    serving = threading.Thread(target=server.serve_forever, args=(0.01,))
    serving.start()
    yield server
    server.shutdown()
    server.server_close()
    serving.join()


def ask(port, path, body=None, headers=None):
    """(status, answer)"""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    if body is None:
        connection.request("GET", path)
    else:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, text, headers or {})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def test_compare_is_the_models(server, judge):
    status, answer = ask(server.server_port, "/compare", {"prompt": "one", "a": "two", "b": "six"})
    assert status == 200
    assert answer["probability"] == pytest.approx(judge.compare("one", "two", "six"), abs=1e-6)


def test_rank_is_the_models_and_takes_messages_and_a_domain(server, judge):
    prompt = [{"role": "user", "content": "one"}]
    responses = ["two", [{"role": "assistant", "content": "six"}], "three four"]
    status, answer = ask(server.server_port, "/rank",
                         {"prompt": prompt, "responses": responses, "domain": "safety"})
    ranked = judge.rank("one", ["two", "six", "three four"], "safety")
    assert (status, answer["best"], answer["asked"]) == (200, ranked[0].index, 3)
    for one in ranked:
        assert answer["ranks"][one.index] == one.rank
        assert answer["wins"][one.index] == pytest.approx(one.win, abs=1e-6)


def test_hundreds_of_requests_from_many_threads_get_each_its_own_answer(server, judge):
    requests = [{"prompt": f"one {i}", "a": "two " * (i % 7), "b": f"six {i}"} for i in range(300)]
    with ThreadPoolExecutor(12) as threads:
        answers = threads.map(lambda r: ask(server.server_port, "/compare", r), requests)
        answers = list(answers)
    expected = judge.compare([r["prompt"] for r in requests], [r["a"] for r in requests],
                             [r["b"] for r in requests])
    for (status, answer), p in zip(answers, expected, strict=True):
        assert status == 200
        assert answer["probability"] == pytest.approx(p, abs=1e-5)


@pytest.fixture
def gate(judge, monkeypatch):
    """(asked, opened): how many were asked together each time; nothing is answered before `opened`
    is set."""
    asked, opened = [], threading.Event()
    rank_items = RewardModel.rank_items

    def slowly(self, items):
        asked.append(len(items))
        assert opened.wait(60)
        return rank_items(self, items)

    monkeypatch.setattr(RewardModel, "rank_items", slowly)
    yield asked, opened
    opened.set()


def until(true):
    """Wait for it, a minute at most."""
    waiting = threading.Event()
    for _ in range(6000):
        if true():
            return
        waiting.wait(0.01)
    raise AssertionError("it did not come")


PAIR = {"prompt": "one", "a": "two", "b": "six"}


def test_what_waits_is_asked_together_and_the_server_answers_meanwhile(server, gate):
    asked, opened = gate
    with ThreadPoolExecutor(6) as threads:
        first = threads.submit(ask, server.server_port, "/compare", PAIR)
        until(lambda: asked == [1])
        others = [threads.submit(ask, server.server_port, "/compare", PAIR) for _ in range(5)]
        until(lambda: server.waiting.qsize() == 5)
        # it is busy, and answers
        rows = server.reward_model.seen["rows"]
        assert ask(server.server_port, "/health") == (
            200, {"model": server.reward_model.about["model"], "waiting": 5, "rows": rows,
                  "truncated rows": 0})
        assert ask(server.server_port, "/compare", {"prompt": 3})[0] == 400
        opened.set()
        assert {future.result()[0] for future in [first, *others]} == {200}
    assert asked == [1, 5]


def test_more_than_can_wait_is_turned_away(server, gate, monkeypatch):
    asked, opened = gate
    server.waiting.maxsize = 1
    with ThreadPoolExecutor(2) as threads:
        threads.submit(ask, server.server_port, "/compare", PAIR)
        until(lambda: asked == [1])
        threads.submit(ask, server.server_port, "/compare", PAIR)
        until(lambda: server.waiting.qsize() == 1)
        assert ask(server.server_port, "/compare", PAIR)[0] == 503
        opened.set()


def test_an_error_of_the_model_is_told_and_the_next_is_served(server, monkeypatch):
    with monkeypatch.context() as patch:
        def fails(self, items):
            raise RuntimeError("out of memory")

        patch.setattr(RewardModel, "rank_items", fails)
        assert ask(server.server_port, "/compare", PAIR) == (
            500, {"error": "RuntimeError: out of memory"})
    assert ask(server.server_port, "/compare", PAIR)[0] == 200


@pytest.mark.parametrize("path, body, status, reason", [
    ("/compare", b"{", 400, "not valid JSON"),
    ("/compare", b"\xff", 400, "not valid JSON"),
    ("/compare", b"[" * 100_000, 400, "not valid JSON"),
    ("/compare", [], 400, "give an object"),
    ("/compare", {"prompt": "a", "a": "b"}, 400, "a response is missing"),
    ("/compare", {"a": "a", "b": "b"}, 400, "the prompt is missing"),
    ("/compare", {**PAIR, "domain": "cooking"}, 400, "unknown domain"),
    ("/compare", {**PAIR, "domain": ["chat"]}, 400, '"domain": give a string'),
    ("/rank", {"prompt": "a", "responses": []}, 400, "give a list of 1 to 256"),
    ("/rank", {"prompt": "a", "responses": ["b"] * 257}, 400, "give a list of 1 to 256"),
    ("/rank", {"prompt": "a", "responses": ["b", None]}, 400, "a response is missing"),
    ("/compare", b"x" * (serve.MOST_BYTES + 1), 413, "bytes: at most"),
    ("/score", {}, 404, "give POST /compare"),
    ("/score", None, 404, "give GET /health"),
])
def test_a_bad_request_is_refused_with_the_reason(server, path, body, status, reason):
    got, answer = ask(server.server_port, path, body)
    assert got == status and reason in answer["error"]
    assert ask(server.server_port, "/compare", PAIR)[0] == 200


def test_a_body_without_its_length_is_refused(server):
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
        connection.sendall(b"POST /compare HTTP/1.0\r\n\r\n")
        assert b" 411 " in connection.makefile("rb").readline()


def test_who_goes_before_the_answer_is_not_missed(server, capsys):
    body = json.dumps(PAIR).encode()
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            # closing with a reset
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            head = f"POST /compare HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
    assert ask(server.server_port, "/compare", PAIR)[0] == 200
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_cleanly(tiny, number):
    command = [sys.executable, ROOT / "examples/serve.py", tiny, "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        assert ask(port, "/compare", PAIR)[0] == 200
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    assert "then ending" in out


def test_rows_that_were_cut_are_counted_in_health(server):
    before = ask(server.server_port, "/health")[1]
    assert ask(server.server_port, "/compare", PAIR | {"a": "six " * 5000})[0] == 200
    after = ask(server.server_port, "/health")[1]
    assert after["rows"] - before["rows"] == 2
    assert after["truncated rows"] - before["truncated rows"] == 2


@pytest.mark.parametrize("depth", [970, 975, 980, 982, 985, 990])
def test_texts_that_are_nested_too_deep_are_refused(server, depth):
    body = b'{"prompt": ' + b"[" * depth + b"]" * depth + b', "a": "two", "b": "six"}'
    status, answer = ask(server.server_port, "/compare", body)
    assert status == 400 and answer["error"]


def test_a_second_signal_ends_it_at_once(tiny):
    command = [sys.executable, ROOT / "examples/serve.py", tiny, "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)):  # says nothing, so it is waited for
            process.send_signal(signal.SIGTERM)
            assert "again: at once" in process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == -signal.SIGTERM
    finally:
        process.kill()


def test_a_port_that_is_taken_is_one_line(server, tiny, capsys):
    with pytest.raises(ValueError, match="--port"):
        serve.main([str(tiny), "--port", str(server.server_port), "--device", "cpu"])
