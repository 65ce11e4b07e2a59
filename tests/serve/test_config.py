"""Settings: where they come from, and what is refused."""

import json
import pickle
from pathlib import Path

import pytest

from serve.config.settings import Settings, is_loopback
from serve.config.sources import ConfigError
from serve.logs.process import LogSettings

BUNDLE = {"bundles": ["b"]}


def test_flags_win_over_variables_over_the_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "choir.yaml"
    file.write_text("bundles: [from-file]\nport: 1\nkeep_warm: 1\nreplicas: 1\nmax_inputs: 7\n")
    monkeypatch.setenv("CHOIR_PORT", "2")
    monkeypatch.setenv("CHOIR_KEEP_WARM", "2")
    monkeypatch.setenv("CHOIR_REPLICAS", "")
    settings = Settings.load({"port": 3}, file)
    assert (settings.port, settings.keep_warm, settings.replicas) == (3, 2, 1)
    assert (settings.max_inputs, settings.max_body_mb) == (7, 32)
    assert settings.bundles == (Path.cwd() / "from-file",)


def test_a_json_file_and_lists_and_objects_in_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "choir.json"
    file.write_text(json.dumps({"bundles": ["x"], "engine": {"max_loras": 4}}))
    monkeypatch.setenv("CHOIR_ALLOWED_HOSTS", "a.example, b.example")
    monkeypatch.setenv("CHOIR_INFERENCE_TOKENS", '["one", "t,w,o"]')
    monkeypatch.setenv("CHOIR_ENGINE", '{"max_model_len": 512}')
    settings = Settings.load({}, file)
    assert settings.allowed_hosts == ("a.example", "b.example")
    assert [token.get_secret_value() for token in settings.inference_tokens] == ["one", "t,w,o"]
    assert settings.engine == {"max_model_len": 512}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({}, "bundles"),
        (BUNDLE | {"port": 0}, "--port: "),
        (BUNDLE | {"port": "http"}, "--port: "),
        (BUNDLE | {"max_inputs": 0}, "--max-inputs: "),
        (BUNDLE | {"dtype": "int3"}, "--dtype: "),
        (BUNDLE | {"colour": 1}, "--colour: .*not known"),
        (BUNDLE | {"host": "0.0.0.0"}, "CHOIR_ADMIN_TOKEN.*--insecure"),
        (BUNDLE | {"host": "example.org"}, "CHOIR_ADMIN_TOKEN"),
        (BUNDLE | {"engine": {"max_lora_rank": 65}}, "1, 8, 16, 32, 64, 128, 256, 320, 512"),
        (BUNDLE | {"engine": {"max_loras": 0}}, "at least 1"),
        (BUNDLE | {"engine": {"max_loras": 3}, "adapter_slots": 4}, "same setting"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(flags: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Settings.load(flags)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [", "neither YAML nor JSON"),
        ("- a", "must hold settings"),
        ("colour: red", "'colour', which is not known"),
        ("bundles: [b]\nport: x", "'port' in .*choir.yaml: "),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "choir.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=says):
        Settings.load({}, file)


def test_a_missing_file_and_a_broken_variable_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml cannot be read"):
        Settings.load(BUNDLE, tmp_path / "nothing.yaml")
    monkeypatch.setenv("CHOIR_ENGINE", "{")
    with pytest.raises(ConfigError, match="CHOIR_ENGINE is not valid JSON"):
        Settings.load(BUNDLE)


@pytest.mark.parametrize("more", [{"admin_token": "x"}, {"insecure": True}])
def test_other_machines_are_served_with_a_token_or_on_demand(more: dict[str, object]) -> None:
    settings = Settings.load(BUNDLE | {"host": "0.0.0.0"} | more)
    assert not settings.loopback


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_secrets_are_not_shown() -> None:
    flags = {"admin_token": "s3cret", "inference_tokens": ["s3cret"], "database_url": "s3cret"}
    settings = Settings.load(BUNDLE | flags)
    assert "s3cret" not in repr(settings) + str(settings) + settings.model_dump_json()
    with pytest.raises(ConfigError) as caught:
        Settings.load(BUNDLE | {"admin_token": ["s3cret"]})
    assert "s3cret" not in str(caught.value)


def test_slots_are_twice_the_adapters_of_the_start_and_one_unless_given() -> None:
    assert Settings.load(BUNDLE).slots(3) == 7
    assert Settings.load(BUNDLE | {"adapter_slots": 4}).slots(3) == 4
    assert Settings.load(BUNDLE | {"engine": {"max_loras": 5}}).slots(3) == 5


def test_host_memory_holds_what_is_in_slots_at_least() -> None:
    assert Settings.load(BUNDLE).loadable(7) == 7
    assert Settings.load(BUNDLE | {"host_adapters": 64}).loadable(7) == 64
    assert Settings.load(BUNDLE | {"host_adapters": 3}).loadable(7) == 7


def test_pinned_ensembles_are_all_some_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load(BUNDLE).pinned is None
    monkeypatch.setenv("CHOIR_PINNED", "intents, tone")
    assert Settings.load(BUNDLE).pinned == ("intents", "tone")
    monkeypatch.setenv("CHOIR_PINNED", "[]")
    assert Settings.load(BUNDLE).pinned == ()


def test_the_store_lies_in_the_first_bundle_unless_given() -> None:
    assert Settings.load({"bundles": ["x", "y"]}).store_dir == Path.cwd() / "x/.choir"
    assert Settings.load({"bundles": ["x"], "store": "/s"}).store_dir == Path("/s")


def test_paths_mean_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    settings = Settings.load({"bundles": ["x"], "adapter_roots": ["y", "~/z"]})
    assert settings.adapter_roots == (Path.cwd() / "y", Path("/home/ada/z"))


def test_settings_travel_to_other_processes() -> None:
    settings = Settings.load(BUNDLE | {"admin_token": "x"})
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_every_setting_is_described() -> None:
    undescribed = [name for name, field in Settings.model_fields.items() if not field.description]
    assert undescribed == []


def test_logs_lie_in_the_store_unless_another_folder_is_given() -> None:
    assert Settings.load(BUNDLE).logs.folder == Path.cwd() / "b" / ".choir" / "logs"
    assert Settings.load(BUNDLE | {"store": "/store"}).logs.folder == Path("/store/logs")
    given = {"store": "/store", "log_dir": "/logs", "log_level": "error", "log_format": "text"}
    assert Settings.load(BUNDLE | given).logs == LogSettings(Path("/logs"), "error", "text")
    with pytest.raises(ConfigError, match="--log-format: "):
        Settings.load(BUNDLE | {"log_format": "xml"})


def test_chats_have_vllms_settings_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    chat = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
    monkeypatch.setenv("CHOIR_CHAT", json.dumps(chat | {"chat_template": str(template)}))
    settings = Settings.load(BUNDLE | {"pools": {"b": {"chat": {"reasoning_parser": "qwen3"}}}})
    assert settings.chat.tool_call_parser == "hermes"
    assert settings.chat.chat_template == "{{ messages }}", (
        "engines on other machines lack the file"
    )
    own = settings.of_pool("b").chat
    assert (own.reasoning_parser, own.tool_call_parser) == ("qwen3", None)
    assert settings.of_pool("a").chat == settings.chat


@pytest.mark.parametrize(
    ("chat", "says"),
    [
        ({"enable_auto_tool_choice": True}, "--chat.*'tool_call_parser'"),
        ({"tool_call_parser": ""}, "--chat.*tool_call_parser"),
        ({"chat_template": "nowhere.jinja"}, "--chat.*nowhere.jinja cannot be read"),
        ({"chat_template_content_format": "xml"}, "--chat.*content_format"),
        ({"chat_templates": "x"}, "--chat.*chat_templates"),
    ],
)
def test_a_setting_of_chats_that_cannot_be_used_is_named(chat: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Settings.load(BUNDLE | {"chat": chat})
