#!/bin/sh
# peer-guest SWAP CLUSTER: runs jobs in control groups that have less memory than the jobs need,
# and swaps to SWAP: `nvme` (the namespace that the other guest offers over RDMA), `zram`, or
# `none`. CLUSTER is vm.page-cluster, or `-` for Linux's own.
#
# A job is a line of /usr/share/peer-jobs: its name, the limit in KiB (0: none), the program and its
# arguments. For each it prints, after the program's own output,
#   job NAME EXIT-STATUS CENTISECONDS MAJOR-FAULTS PAGES-IN PAGES-OUT
set -e
case $1 in
nvme)
    modprobe nvme-rdma
    until nvme connect -t rdma -n test -a 10.0.1.1 -s 4420 >/dev/null 2>&1; do sleep 0.5; done
    until [ -e /dev/nvme0n1 ]; do sleep 0.1; done
    disk=/dev/nvme0n1
    ;;
zram)
    modprobe zram
    echo 64M >/sys/block/zram0/disksize
    disk=/dev/zram0
    ;;
esac
if [ -n "$disk" ]; then
    mkswap "$disk" >/dev/null
    swapon "$disk"
fi
if [ "$2" != - ]; then echo "$2" >/proc/sys/vm/page-cluster; fi
mkdir -p /tmp/cgroup
mount -t cgroup2 none /tmp/cgroup
echo +memory >/tmp/cgroup/cgroup.subtree_control

# The sum of counters of /proc/vmstat.
counter() {
    awk -v name="$1" '$1 == name { print $2 }' /proc/vmstat
}

# Hundredths of a second since the boot.
now() {
    cut -d' ' -f1 /proc/uptime | tr -d .
}

while read -r name limit program; do
    group=/tmp/cgroup/$name
    mkdir "$group"
    if [ "$limit" != 0 ]; then echo "${limit}K" >"$group/memory.max"; fi
    faults=$(counter pgmajfault) in=$(counter pswpin) out=$(counter pswpout) start=$(now) status=0
    # shellcheck disable=SC2086 -- the program and its arguments are words.
    sh -c 'echo $$ >"$0/cgroup.procs"; exec "$@"' "$group" $program </dev/null || status=$?
    time=$(($(now) - start))
    faults=$(($(counter pgmajfault) - faults)) in=$(($(counter pswpin) - in)) out=$(($(counter pswpout) - out))
    echo "job $name $status $time $faults $in $out"
done </usr/share/peer-jobs
