"""`choir batch` through a real gateway: each line of its output, and why a line of its input is not sent."""

from pathlib import Path

from tests.clients.choir_cli.batch.lines import read, request, write
from tests.clients.choir_cli.conftest import Choir
from tests.serve.gateway.running import running


def test_requests_are_answered_in_openais_format(choir: Choir, tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.jsonl",
        request("one"),
        "",
        request("two", url="/classify"),
        request("unknown", body={"model": "nobody", "input": "x"}),
        request("responses", url="/v1/responses", body={"model": "nobody", "input": "x"}),
        '{"custom_id": "nan", "method": "POST", "url": "/v1/predict", "body": {"x": [NaN, 1e999]}}',
        request("get", method="GET"),
        request("elsewhere", url="/v1/ensembles/intents/swap"),
        request("streamed", body={"model": "intents", "input": "x", "stream": True}),
        request("one"),
        {"method": "POST", "url": "/v1/predict", "body": {}},
    )
    target = tmp_path / "out.jsonl"
    with running(tmp_path / "server") as url:
        ran = choir("batch", "-i", str(source), "-o", str(target), "--url", url)
    assert ran.status == 0, ran.err
    assert "10 lines" in ran.out
    assert "2 answered, 2 refused by the server, 6 not sent" in ran.out
    lines = read(target)
    assert all(set(line) == {"id", "custom_id", "response", "error"} for line in lines)
    assert len({line["id"] for line in lines}) == 10
    answers = {line["custom_id"]: line["response"] for line in lines if line["error"] is None}
    assert set(answers) == {"one", "two", "unknown", "responses"}
    assert all(set(each) == {"status_code", "request_id", "body"} for each in answers.values())
    assert answers["one"]["body"]["data"][0]["label"]
    assert answers["two"]["body"]["data"][0]["num_classes"] == 3
    assert (answers["one"]["status_code"], answers["unknown"]["status_code"]) == (200, 404)
    assert answers["one"]["request_id"]
    assert "nobody" in answers["responses"]["body"]["error"]["message"]
    assert "nobody" in answers["unknown"]["body"]["error"]["message"]
    errors = {line["error"]["line"]: line["error"] for line in lines if line["error"]}
    words = {
        6: "JSON",
        7: "POST",
        8: "/v1/predict",
        9: "stream",
        10: "line 1 too",
        11: "custom_id",
    }
    assert errors.keys() == words.keys()
    for number, word in words.items():
        assert word in errors[number]["message"]
        assert errors[number]["code"] == "invalid_line"


def test_a_file_without_any_request_ends_with_a_status(choir: Choir, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("{}\n[]\n")
    ran = choir("batch", "-i", str(source), "-o", str(target))
    assert ran.status == 1
    assert "2 not sent" in ran.out
    assert "No line is a request" in ran.out
    assert len(target.read_text().splitlines()) == 2
