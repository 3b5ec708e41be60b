"""A port for a server that a test starts."""

import contextlib
import random
import socket

# Below Linux's ephemeral ports, any of which a connection of any process may take before the server listens, and above
# those that Ray gives to its workers.
_PORTS = range(20_000, 32_768)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at."""
    while True:
        port = random.SystemRandom().choice(_PORTS)  # another one in each process, whatever seeds were set
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.bind(("127.0.0.1", port))
            return port
