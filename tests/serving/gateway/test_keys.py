from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serving.cli import app
from serving.errors import InputError
from serving.gateway.errors import ApiError
from serving.gateway.keys import ANONYMOUS, Keys, new_key
from serving.gateway.settings import Settings, load

TRACKS = {"blue": ("http://127.0.0.1:8000",)}


def settings(**fields: object) -> Settings:
    return load(None, model="m", tracks=TRACKS, **fields)


def test_a_key_leads_to_its_tenant_and_no_other_does() -> None:
    (shop, kept), (bank, kept_too) = new_key(), new_key()
    keys = Keys.of(settings(api_keys={"shop": (kept,), "bank": (kept_too,)}))
    assert keys.tenant(f"Bearer {shop}") == "shop"
    assert keys.tenant(f"bearer {bank}") == "bank"
    for wrong in (None, "", shop, f"Basic {shop}", f"Bearer {shop}x", f"Bearer {kept}", "Bearer "):
        with pytest.raises(ApiError) as refused:
            keys.tenant(wrong)
        assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")


def test_without_keys_everybody_is_anonymous() -> None:
    keys = Keys.of(settings())
    assert keys.tenant(None) == keys.tenant("Bearer anything") == ANONYMOUS


def test_with_keys_and_anonymous_a_wrong_key_is_still_wrong() -> None:
    _, kept = new_key()
    keys = Keys.of(settings(api_keys={"shop": (kept,)}, anonymous=True))
    assert keys.tenant(None) == ANONYMOUS
    with pytest.raises(ApiError):
        keys.tenant("Bearer wrong")


def test_keys_are_read_from_a_file_that_the_command_writes(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["keys", "new", "shop"])
    file = tmp_path / "keys.json"
    file.write_text(made.stdout)
    key = made.stderr.split()[-1]
    assert key not in made.stdout
    assert Keys.of(settings(api_keys_file=file)).tenant(f"Bearer {key}") == "shop"


@pytest.mark.parametrize("text", ["", "[]", '{"shop": ["short"]}', '{"shop": 7}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"keys\.json.*serving keys new"):
        Keys.of(settings(api_keys_file=file))


def test_settings_come_from_file_environment_and_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"model": "f", "tracks": TRACKS, "port": 1, "log_level": "debug"}))
    monkeypatch.setenv("GATEWAY_MODEL", "e")
    monkeypatch.setenv("GATEWAY_TIMEOUTS__IDLE_S", "7")
    found = load(file, port=3)
    assert (found.model, found.port, found.log_level) == ("e", 3, "debug")
    assert found.timeouts.idle_s == 7


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tracks": {}}, "must name a replica"),
        ({"tracks": {"blue": ("ftp://x",)}}, "tracks.blue"),
        ({"stable": "red"}, "red"),
        ({"host": "0.0.0.0"}, "answers everybody"),
        ({"port": 70_000}, "port"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_settings_that_cannot_work_are_one_line(fields: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        load(None, **({"model": "m", "tracks": TRACKS} | fields))
    assert "\n" not in str(refused.value)
