"""Whether and how a run is recorded at Weights & Biases: by its options, the environment, and whether there is a login.

Nothing here imports wandb, so that the launcher can tell.
"""

import configparser
import netrc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from flash_launch.errors import ConfigError

__all__ = ["KEY", "Login", "Mode", "check_login", "find_login", "netrc_files", "resolve_mode", "without_key"]

Mode = Literal["online", "offline", "disabled"]

KEY = "WANDB_API_KEY"
_SERVER = "https://api.wandb.ai"
_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
"""Values of WANDB_MODE."""


@dataclass(frozen=True)
class Login:
    """The server that is meant, and where the key for it is; never the key itself."""

    server: str
    """Base address of the server."""
    source: str | None
    """Where the key is; None: there is none."""

    @property
    def host(self) -> str:
        """The server's name, as people call it."""
        return _host(self.server)


def find_login(environment: Mapping[str, str]) -> Login:
    """The login that wandb would find: WANDB_API_KEY, or a line of the netrc file for the server."""
    server = (environment.get("WANDB_BASE_URL") or _setting(environment, "base_url") or _SERVER).rstrip("/")
    if environment.get(KEY, "").strip():
        return Login(server, KEY)
    if environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return Login(server, "WANDB_IDENTITY_TOKEN_FILE")
    for file in netrc_files(environment):
        try:
            if netrc.netrc(str(file)).authenticators(_host(server)) is not None:
                return Login(server, str(file))
        except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
            continue
    return Login(server, None)


def resolve_mode(asked: Mode | None, environment: Mapping[str, str]) -> Mode:
    """What was asked for, else WANDB_MODE, else online where there is a login and offline where there is none."""
    if asked is not None:
        return asked
    given = environment.get("WANDB_MODE", "").strip().lower() or _setting(environment, "mode")
    if given in _MODES and not (_MODES[given] == "online" and find_login(environment).source is None):
        return _MODES[given]
    return "online" if find_login(environment).source is not None else "offline"


def check_login(asked: Mode | None, environment: Mapping[str, str]) -> None:
    """Check that a run that shall be online can be.

    Raises:
        ConfigError: online was asked for, and there is no login; nobody can be asked for it.
    """
    if asked == "online" and (login := find_login(environment)).source is None:
        raise ConfigError(
            f"--wandb online needs a login at {login.host}, and there is none: set {KEY}, or run `wandb login`; or "
            "give --wandb offline, and upload the run later with `flash-launch sync`"
        )


def without_key(text: str, environment: Mapping[str, str]) -> str:
    """A text in which the key does not stand."""
    key = environment.get(KEY, "").strip()
    return text.replace(key, "***") if key else text


def _host(server: str) -> str:
    try:
        return urlsplit(server).netloc or server
    except ValueError:  # no address at all: asking it tells why
        return server


def _setting(environment: Mapping[str, str], name: str) -> str:
    """A setting that `wandb login --host` or `wandb offline` left; empty: none."""
    folder = environment.get("WANDB_CONFIG_DIR")
    file = (Path(folder) if folder else Path(environment.get("HOME", "/")) / ".config/wandb") / "settings"
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(file, encoding="utf-8")
        return parser.get("default", name, fallback="").strip()
    except (configparser.Error, OSError, UnicodeDecodeError):
        return ""


def netrc_files(environment: Mapping[str, str]) -> list[Path]:
    """Where wandb looks for a login, the first one first."""
    if named := environment.get("NETRC"):
        return [Path(named).expanduser()]
    home = Path(environment.get("HOME", "/"))
    return [home / ".netrc", home / "_netrc"]
