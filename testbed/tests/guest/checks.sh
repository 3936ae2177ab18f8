# Sourced by each guest's command: runs checks one after the other, in step with the other guests.
# /tmp/state, which the others ask for on port 10: the number of the check we are at or wait for, and of the last that failed here.
export PATH="$PATH:/data/guest" MALLOC_ARENA_MAX=1
node=$(hostname)
nodes=$(cat /guest/nodes)
previous_limit=0
failure=-1

tell() {
    echo "$1 $failure" >/tmp/state.new
    mv /tmp/state.new /tmp/state
}

now() {
    cut -d. -f1 /proc/uptime
}

# The states of the other guests, a line each. A check that sees one end for good says so in /tmp/gone.
# A guest that reboots just when it was asked never answers: nc's own limit ends with the connecting.
others() {
    other=0
    while [ "$other" -lt "$nodes" ]; do
        if [ "node$other" != "$node" ] && [ ! -e "/tmp/gone/node$other" ]; then
            timeout 4 nc -w 2 "node$other" 10 </dev/null 2>/dev/null | grep . || echo "-1 -1"
        fi
        other=$((other + 1))
    done
}

# Waits until all others have come to a check. One that never does must not keep us from telling how ours goes.
meet() {
    until=$(($(now) + previous_limit + 30))
    until others | awk -v number="$1" '$1 < number { late = 1 } END { exit late }'; do
        [ "$(now)" -lt "$until" ] || break
        sleep 0.2
    done
}

# Waits for the script's end, its time limit, or the failure of another guest's part of the check; sets `status`.
attend() {
    until=$(($(now) + $2))
    pauses=0
    until [ -e /tmp/ended ]; do
        sleep 0.2
        pauses=$((pauses + 1))
        if [ "$(now)" -ge "$until" ]; then
            echo "check: not done within $2 seconds"
            status=124
            return
        fi
        if [ $((pauses % 10)) = 0 ] && others | grep -q " $1$"; then
            echo "check: ended, for another node's part has failed"
            status=125
            return
        fi
    done
    status=$(cat /tmp/ended)
}

# check NUMBER SECONDS NAME: runs the script on standard input, and ends all that it has left running.
check() {
    cat >/tmp/script
    export check="$1"
    tell "$1"
    meet "$1"
    previous_limit=$2
    echo "check: $3" >/dev/kmsg
    echo "@check $1 begins"
    rm -f /tmp/ended
    setsid /bin/sh -c '/bin/sh -e /tmp/script </dev/null 2>&1; echo $? >/tmp/ending; mv /tmp/ending /tmp/ended' &
    session=$!
    attend "$1" "$2"
    kill -KILL -- "-$session" 2>/dev/null
    [ "$status" = 0 ] || failure=$1
    tell "$1"
    # What the script wrote last may lack its end of line.
    echo
    echo "@check $1 ended $status"
}

tell -1
nc -ll -p 10 -e cat /tmp/state &
echo "-1" >/tmp/note
nc -ll -p 11 -e cat /tmp/note &
nc -ll -p 12 -e rdma resource show cm_id &
