"""Hosted models against a real server on loopback; a proxy between counts the requests."""

import pytest
from conftest import HOSTED_KEY as KEY
from conftest import free_port, hosted_name

from llmnb import files, hosted
from llmnb.hosted import HostedError, HostedModel

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
pytestmark = pytest.mark.slow
pytest.importorskip("openai")


def model(**options) -> HostedModel:
    return HostedModel(f"openai:{hosted_name()}", **options)


def test_an_answer_is_asked_for_once(proxy, cache):
    first = model()
    answer = first.answer(QUESTION, max_tokens=16)
    assert "Paris" in answer.text and answer.completion_tokens > 0 and proxy.requests == 1
    again = model()
    assert again.answer(QUESTION, max_tokens=16) == answer and proxy.requests == 1
    assert (again.usage.requests, again.usage.answers_from_cache) == (0, 1)
    again.answer(QUESTION, max_tokens=2)  # other options are another request
    assert proxy.requests == 2
    written = b"".join(path.read_bytes() for path in cache.rglob("*") if path.is_file())
    assert KEY.encode() not in written and b"What is the capital" not in written


def test_it_streams(proxy, server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.port}/v1")
    pieces = list(model().stream(QUESTION, max_tokens=16))
    assert len(pieces) > 1 and "".join(pieces).strip()


def test_a_stream_is_paid_for_also_where_its_reader_stops(proxy, server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.port}/v1")
    client = model(prices="10000 10000", max_dollars=2.0)
    next(client.stream(QUESTION, max_tokens=4))
    spent = client.usage.dollars
    assert client.usage.requests == 1 and 0 < spent <= 2.0

    def stream_twenty_times() -> None:
        for _ in range(20):
            list(client.stream(QUESTION, max_tokens=4))

    with pytest.raises(HostedError, match="budget ends here"):
        stream_twenty_times()
    assert spent < client.usage.dollars <= 2.0


def test_the_budget_is_never_exceeded(proxy):
    """The bound comes before the request: nothing is sent that could cost too much."""
    client = model(prices="10000, 10000", max_dollars=2.0)

    def ask_twenty_times() -> None:
        for number in range(20):
            client.answer([{"role": "user", "content": f"Say {number}."}], max_tokens=4)

    with pytest.raises(HostedError, match=r"budget ends here.*Raise max_dollars"):
        ask_twenty_times()
    assert 0 < client.usage.requests == proxy.requests < 20
    assert 0 < client.usage.dollars <= 2.0
    n_tokens = client.usage.prompt_tokens + client.usage.completion_tokens
    assert client.usage.dollars == pytest.approx(n_tokens * 1e-2)


def test_it_tries_again_after_a_429_and_gives_up_with_a_reason(proxy):
    proxy.refusals = 2
    assert model().answer(QUESTION, max_tokens=2).text
    assert (proxy.refusals, proxy.requests) == (0, 1)
    proxy.refusals = 3
    with pytest.raises(HostedError, match="slow down"):
        model(max_retries=1).answer(QUESTION, max_tokens=3)


def test_a_server_killed_half_way_repeats_no_request(proxy, server):
    questions = [[{"role": "user", "content": f"Name {n} animals."}] for n in range(2, 8)]
    client = model(max_retries=0)
    answers = [client.answer(question, max_tokens=4) for question in questions[:3]]
    server.kill()
    with pytest.raises(HostedError, match="Nobody answers at http://127"):
        client.answer(questions[3], max_tokens=4)
    server.start()
    sent = proxy.requests
    resumed = model()
    everything = [resumed.answer(question, max_tokens=4) for question in questions]
    assert everything[:3] == answers and proxy.requests == sent + 3
    assert resumed.usage.answers_from_cache == 3


def test_each_failure_says_what_to_do_and_never_the_key(proxy, monkeypatch, cache):
    wrong = HostedModel("openai:no-such-model", max_retries=0)
    with pytest.raises(HostedError, match="'no-such-model'") as refused:
        wrong.answer(QUESTION)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://user:{KEY}@127.0.0.1:{free_port()}/v1")
    with pytest.raises(HostedError, match="Is the server running") as silent:
        model(max_retries=0).answer(QUESTION)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{proxy.port}/v1")
    with pytest.raises(HostedError, match="ask for fewer tokens"):
        model(timeout_seconds=0.01, max_retries=0).answer(QUESTION, max_tokens=64)
    for error in (refused.value, silent.value):
        assert KEY not in str(error) and error.__cause__ is None
    assert not list((files.cache_dir() / "hosted").rglob("*.json"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gpt-4o", {}, "write openai:NAME"),
        ("openai:", {}, "write openai:NAME"),
        ("openai:x", {"max_dollars": 1.0}, "needs prices"),
        ("openai:x", {"prices": "-1 0"}, "0 or more"),
        ("openai:x", {"prices": "cheap"}, "dollars per million"),
    ],
)
def test_what_can_not_be_meant_is_refused(name, options, message):
    with pytest.raises(HostedError, match=message):
        HostedModel(name, **options)


def test_without_a_key_it_says_which_variable(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(HostedError, match="OPENAI_API_KEY"):
        HostedModel("openai:x")
    assert hosted.is_hosted("openai:x") and not hosted.is_hosted("SmolLM2")
