"""The API judge against a local server that misbehaves in all the usual ways."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from hyperbagel.evaluation.gedit.judges.openai import OpenAIJudge

SOURCE, EDITED = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (8, 8), "blue")
GOOD = '{"score": [8, 9], "reasoning": "fine"}'

Reply = tuple[int, str, dict[str, str]]
"""HTTP status, body, headers."""


def completion(text: str | None, status: int = 200) -> Reply:
    """A reply as a chat endpoint gives it."""
    body = {"model": "judge-2025", "choices": [{"message": {"role": "assistant", "content": text}}]}
    return status, json.dumps(body), {}


class Server(ThreadingHTTPServer):
    """Answers with the replies in turn, the last one for ever; keeps what it was asked."""

    replies: list[Callable[[], Reply]]
    requests: list[dict[str, Any]]
    headers: list[dict[str, str]]

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up (the time-out test) is no failure."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.headers.append({"path": self.path, **dict(self.headers)})
        replies = self.server.replies
        status, body, headers = (replies.pop(0) if len(replies) > 1 else replies[0])()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.replies, server.requests, server.headers = [lambda: completion(GOOD)], [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def judge_of(server: Server, **settings: Any) -> OpenAIJudge:
    settings = {"api_key_env": None, "retries": 0, "timeout": 5.0} | settings
    return OpenAIJudge("judge", server.base_url, **settings)


def test_asks_two_questions_as_published(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    judge = judge_of(server, api_key_env="JUDGE_KEY")
    verdict = judge.score("make it blue", SOURCE, EDITED)

    assert (verdict.sc, verdict.pq) == (8, 8)
    assert judge.version == "judge-2025"
    assert {sent["path"] for sent in server.headers} == {"/v1/chat/completions"}
    assert {sent["Authorization"] for sent in server.headers} == {"Bearer secret"}
    consistency, quality = server.requests
    assert consistency["model"] == "judge"
    assert consistency["max_tokens"] == 1400
    assert "temperature" not in consistency
    for sent, pictures in ((consistency, 2), (quality, 1)):
        (message,) = sent["messages"]
        assert message["role"] == "user"
        assert [part["type"] for part in message["content"]] == ["text"] + ["image_url"] * pictures
        assert ("make it blue" in message["content"][0]["text"]) == (pictures == 2)
    first, second = (decoded(part) for part in consistency["messages"][0]["content"][1:])
    assert first.format == "JPEG"
    assert (first.size, second.size) == ((20, 10), (20, 10))
    assert first.getpixel((5, 5))[0] > 240
    assert second.getpixel((5, 5))[2] > 240


def decoded(part: dict[str, Any]) -> Image.Image:
    url = part["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (completion(""), "empty"),
        (completion(None), "empty"),
        (completion("I'm sorry, I can't help with that."), "no_score"),
        ((400, '{"error": {"code": "content_policy_violation"}}', {}), "empty"),
        ((429, "slow down", {}), "transport"),
        ((500, "oops", {}), "transport"),
        ((200, "<html>a proxy's page</html>", {}), "transport"),
        ((200, '{"choices": []}', {}), "transport"),
    ],
    ids=["empty", "null", "refusal", "filtered", "rate_limit", "server_error", "no_json", "no_choice"],
)
def test_what_is_no_answer_is_asked_again_then_missing(server: Server, reply: Reply, reason: str) -> None:
    server.replies = [lambda: reply]
    verdict = judge_of(server, max_tries=2).score("x", SOURCE, EDITED)
    assert verdict.o is None
    assert verdict.consistency.reasons == verdict.quality.reasons == (reason, reason)
    assert len(server.requests) == 4


def test_rate_limit_is_waited_for_without_costing_a_try(server: Server) -> None:
    server.replies = [lambda: (429, "slow down", {"Retry-After": "0"}), lambda: completion(GOOD)]
    verdict = judge_of(server, retries=2, max_tries=1).score("x", SOURCE, EDITED)
    assert verdict.sc == 8
    assert verdict.consistency.asked == 1
    assert len(server.requests) == 3


def test_time_out(server: Server) -> None:
    def late() -> Reply:
        time.sleep(0.5)
        return completion(GOOD)

    server.replies = [late, lambda: completion(GOOD)]
    verdict = judge_of(server, timeout=0.1, max_tries=2).score("x", SOURCE, EDITED)
    assert verdict.consistency.reasons == ("transport",)
    assert verdict.sc == 8


def test_nobody_listens() -> None:
    judge = OpenAIJudge("judge", "http://127.0.0.1:9/v1", api_key_env=None, retries=0, max_tries=1)
    assert judge.score("x", SOURCE, EDITED).consistency.reasons == ("transport",)


@pytest.mark.parametrize("status", [301, 400, 401, 404])
def test_refused_request_stops_with_one_clear_error(server: Server, status: int) -> None:
    server.replies = [lambda: (status, "no such model", {"Location": "http://127.0.0.1:9/"})]
    with pytest.raises(
        ConnectionRefusedError, match=rf"HTTP {status} for model 'judge'.*check base_url, model and the key"
    ):
        judge_of(server).score("x", SOURCE, EDITED)
    assert len(server.requests) == 1


def test_missing_key_is_said_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ValueError, match="JUDGE_KEY holds no API key"):
        OpenAIJudge(api_key_env="JUDGE_KEY")


def test_url_without_scheme() -> None:
    with pytest.raises(ValueError, match="must begin with http"):
        OpenAIJudge(base_url="localhost:8000/v1", api_key_env=None)
