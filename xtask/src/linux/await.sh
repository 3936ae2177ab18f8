#!/bin/sh
# await HOST PORT: waits until HOST, another guest, listens on the TCP port; at most 30 seconds, and not longer than its
# command runs.
hex=$(printf ':%04X' "$2")
tries=0
until said=$(nc -w 2 "$1" 9 </dev/null 2>/dev/null); echo "$said" | grep -q "$hex 0*:0000 0A"; do
    if echo "$said" | grep -q '^ended '; then
        echo "await: the command of $1 has ended, and nothing there listens on port $2" >&2
        exit 1
    fi
    tries=$((tries + 1))
    if [ "$tries" -ge 300 ]; then
        echo "await: $1 does not listen on port $2" >&2
        exit 1
    fi
    sleep 0.1
done
