"""A port that a test was given stays its own until its server is up."""

import socket

import pytest

from support.ports import free_port


def test_a_port_that_was_given_is_given_to_nobody_else_and_a_server_that_asks_for_it_by_number_gets_it() -> None:
    port = free_port()
    with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
        other.bind(("127.0.0.1", port))  # by the rule by which the system leaves it out where any port will do
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", port)) as server:
        assert server.getsockname()[1] == port
