"""W&B: whether runs would be sent or kept here, and whether its server answers. The key is never kept or told."""

import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from flash_launch.doctor.findings import Finding, fail, ok, warn
from flash_launch.tracking.mode import find_login, netrc_files, resolve_mode
from flash_launch.tracking.probe import why_unreachable

__all__ = ["WandbFacts", "check_wandb", "gather_wandb"]

_GROUP = "W&B"
_SECONDS = 2.0
_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")


@dataclass(frozen=True)
class WandbFacts:
    """What there is to say about W&B."""

    installed: bool
    """Whether the package is there."""
    mode: str = ""
    """WANDB_MODE; empty: not set."""
    key_variable: bool = False
    """Whether WANDB_API_KEY is set."""
    key_plausible: bool = True
    """Whether it looks like a key: long enough, and without spaces or quotes."""
    login: bool = False
    """Whether there is a login for the server elsewhere, as in a netrc file."""
    source: str = ""
    """Where the login is."""
    netrc_problem: str = ""
    """Why the netrc file could not be read; empty: it could, or there is none."""
    server: str = "api.wandb.ai"
    """The server's name."""
    reachable: bool | None = None
    """Whether it took a connection within two seconds; None: it was not tried, as no run would use it."""


def check_wandb(facts: WandbFacts) -> list[Finding]:
    """Whether runs are recorded, where, and whether that works."""
    if facts.mode and facts.mode not in _MODES:
        text = f"WANDB_MODE={facts.mode!r} is no mode of W&B's"
        return [fail(_GROUP, text, "unset WANDB_MODE, or set it to online, offline or disabled")]
    if facts.mode == "disabled":
        return [ok(_GROUP, "WANDB_MODE=disabled: nothing is recorded")]
    if not facts.installed:
        text = "wandb is not installed: runs are recorded in their run folders only"
        if facts.key_variable or facts.login:
            return [warn(_GROUP, f"there is a login, but {text}", "pip install wandb")]
        return [ok(_GROUP, text)]
    if facts.mode in ("offline", "dryrun"):
        return [ok(_GROUP, f"WANDB_MODE={facts.mode}: runs are recorded offline")]
    found = []
    if facts.netrc_problem:
        fix = "mend the file (chmod 600, one `machine ... login user password ...` per server), or run wandb login"
        found.append(warn(_GROUP, f"the netrc file cannot be read: {facts.netrc_problem}", fix))
    if facts.key_variable and not facts.key_plausible:
        text = "WANDB_API_KEY is set, but does not look like a key (too short, or with spaces or quotes)"
        return [
            *found,
            fail(_GROUP, text, f"set it to the key of https://{_site(facts.server)}/authorize, or unset it"),
        ]
    if not facts.key_variable and not facts.login:
        fixed = ok(_GROUP, "no login: runs are recorded offline (wandb login, or WANDB_API_KEY, sends them)")
        return [*found, fixed]
    how = "WANDB_API_KEY is set" if facts.key_variable else f"logged in by {facts.source or 'netrc'}"
    if facts.reachable is False:
        text = f"{how}, but {facts.server} did not answer within {_SECONDS:g} s"
        return [*found, warn(_GROUP, text, "record offline here: --wandb offline, and flash-launch sync RUN later")]
    return [*found, ok(_GROUP, f"{how}, {facts.server} answers")]


def gather_wandb(environment: Mapping[str, str], *, installed: bool) -> WandbFacts:
    """The facts of this machine, as a run finds them."""
    key, login = environment.get("WANDB_API_KEY"), find_login(environment)
    asked = environment.get("WANDB_MODE", "").strip().lower()
    # a mode that is none is told; one that a file names, or that there is no login for, is what a run takes
    mode = asked if asked and asked not in _MODES else resolve_mode(None, environment)
    facts = WandbFacts(
        installed=installed,
        mode=mode if asked or mode == "disabled" else "",
        key_variable=bool(key),
        key_plausible=bool(key) and len(key or "") >= 40 and not set(key or "") & set(" \t\n'\""),
        login=login.source is not None and not key,
        source=login.source or "",
        netrc_problem=_netrc_problem(environment),
        server=login.host,
    )
    if not installed or mode != "online" or login.source is None:
        return facts
    return replace(facts, reachable=why_unreachable(login.server, _SECONDS) is None)


def _netrc_problem(environment: Mapping[str, str]) -> str:
    for file in netrc_files(environment):
        try:
            if os.path.exists(file):
                # The module's own check of owner and mode is for ~/.netrc read by default; W&B does not have it either.
                netrc.netrc(str(file))
        except netrc.NetrcParseError as error:
            # The message of the module can hold what stands in the file.
            return f"{file}, line {error.lineno} is not as it should be"
        except (OSError, UnicodeDecodeError) as error:
            return f"{file}: {getattr(error, 'strerror', None) or 'no text file'}"
    return ""


def _site(server: str) -> str:
    return server.removeprefix("api.")
