#!/bin/sh
# lose-power: ends this guest's QEMU without a word to anyone, as if its plug were pulled. The node counts as ended well.
echo "lose power" >/dev/ttyS2
exec sleep 1000
