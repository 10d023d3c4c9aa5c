"""Is there a Ray cluster at an address, and does it let this process in?

Ray itself takes minutes to find that nobody is there, and tries a wrong token for twenty seconds, a line each.
"""

import re
import socket

from ray._private.authentication.authentication_token_setup import (
    ensure_token_if_auth_enabled,
    maybe_enable_token_auth_if_token_available,
)
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import ClusterID, GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError

_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:]+\]|[^:/\s]+):\d{1,5}")
#: How long a cluster may take to answer.
_ANSWER_SECONDS = 10
#: What Ray answers to a process that shows another token than the cluster's, or none.
_REFUSED = "InvalidAuthToken"


def check_address(address: str) -> None:
    """Knock at an address as ``--address`` takes it: ``host:port``, or ``auto`` on a machine of the cluster.

    Raises:
        OSError: nobody answers.
        PermissionError: the cluster wants another token than this process shows.
        RayError: this process is to show a token and has none, or what answers is no cluster.
        ValueError: it is no address, or one from which a sweep cannot be run.
    """
    if "://" in address:
        raise ValueError(
            "a sweep is run by a process on a machine of the cluster: give host:port or auto there, or send the "
            "command with ray job submit"
        )
    if address != "auto" and not _HOST_AND_PORT.fullmatch(address):
        raise ValueError("no address; give host:port, or auto on a machine of the cluster")
    if address == "auto":
        # As `ray.init` does: a token that lies there is shown only to a cluster that was found on this machine.
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    ensure_token_if_auth_enabled(create_token_if_missing=False)
    found = canonicalize_bootstrap_address(address)
    host, _, port = found.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    _show_token(found)


def _show_token(address: str) -> None:
    """Ask something in the name of a cluster that does not exist: the token is looked at before the name."""
    nobody = ClusterID(b"\x01" * ClusterID.size()).hex()
    try:
        GcsClient(address=address, cluster_id=nobody).internal_kv_get(b"session_name", b"session", _ANSWER_SECONDS)
    except AuthenticationError as error:
        if _REFUSED in str(error):
            raise PermissionError(
                "it asks for a token, and this process shows another one or none; set RAY_AUTH_MODE=token and have "
                "the cluster's token in ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
            ) from None
