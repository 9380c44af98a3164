"""The clients by which the stream may be read; see `source.client`."""

import pytest

both_clients = pytest.mark.parametrize("client", ["websockets", "picows"])
"""For what depends on how the stream is read: `source__client=client`."""
