//! IPoIB in both of its modes, and the tools that connect by its addresses.

use testbed_tests::linux::group::{Check, Group};

/// Sets the mode of the interface and the largest packets that go with it.
const CONNECTED: &str = "echo connected >/sys/class/net/ib0/mode; ip link set ib0 mtu 65520
    grep -x connected /sys/class/net/ib0/mode";
const DATAGRAM: &str = "echo datagram >/sys/class/net/ib0/mode; ip link set ib0 mtu 2044
    grep -x datagram /sys/class/net/ib0/mode";

pub(crate) fn groups() -> Vec<Group> {
    let datagram = Group::new("datagram mode", &["--packages", "iperf3"]);
    let connected = Group::new("connected mode", &["--packages", "iperf3"]);
    let modes = Group::new("from mode to mode", &[])
        .check(mode("datagram at first", DATAGRAM))
        .check(pings(2000, "2008 bytes"))
        .check(mode("now connected", CONNECTED))
        .check(pings(60_000, "60008 bytes"))
        .check(mode("datagram again", DATAGRAM))
        // Before the peer is known, IPoIB keeps three packets and no more.
        .check(pings(56, "64 bytes"))
        .check(pings(60_000, "60008 bytes"))
        .full();
    vec![
        traffic(datagram),
        traffic(connected.check(mode("mode and MTU", CONNECTED))),
        modes,
        rsockets(),
    ]
}

fn mode(name: &str, script: &str) -> Check {
    Check::new(name, &[script, script])
}

/// Pings both ways at once; packets larger than the MTU are fragmented.
fn pings(size: u32, reply: &str) -> Check {
    let to = |node: u8| format!("ping -c 3 -s {size} ib{node}");
    Check::new(&format!("ping with {size} bytes"), &[&to(1), &to(0)])
        .expect(&format!("node0: {reply} from 10.0.1.2"))
        .expect("node0: 3 packets transmitted, 3 packets received, 0% packet loss")
        .expect(&format!("node1: {reply} from 10.0.1.1"))
        .expect("node1: 3 packets transmitted, 3 packets received, 0% packet loss")
}

/// Adds the traffic that must pass in either mode.
fn traffic(group: Group) -> Group {
    group
        .check(pings(56, "64 bytes"))
        .check(pings(20_000, "20008 bytes"))
        .check(pings(60_000, "60008 bytes").full())
        .check(file())
        .check(iperf("-t 2"))
        .check(iperf("-t 2 -R").full())
        .check(iperf("-t 2 -P 8").full())
        .check(iperf("-t 2 --bidir").full())
        .check(iperf("-t 2 -u -b 10M -l 1400").full())
        .check(iperf("-t 2 -u -b 10M -l 30000").full())
        .check(by_address("rping -V -C 10", "-s", "-c -a ib0"))
        .check(by_address("ucmatose", "", "-s ib0"))
        .check(by_address("udaddy", "", "-s ib0").expect("node1: receiving data transfers"))
        .check(by_address("rping -V -C 50 -S 65535", "-s", "-c -a ib0").full())
        .check(by_address("ucmatose -c 10 -C 50 -S 5000", "", "-s ib0").full())
        .check(by_address("udaddy -c 5 -C 50 -S 2000", "", "-s ib0").full())
}

/// Sends random bytes by TCP and compares their checksums.
fn file() -> Check {
    let server = "dd if=/dev/urandom of=/tmp/file bs=1M count=16
        sum=$(sha256sum </tmp/file | cut -d' ' -f1)
        nc -ll -p 7000 -e cat /tmp/file &
        until theirs=$(noted node1); do sleep 0.2; done
        [ \"$theirs\" = \"$sum\" ]";
    let client = "await node0 7000
        nc ib0 7000 </dev/null >/tmp/file
        note $(sha256sum </tmp/file | cut -d' ' -f1)";
    Check::new("16 MB arrive whole", &[server, client])
}

fn iperf(options: &str) -> Check {
    let client = format!("await node0 5201; iperf3 -c ib0 {options}");
    Check::new(&format!("iperf3 {options}"), &["iperf3 -s -1", &client])
        .expect("node1: iperf Done.")
}

/// Runs a tool that listens on node 0 by the RDMA connection manager. A client that came too early
/// must not try again: of ten connections some may have reached a server that began to listen
/// meanwhile, and end it.
fn by_address(tool: &str, server: &str, client: &str) -> Check {
    let program = tool.split(' ').next().unwrap_or(tool);
    let client = format!("await_cm node0 {program}; {tool} {client}");
    Check::new(tool, &[&format!("{tool} {server}"), &client])
}

/// librdmacm's sockets.
fn rsockets() -> Group {
    Group::new("rsockets", &[])
        .check(by_address("rstream -S 65536 -C 50 -T v", "", "-s ib0"))
        .check(by_address("rstream -S 100000 -C 100 -T n", "", "-s ib0"))
        .check(by_address("rstream -S 1 -C 1 -I 100 -T b", "", "-s ib0"))
        .check(by_address("riostream -S 65536 -C 50 -T v", "", "-s ib0"))
        .check(udpong())
        .check(cmtime())
        .full()
}

/// Datagrams by UD; no list tells that its server listens.
fn udpong() -> Check {
    until_told(
        "udpong",
        "udpong -b ib0",
        "again udpong -s ib0 -C 100 -S 2000",
    )
}

/// Connections made and ended by the hundred.
fn cmtime() -> Check {
    until_told(
        "cmtime",
        "cmtime",
        "await_cm node0 cmtime; cmtime -s ib0 -c 100",
    )
}

/// Runs a server that does not end by itself.
fn until_told(name: &str, server: &str, client: &str) -> Check {
    let server = format!("{server} &\n until noted node1; do sleep 0.2; done");
    Check::new(name, &[&server, &format!("{client}; note done")])
}
