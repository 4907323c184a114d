"""The network is touched only where published weights are asked for, and without one that is known at once."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

HUB = ("huggingface.co", 443)
SECONDS = 5.0


def hub_is_out_of_reach() -> bool:
    """Whether the Hugging Face hub cannot be reached. Behind a proxy or with a mirror that is not tried."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_ENDPOINT")):
        return False
    try:
        socket.create_connection(HUB, timeout=SECONDS).close()
    except OSError:
        return True
    return False


@contextlib.contextmanager
def cached_when_offline() -> Iterator[None]:
    """Inside, without a network, the hub's client reads its cache in place of trying again for a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or hub_is_out_of_reach()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
