#!/bin/sh
# cable PORT in|out: plugs or pulls the cable of a port of this guest's adapter.
case $1/$2 in
[12]/in | [12]/out) ;;
*)
    echo "cable: usage: cable PORT in|out" >&2
    exit 2
    ;;
esac
echo "cable $1 $2" >/dev/ttyS2
