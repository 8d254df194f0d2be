"""How a run is recorded by default: by options, environment, keys and logins; and that no key is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from flash_launch.config import RunConfig
from flash_launch.errors import ConfigError
from flash_launch.tracking.mode import Mode, check_login, find_login, resolve_mode, without_key

KEY = "k" * 40


def home(folder: Path, netrc: str = "", settings: str = "") -> dict[str, str]:
    """An environment with this home folder."""
    if netrc:
        (folder / ".netrc").write_text(netrc)
    if settings:
        (folder / ".config/wandb").mkdir(parents=True)
        (folder / ".config/wandb/settings").write_text(settings)
    return {"HOME": str(folder)}


@pytest.mark.parametrize(
    ("asked", "variables", "netrc", "mode"),
    [
        (None, {}, "", "offline"),
        (None, {"WANDB_API_KEY": KEY}, "", "online"),
        (None, {}, f"machine api.wandb.ai login user password {KEY}\n", "online"),
        (
            None,
            {"WANDB_BASE_URL": "https://own.example:8080"},
            f"machine api.wandb.ai login u password {KEY}",
            "offline",
        ),
        (None, {"WANDB_BASE_URL": "https://own.example"}, f"machine own.example login user password {KEY}", "online"),
        (None, {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "", "offline"),
        (None, {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "", "disabled"),
        (None, {"WANDB_MODE": "dryrun"}, "", "offline"),
        (None, {"WANDB_MODE": "online"}, "", "offline"),
        (None, {"WANDB_MODE": "nonsense"}, "", "offline"),
        ("offline", {"WANDB_API_KEY": KEY, "WANDB_MODE": "online"}, "", "offline"),
        ("disabled", {"WANDB_API_KEY": KEY}, "", "disabled"),
        ("online", {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "", "online"),
        (None, {}, "nonsense\n", "offline"),
    ],
)
def test_the_mode(tmp_path: Path, asked: Mode | None, variables: dict[str, str], netrc: str, mode: Mode) -> None:
    assert resolve_mode(asked, home(tmp_path, netrc) | variables) == mode


def test_what_wandb_itself_was_told_is_kept_to(tmp_path: Path) -> None:
    netrc = f"machine own.example login user password {KEY}"
    environment = home(tmp_path, netrc, "[default]\nbase_url = https://own.example/\nmode = offline\n")
    login = find_login(environment)
    assert (login.server, login.host, login.source) == ("https://own.example", "own.example", str(tmp_path / ".netrc"))
    assert resolve_mode(None, environment) == "offline"
    assert resolve_mode("online", environment) == "online"


def test_online_without_a_login_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs a login at api\.wandb\.ai.*--wandb offline"):
        check_login("online", home(tmp_path))
    check_login("online", home(tmp_path) | {"WANDB_API_KEY": KEY})
    check_login(None, home(tmp_path))


def test_the_key_is_taken_out_of_words() -> None:
    assert without_key(f"error 401: key {KEY} is wrong", {"WANDB_API_KEY": KEY}) == "error 401: key *** is wrong"
    assert without_key("all is well", {}) == "all is well"


def test_no_option_takes_a_key() -> None:
    """config.yaml, scripts and logs hold the options."""
    assert [name for name in vars(RunConfig()) if "key" in name or "token" in name] == []
