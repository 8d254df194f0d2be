"""Whether a server answers, within seconds: what nobody is made to wait for."""

import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Callable

__all__ = ["PROBE_SECONDS", "why_unreachable"]

PROBE_SECONDS = 5.0


def why_unreachable(
    server: str, seconds: float = PROBE_SECONDS, give_up: Callable[[float], bool] | None = None
) -> str | None:
    """Why a server gives no answer of any kind; None: it does.

    Args:
        server: its address; proxies are those of the environment.
        seconds: how long to wait, name resolution included.
        give_up: waits that many seconds, or less, and then says whether nobody is interested any more.
    """
    told: list[str | None] = []
    done = threading.Event()

    def ask() -> None:
        told.append(_ask(server, seconds))
        done.set()

    # a thread, since a name server that hangs cannot be given a time-out
    threading.Thread(target=ask, name="wandb probe", daemon=True).start()
    waited = 0.0
    while waited < seconds and not done.wait(0 if give_up else seconds):
        if give_up is not None and give_up(0.1):
            break
        waited += 0.1 if give_up else seconds
    return told[0] if told else f"no answer within {seconds:g} s"


def _ask(server: str, seconds: float) -> str | None:
    try:
        with urllib.request.urlopen(server, timeout=seconds):
            return None
    except urllib.error.HTTPError:
        return None  # an answer, if not a kind one
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return f"no answer within {seconds:g} s"
        if "CERTIFICATE" in str(reason):
            return None  # there is somebody; wandb has settings of its own for certificates
        return str(getattr(reason, "strerror", None) or reason)
