"""A port for a server that cannot be told to take any: its number stands in a file or on a command line before it runs.

A port that was free a moment ago is soon another's: tests run side by side, each asks for free ports many times, and
there are 14,000. For a minute this one is given to nobody else: a connection that it ended rests in TIME_WAIT, where
only a server that asks for this very number and reuses addresses gets it, as servers do.
"""

import socket


def free_port() -> int:
    """One of 127.0.0.1 on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()  # first, so that it is this end which rests
            assert client.recv(1) == b""
    return port
