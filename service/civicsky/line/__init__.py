"""An open websocket to a relay, by one library or another."""
