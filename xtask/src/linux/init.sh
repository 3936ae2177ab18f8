#!/bin/busybox sh
# The first process of a Linux guest. What it is told: /guest/nodes, /guest/command.N; `node=N` on the kernel command line.
# ttyS0 is the kernel's log, ttyS1 the command's output and input, ttyS2 speaks with xtask: "up", then the number
# of the boot as an answer, then "exit CODE".
# Busybox's applets come last: what a package has goes before them.
export PATH=/usr/sbin:/usr/bin:/run/applets HOME=/root TERM=linux
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /tmp /run
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /dev/shm
mkdir /run/applets
busybox --install -s /run/applets
for word in $(cat /proc/cmdline); do
    case $word in
    node=*) node=${word#node=} ;;
    outside=*) outside=${word#outside=} ;;
    manages=*) manages=${word#manages=} ;;
    esac
done
nodes=$(cat /guest/nodes)
hostname "node$node"
# A port that nobody holds open forgets its settings and what comes in.
exec 3<>/dev/ttyS2 4<>/dev/ttyS1
if [ -e /guest/command.0 ]; then
    stty -F /dev/ttyS1 raw -echo
else
    stty -F /dev/ttyS1 sane -echo
fi
stty -F /dev/ttyS2 raw -echo

echo "127.0.0.1 localhost" >/etc/hosts
other=0
while [ "$other" -lt "$nodes" ]; do
    echo "10.0.0.$((other + 1)) node$other" >>/etc/hosts
    echo "10.0.1.$((other + 1)) ib$other" >>/etc/hosts
    other=$((other + 1))
done
ip link set lo up
if [ "$nodes" -gt 1 ] || [ "$outside" = 1 ]; then
    modprobe virtio_pci
    modprobe virtio_net
fi
if [ "$outside" = 1 ]; then
    # The last one, by its place on the bus.
    card=eth$((nodes > 1))
    ip link set "$card" up
    ip address add 10.0.2.15/24 dev "$card"
fi
if [ "$nodes" -gt 1 ]; then
    ip link set eth0 up
    ip address add "10.0.0.$((node + 1))/24" dev eth0
fi

modprobe mlx4_core
for module in mlx4_ib ib_uverbs ib_umad rdma_ucm ib_ipoib; do
    modprobe "$module"
done
ulimit -l unlimited
if [ "$manages" = 1 ]; then
    mkdir -p /var/log /var/cache/opensm
    opensm --daemon --log_file /tmp/opensm.log >/tmp/opensm.out 2>&1
fi
# Bounded: a guest whose port does not come up is still worth looking into.
tries=0
until grep -qs ACTIVE /sys/class/infiniband/mlx4_0/ports/1/state || [ "$tries" -ge 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
if [ -e /sys/class/net/ib0 ]; then
    ip link set ib0 up
    ip address add "10.0.1.$((node + 1))/24" dev ib0
fi
for module in $(cat /guest/modules); do
    modprobe "$module"
done
# Who wants to know which ports this node listens on, and whether its command has ended, asks here: see /usr/bin/await.
: >/run/ended
busybox nc -ll -p 9 -e cat /proc/net/tcp /proc/net/tcp6 /run/ended &
# Who wants to have a command run here: see /usr/bin/on.
busybox nc -ll -p 8 -e /usr/bin/serve-commands &

echo up >&3
read -r BOOT <&3
export BOOT
if [ -e "/guest/command.$node" ]; then
    /bin/sh "/guest/command.$node" </dev/null >/dev/ttyS1 2>&1
    status=$?
    echo "ended $status" >/run/ended
    echo "exit $status" >&3
elif [ "$node" = 0 ]; then
    setsid /bin/sh -c 'exec /bin/sh -i </dev/ttyS1 >/dev/ttyS1 2>&1'
    echo "exit $?" >&3
else
    echo "exit 0" >&3
fi
# The others may still need us: xtask ends all guests together.
while :; do sleep 1000; done
