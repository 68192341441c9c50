"""Real sockets: connections that say nothing, too many of them, bodies that are too long."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time

import httpx
import pytest
import uvicorn
from served import TEXTS, classifier, options

from xlnet_fast.serve import connections, lifecycle
from xlnet_fast.serve.app import create_app, free_paths
from xlnet_fast.serve.connections import FOR_HEALTH, Doorkeeper

HEAD_S, MOST, BODY_BYTES = 0.6, 8, 20000
POST = b"POST /v1/models/reviews:predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(its keeper, its address) of a server with few places."""
    models = tmp_path_factory.mktemp("connections") / "reviews"
    app = create_app(options(classifier(models), body_bytes=BODY_BYTES, timeout=1.5))
    keeper = Doorkeeper(free_paths(), MOST, HEAD_S)
    door = lifecycle.listening("127.0.0.1", 0)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, http=keeper.protocol(), ws="none"
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, args=([door],), daemon=True)
    thread.start()
    address = door.getsockname()
    deadline = time.monotonic() + 60
    while not running.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield keeper, address
    running.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@contextlib.contextmanager
def connected(address, *sent):
    with socket.create_connection(address, timeout=5) as one:
        for part in sent:
            one.sendall(part)
        yield one


def rest(one):
    """All that comes before the server closes, and after how many seconds it does."""
    begun, parts = time.monotonic(), []
    with contextlib.suppress(ConnectionResetError):
        while part := one.recv(65536):
            parts.append(part)
    return b"".join(parts), time.monotonic() - begun


def predicted(address):
    url = f"http://{address[0]}:{address[1]}/v1/models/reviews:predict"
    response = httpx.post(url, json={"records": TEXTS})
    assert response.status_code == 200
    assert len(response.json()["answers"]) == len(TEXTS)


def test_a_connection_that_says_nothing_is_closed(server):
    with connected(server[1]) as one:
        answer, seconds = rest(one)
    assert answer == b""
    assert 0.5 * HEAD_S < seconds < 3


def test_a_head_that_comes_slowly_has_one_time_for_all_of_it(server):
    with connected(server[1], POST) as one:
        begun = time.monotonic()
        one.settimeout(0.1)
        while time.monotonic() - begun < 4:
            try:
                answer = one.recv(1000)
                break
            except TimeoutError:
                one.sendall(b"x-a: b\r\n")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - begun < 3


def test_the_second_head_of_a_connection_is_timed_too_and_a_body_is_not(server):
    body = json.dumps({"record": TEXTS[0]}).encode()
    head = POST + b"content-length: %d\r\n\r\n" % len(body)
    with connected(server[1], head, body[:5]) as one:
        time.sleep(1.5 * HEAD_S)
        one.sendall(body[5:])
        assert one.recv(65536).startswith(b"HTTP/1.1 200 ")
        time.sleep(1.5 * HEAD_S)  # between two requests uvicorn's own, longer time counts
        one.sendall(b"GET /healthz HT")
        answer, seconds = rest(one)
    assert b"HTTP/1.1 408 " in answer
    assert seconds < 3


def test_half_requests_beyond_the_most_give_way_to_others(server):
    keeper, address = server
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(address, b"GET /heal")) for _ in range(3 * MOST)]
        begun = time.monotonic()
        predicted(address)
        assert time.monotonic() - begun < HEAD_S + 3
        assert len(keeper.waiting) <= MOST
        assert rest(held[0])[1] < 1  # the first has gone
    predicted(address)


def test_where_all_places_are_taken_health_is_answered_and_requests_are_refused(server):
    address = server[1]
    url = f"http://{address[0]}:{address[1]}"
    half = POST + b"content-length: 100\r\n\r\n{"
    with contextlib.ExitStack() as stack:
        for _ in range(MOST):
            stack.enter_context(connected(address, half))
        time.sleep(0.2)
        assert httpx.get(f"{url}/healthz").status_code == 200
        refused = httpx.get(f"{url}/v1/models")
        assert refused.status_code == 503
        assert refused.headers["connection"] == "close"
        assert "too many connections" in refused.text
        assert refused.headers["retry-after"]
        more = [stack.enter_context(connected(address, half)) for _ in range(FOR_HEALTH + MOST)]
        answers = [rest(one)[0] for one in more]  # raises where one is left open
    assert {answer[9:12] for answer in answers} <= {b"", b"408", b"503"}
    assert sum(answer == b"" for answer in answers) >= MOST - 1  # for these there was no place
    predicted(address)


@pytest.mark.parametrize("told", [True, False])
def test_a_client_sees_that_its_body_is_too_long_while_it_sends(server, told):
    url = f"http://{server[1][0]}:{server[1][1]}/v1/models/reviews:predict"

    async def chunks():
        for _ in range(80):
            yield b"x" * 65536

    async def ask():
        async with httpx.AsyncClient(timeout=30) as client:
            for _ in range(5):
                content = b"x" * 5_000_000 if told else chunks()
                headers = {"content-type": "application/json"}
                response = await client.post(url, content=content, headers=headers)
                assert response.status_code == 413, response.text
                assert response.headers["connection"] == "close"

    asyncio.run(ask())


def test_a_client_that_asks_first_is_not_asked_for_a_body_that_is_too_long(server):
    head = POST + b"expect: 100-continue\r\ncontent-length: 5000000\r\n\r\n"
    with connected(server[1], head) as one:
        answer, seconds = rest(one)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert seconds < 1


def test_errors_of_accepting_are_one_line_in_a_while(monkeypatch):
    keeper, loop = Doorkeeper(()), asyncio.new_event_loop()
    told, others = [], []
    monkeypatch.setattr(connections._log, "warning", lambda what, **more: told.append(what))
    monkeypatch.setattr(loop, "default_exception_handler", others.append)
    error = OSError(24, "Too many open files")
    context = {"message": "socket.accept() out of system resource", "exception": error}
    for _ in range(1000):
        keeper.loop_failed(loop, context)
    assert told == ["a connection could not be taken: [Errno 24] Too many open files"]
    keeper.loop_failed(loop, {"message": "another fault"})
    assert others == [{"message": "another fault"}]  # is told as before
    loop.close()


def test_there_are_fewer_connections_than_files():
    resource = pytest.importorskip("resource")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert connections.most_connections() >= connections.LEAST
    assert files in (resource.RLIM_INFINITY, -1) or connections.most_connections() < files
