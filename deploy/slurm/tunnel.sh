#!/bin/bash
# Keeps a tunnel from this node to the model's server, wherever its job runs now: civicsky's address of it stays.
# Start it where civicsky runs: nohup ./tunnel.sh > tunnel.log 2>&1 &
set -u
ADDRESS_FILE=${ADDRESS_FILE:-$HOME/.config/civicsky/model.address}
# Seconds between two attempts.
PAUSE=${PAUSE:-30}

while :; do
    if read -r url node < "$ADDRESS_FILE" 2>/dev/null; then
        port=${url##*:}
        port=${port%%/*}
        ssh -N -o BatchMode=yes -o ExitOnForwardFailure=yes -o ServerAliveInterval=30 -o ServerAliveCountMax=3 \
            -L "127.0.0.1:$port:127.0.0.1:$port" "$node"
    fi
    sleep "$PAUSE"
done
