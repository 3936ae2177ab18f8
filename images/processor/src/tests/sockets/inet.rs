//! Internet sockets among the node's programs.

use super::*;

#[test]
fn tcp_connects_programs_of_the_node() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let server = run.socket(AF_INET, STREAM);
    assert_eq!(run.polled(server), 0x114);
    assert_eq!(run.bind(server, &inet([127, 0, 0, 1], 0)), Ok(0));
    let at = run.name_of(nr::__NR_getsockname, server).unwrap();
    assert_eq!((at.len(), &at[4..8]), (16, &[127, 0, 0, 1][..]));
    let client = run.socket(AF_INET, STREAM);
    fails(run.connect(client, &at), errno::ECONNREFUSED);
    fails(
        run.connect(client, &inet([10, 0, 0, 1], 80)),
        errno::ENETUNREACH,
    );
    fails(
        run.bind(client, &inet([10, 0, 0, 1], 80)),
        errno::EADDRNOTAVAIL,
    );
    fails(
        run.bind(client, &unix(b"\0abcdefghijklmnop")),
        errno::EAFNOSUPPORT,
    );
    fails(run.send(client, 1, MSG_NOSIGNAL), errno::EPIPE);
    fails(run.receive(client, 1, 0), errno::ENOTCONN);
    fails(run.call(nr::__NR_shutdown, &[client, 2]), errno::ENOTCONN);
    assert_eq!(run.call(nr::__NR_listen, &[server, 5]), Ok(0));
    let other = run.socket(AF_INET, STREAM);
    fails(run.bind(other, &at), errno::EADDRINUSE);
    assert_eq!(run.connect(client, &at), Ok(0));
    let accepted = run.call(nr::__NR_accept, &[server, 0, 0]).unwrap();
    assert_eq!(run.name_of(nr::__NR_getpeername, client).unwrap(), at);
    assert_eq!(run.name_of(nr::__NR_getsockname, accepted).unwrap(), at);
    let own = run.name_of(nr::__NR_getsockname, client).unwrap();
    assert_eq!(run.name_of(nr::__NR_getpeername, accepted).unwrap(), own);
    assert_eq!(run.write_to(client, b"request"), Ok(7));
    assert_eq!(run.read_from(accepted).unwrap(), b"request");
    assert_eq!((run.polled(client), run.polled(accepted)), (0x104, 0x104));
    // Its close is the end of what it sends; what reaches it later is answered by a reset.
    run.close(client);
    assert_eq!(run.polled(accepted), 0x2145);
    assert_eq!(run.read_from(accepted).unwrap(), b"");
    assert_eq!(run.write_to(accepted, b"x"), Ok(1));
    assert_eq!(run.polled(accepted), 0x215d);
    fails(run.send(accepted, 1, MSG_NOSIGNAL), errno::EPIPE);
    run.ends();
}

#[test]
fn a_connection_that_is_not_waited_for_is_told_of_later() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let server = run.socket(AF_INET6, STREAM);
    run.bind(server, &inet6(0, 0)).unwrap();
    run.call(nr::__NR_listen, &[server, 0]).unwrap();
    let bound = run.name_of(nr::__NR_getsockname, server).unwrap();
    let port = u16::from_be_bytes([bound[2], bound[3]]);
    // A socket of IPv6 for all addresses takes IPv4 as well.
    let at = inet([127, 0, 0, 1], port);
    let client = run.socket(AF_INET, STREAM | NONBLOCK);
    fails(run.connect(client, &at), errno::EINPROGRESS);
    assert_eq!(
        (run.polled(client), run.option(client, SOL_SOCKET, SO_ERROR)),
        (0x104, Ok(0))
    );
    assert_eq!(run.connect(client, &at), Ok(0));
    fails(run.connect(client, &at), errno::EISCONN);
    let accepted = run.call(nr::__NR_accept, &[server, 0, 0]).unwrap();
    let peer = run.name_of(nr::__NR_getpeername, accepted).unwrap();
    assert_eq!(
        (peer.len(), &peer[18..24]),
        (28, &[0xff, 0xff, 127, 0, 0, 1][..])
    );
    let v6 = run.socket(AF_INET6, STREAM);
    assert_eq!(run.connect(v6, &inet6(1, port)), Ok(0));
    run.close(server);
    let refused = run.socket(AF_INET, STREAM | NONBLOCK);
    fails(run.connect(refused, &at), errno::EINPROGRESS);
    assert_eq!(run.polled(refused) & 0x18, 0x18);
    assert_eq!(
        run.option(refused, SOL_SOCKET, SO_ERROR),
        Ok(errno::ECONNREFUSED.0.cast_unsigned())
    );
    run.ends();
}

#[test]
fn udp_finds_ports_and_says_when_nobody_is_there() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let server = run.socket(AF_INET, DGRAM | NONBLOCK);
    run.bind(server, &inet([0, 0, 0, 0], 5353)).unwrap();
    let second = run.socket(AF_INET, DGRAM);
    fails(
        run.bind(second, &inet([127, 0, 0, 1], 5353)),
        errno::EADDRINUSE,
    );
    let client = run.socket(AF_INET, DGRAM | NONBLOCK);
    fails(run.send(client, 1, 0), errno::EDESTADDRREQ);
    assert_eq!(run.connect(client, &inet([127, 0, 0, 1], 5353)), Ok(0));
    assert_eq!(run.write_to(client, b"ping"), Ok(4));
    run.put(LEN, &128u32.to_le_bytes());
    let got = run.call(nr::__NR_recvfrom, &[server, BUF, 100, 0, ADDR, LEN]);
    assert_eq!(got, Ok(4));
    let from = run.get(ADDR, 16);
    assert_eq!(run.name_of(nr::__NR_getsockname, client).unwrap(), from);
    run.put(ADDR, &from);
    let reply = [server, BUF, 4, 0, ADDR, 16];
    assert_eq!(run.call(nr::__NR_sendto, &reply), Ok(4));
    assert_eq!(run.read_from(client).unwrap(), b"ping");
    // Who is connected hears nobody else.
    let stranger = run.socket(AF_INET, DGRAM);
    run.put(ADDR, &from);
    assert_eq!(
        run.call(nr::__NR_sendto, &[stranger, BUF, 4, 0, ADDR, 16]),
        Ok(4)
    );
    fails(run.receive(client, 1, MSG_DONTWAIT), errno::EAGAIN);
    run.put(ADDR, &inet([8, 8, 8, 8], 53));
    fails(
        run.call(nr::__NR_sendto, &[stranger, BUF, 4, 0, ADDR, 16]),
        errno::ENETUNREACH,
    );
    run.close(server);
    assert_eq!(run.write_to(client, b"x"), Ok(1));
    fails(run.receive(client, 1, 0), errno::ECONNREFUSED);
    let huge = run.map(1 << 17).unwrap();
    fails(
        run.call(nr::__NR_write, &[client, huge, 65_508]),
        errno::EMSGSIZE,
    );
    run.ends();
}

#[test]
fn options_of_packets_are_kept_or_refused() {
    let [ip, udp, ipv6] = [0_u64, 17, 41];
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let datagrams = run.socket(AF_INET, DGRAM);
    let int = |value: u32| value.to_le_bytes();
    // IP_TOS, IP_TTL.
    assert_eq!(run.option(datagrams, ip, 2), Ok(64));
    assert_eq!(run.set_option(datagrams, ip, 2, &int(3)), Ok(0));
    assert_eq!(run.option(datagrams, ip, 2), Ok(3));
    assert_eq!(run.set_option(datagrams, ip, 2, &[7]), Ok(0));
    assert_eq!(run.option(datagrams, ip, 2), Ok(7));
    fails(run.set_option(datagrams, ip, 2, &int(256)), errno::EINVAL);
    assert_eq!(run.set_option(datagrams, ip, 1, &int(0x10)), Ok(0));
    // IP_RECVERR: a resolver needs it.
    assert_eq!(run.set_option(datagrams, ip, 11, &int(1)), Ok(0));
    assert_eq!(run.option(datagrams, ip, 11), Ok(1));
    // UDP_CORK: nothing would come of it.
    let refused = run.set_option(datagrams, udp, 1, &int(1));
    fails(refused, errno::ENOPROTOOPT);
    assert_eq!(run.set_option(datagrams, udp, 1, &int(0)), Ok(0));
    assert_eq!(run.option(datagrams, udp, 1), Ok(0));
    // IP_PKTINFO, IP_RECVTOS, UDP_SEGMENT, UDP_GRO.
    for (level, name) in [(ip, 8), (ip, 13), (udp, 103), (udp, 104)] {
        assert_eq!(run.option(datagrams, level, name), Ok(0));
        assert_eq!(run.set_option(datagrams, level, name, &int(1)), Ok(0));
        assert_eq!(run.option(datagrams, level, name), Ok(1));
    }
    fails(
        run.set_option(datagrams, ip, 250, &int(0)),
        errno::ENOPROTOOPT,
    );
    let foreign = run.option(datagrams, ipv6, 16);
    assert_eq!(errno_of(foreign), Some(errno::ENOPROTOOPT));
    let stream = run.socket(AF_INET6, STREAM);
    fails(
        run.set_option(stream, udp, 103, &int(0)),
        errno::ENOPROTOOPT,
    );
    assert_eq!(run.set_option(stream, ipv6, 67, &int(8)), Ok(0));
    assert_eq!(run.option(stream, ipv6, 67), Ok(8));
    run.ends();
}

/// Returns a control message's bytes, padded.
fn control(level: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = words(&[16 + data.len() as u64]);
    bytes.extend(level.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

impl Run {
    /// Sends a byte with control messages.
    fn send_with(&mut self, fd: u64, control: &[u8]) -> Result<u64, Error> {
        self.header(1, control, 0);
        self.call(nr::__NR_sendmsg, &[fd, HEADER, 0])
    }

    /// Receives a datagram; returns its control messages and the flags.
    fn controls(&mut self, fd: u64, room: u64) -> (Vec<u8>, u32) {
        self.header(1, &[], room);
        assert_eq!(self.call(nr::__NR_recvmsg, &[fd, HEADER, 0]), Ok(1));
        let len = self.int(HEADER + 40).try_into().unwrap();
        (self.get(CONTROL, len), self.int(HEADER + 48))
    }
}

#[test]
fn fields_of_packets_come_with_datagrams_to_who_asks_for_them() {
    const MSG_CTRUNC: u32 = 8;
    let [ip, ipv6] = [0_u64, 41];
    let [lo, int] = [1_u32.to_le_bytes(), 1_u32.to_le_bytes()];
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let server = run.socket(AF_INET, DGRAM);
    run.bind(server, &inet([127, 0, 0, 1], 5354)).unwrap();
    let client = run.socket(AF_INET, DGRAM);
    run.connect(client, &inet([127, 0, 0, 1], 5354)).unwrap();
    run.send_with(client, &[]).unwrap();
    assert_eq!(run.controls(server, 100), (Vec::new(), 0), "nobody asked");
    // IP_PKTINFO, IP_RECVTTL, IP_RECVTOS, IP_RECVORIGDSTADDR.
    for name in [8, 12, 13, 20] {
        run.set_option(server, ip, name, &int).unwrap();
    }
    run.set_option(client, ip, 1, &[0x10]).unwrap();
    let told = |hops: u8, class: u8| {
        let home = [127, 0, 0, 1];
        [
            control(0, 8, &[&lo[..], &home, &home].concat()),
            control(0, 2, &[hops, 0, 0, 0]),
            control(0, 1, &[class]),
            control(0, 20, &inet(home, 5354)),
        ]
        .concat()
    };
    run.send_with(client, &[]).unwrap();
    assert_eq!(run.controls(server, 200), (told(64, 0x10), 0));
    // The message's own fields.
    let own = [control(0, 2, &[9, 0, 0, 0]), control(0, 1, &[4])].concat();
    run.send_with(client, &own).unwrap();
    assert_eq!(run.controls(server, 200), (told(9, 4), 0));
    run.send_with(client, &own).unwrap();
    assert_eq!(run.controls(server, 40).1, MSG_CTRUNC);
    for bad in [
        control(0, 2, &[0, 0, 0, 0]),
        control(0, 2, &[9]),
        control(0, 1, &[0, 1, 0, 0]),
        control(41, 52, &[0, 1, 0, 0]),
        control(41, 67, &[0xfe, 0xff, 0xff, 0xff]),
    ] {
        fails(run.send_with(client, &bad), errno::EINVAL);
    }
    let server = run.socket(AF_INET6, DGRAM);
    run.bind(server, &inet6(1, 5355)).unwrap();
    let client = run.socket(AF_INET6, DGRAM);
    run.connect(client, &inet6(1, 5355)).unwrap();
    // IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT, IPV6_RECVTCLASS.
    for name in [49, 51, 66] {
        run.set_option(server, ipv6, name, &int).unwrap();
    }
    run.set_option(client, ipv6, 16, &[3, 0, 0, 0]).unwrap();
    // -1: the socket's own.
    let class = [control(41, 67, &[7, 0, 0, 0]), control(41, 52, &[0xff; 4])].concat();
    run.send_with(client, &class).unwrap();
    let mut home = vec![0; 16];
    home[15] = 1;
    home.extend(lo);
    let told = [
        control(41, 50, &home),
        control(41, 52, &[3, 0, 0, 0]),
        control(41, 67, &[7, 0, 0, 0]),
    ]
    .concat();
    assert_eq!(run.controls(server, 200), (told, 0));
    run.ends();
}

#[test]
fn datagrams_come_with_the_time_of_their_sending() {
    const SO_TIMESTAMP: u64 = 29;
    const SO_TIMESTAMPNS: u64 = 35;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let (a, b) = run.pair(DGRAM);
    let on = 1_u32.to_le_bytes();
    let clock = || crate::platform::Platform::wall_clock(&node.platform).as_nanos();
    for (option, unit) in [(SO_TIMESTAMPNS, 1), (SO_TIMESTAMP, 1000)] {
        run.set_option(b, SOL_SOCKET, option, &on).unwrap();
        assert_eq!(run.option(b, SOL_SOCKET, option), Ok(1));
        let before = clock();
        run.send_with(a, &[]).unwrap();
        let after = clock();
        let (told, flags) = run.controls(b, 100);
        let kind = u32::try_from(option).unwrap();
        assert_eq!((&told[..16], flags), (&control(1, kind, &[0; 16])[..16], 0));
        let word = |at: usize| u64::from_le_bytes(told[at..at + 8].try_into().unwrap());
        let sent = u128::from(word(16)) * 1_000_000_000 / unit + u128::from(word(24));
        assert!((before / unit..=after / unit).contains(&sent), "{sent}");
    }
    assert_eq!(run.option(b, SOL_SOCKET, SO_TIMESTAMPNS), Ok(0));
    run.ends();
}

#[test]
fn long_datagrams_are_cut_into_segments() {
    let udp = 17;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let server = run.socket(AF_INET, DGRAM | NONBLOCK);
    run.bind(server, &inet([127, 0, 0, 1], 5356)).unwrap();
    let client = run.socket(AF_INET, DGRAM);
    run.connect(client, &inet([127, 0, 0, 1], 5356)).unwrap();
    run.set_option(client, udp, 103, &3_u32.to_le_bytes())
        .unwrap();
    assert_eq!(run.write_to(client, b"segments"), Ok(8));
    for piece in [&b"seg"[..], b"men", b"ts"] {
        assert_eq!(run.read_from(server).unwrap(), piece);
    }
    fails(run.receive(server, 1, 0), errno::EAGAIN);
    // UDP_MAX_SEGMENTS.
    fails(run.write_to(client, &[0; 385]), errno::EINVAL);
    assert_eq!(run.write_to(client, &[0; 384]), Ok(384));
    run.ends();
}

#[test]
fn sockets_are_bound_to_the_loopback_interface_and_to_no_other() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let socket = run.socket(AF_INET, STREAM);
    // SO_BINDTODEVICE.
    assert_eq!(run.set_option(socket, SOL_SOCKET, 25, b"lo\0"), Ok(0));
    run.put(LEN, &16_u32.to_le_bytes());
    run.call(nr::__NR_getsockopt, &[socket, SOL_SOCKET, 25, BUF, LEN])
        .unwrap();
    assert_eq!((run.int(LEN), run.get(BUF, 3)), (3, b"lo\0".to_vec()));
    assert_eq!(run.set_option(socket, SOL_SOCKET, 25, b""), Ok(0));
    fails(
        run.set_option(socket, SOL_SOCKET, 25, b"eth0"),
        errno::ENODEV,
    );
    // TCP_CONGESTION.
    assert_eq!(run.set_option(socket, 6, 13, b"reno"), Ok(0));
    run.put(LEN, &16_u32.to_le_bytes());
    run.call(nr::__NR_getsockopt, &[socket, 6, 13, BUF, LEN])
        .unwrap();
    assert_eq!((run.int(LEN), run.get(BUF, 5)), (16, b"reno\0".to_vec()));
    fails(run.set_option(socket, 6, 13, b"none"), errno::ENOENT);
    run.ends();
}

#[test]
fn the_loopback_interface_is_told_and_no_other() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let socket = run.socket(AF_INET, DGRAM);
    let mut ask = |request: u64, name: &[u8], value: &[u8]| {
        run.put(BUF, &[0; 40]);
        run.put(BUF, name);
        run.put(BUF + 16, value);
        let asked = run.call(nr::__NR_ioctl, &[socket, request, BUF]);
        asked.map(|_| (run.get(BUF, 3), run.get(BUF + 16, 8)))
    };
    let lo = b"lo\0".to_vec();
    let told = |value: [u8; 8]| Ok((lo.clone(), value.to_vec()));
    // SIOCGIFINDEX, SIOCGIFNAME, SIOCGIFFLAGS, SIOCGIFADDR, SIOCGIFNETMASK, SIOCGIFMTU.
    assert_eq!(ask(0x8933, b"lo", &[]), told([1, 0, 0, 0, 0, 0, 0, 0]));
    assert_eq!(ask(0x8910, b"", &[1]), told([1, 0, 0, 0, 0, 0, 0, 0]));
    assert_eq!(ask(0x8913, b"lo", &[]), told([0x49, 0, 0, 0, 0, 0, 0, 0]));
    assert_eq!(ask(0x8915, b"lo", &[]), told([2, 0, 0, 0, 127, 0, 0, 1]));
    assert_eq!(ask(0x891b, b"lo", &[]), told([2, 0, 0, 0, 255, 0, 0, 0]));
    assert_eq!(ask(0x8921, b"lo", &[]), told([0, 0, 1, 0, 0, 0, 0, 0]));
    for (request, name, value, error) in [
        (0x8933, &b"eth0"[..], &[][..], errno::ENODEV),
        (0x8910, b"", &[2], errno::ENODEV),
        (0x8914, b"lo", &[], errno::ENOTTY),
    ] {
        fails(ask(request, name, value).map(|_| 0), error);
    }
    // SIOCGIFCONF, also without a list and without room.
    for (room, list, len) in [(100, BUF, 40), (0, 0, 40), (39, BUF, 0)] {
        run.put(DATA, &words(&[room, list]));
        assert_eq!(run.call(nr::__NR_ioctl, &[socket, 0x8912, DATA]), Ok(0));
        assert_eq!(run.int(DATA), len);
    }
    assert_eq!(run.get(BUF, 3), lo);
    run.ends();
}

#[test]
fn udp_lite_has_ports_of_its_own() {
    const UDP_LITE: u64 = 136;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let new = |run: &mut Run, protocol: u64| {
        run.call(nr::__NR_socket, &[AF_INET, DGRAM, protocol])
            .unwrap()
    };
    let (lite, plain) = (new(&mut run, UDP_LITE), new(&mut run, 0));
    run.bind(lite, &inet([127, 0, 0, 1], 7000)).unwrap();
    run.bind(plain, &inet([127, 0, 0, 1], 7000)).unwrap();
    let sender = new(&mut run, UDP_LITE);
    run.connect(sender, &inet([127, 0, 0, 1], 7000)).unwrap();
    run.put(DATA, b"abc");
    assert_eq!(run.call(nr::__NR_write, &[sender, DATA, 3]), Ok(3));
    const MSG_DONTWAIT: u64 = 0x40;
    let receive = |run: &mut Run, from: u64| {
        run.call(
            nr::__NR_recvfrom,
            &[from, DATA + 16, 16, MSG_DONTWAIT, 0, 0],
        )
    };
    assert_eq!(errno_of(receive(&mut run, plain)), Some(errno::EAGAIN));
    assert_eq!(receive(&mut run, lite), Ok(3));
    let other = run.call(nr::__NR_socket, &[AF_INET, DGRAM, 132]);
    assert_eq!(errno_of(other), Some(errno::EPROTONOSUPPORT));
    run.end();
}

#[test]
fn interfaces_are_listed_by_netlink() {
    const AF_NETLINK: u64 = 16;
    const RAW: u64 = 3;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let address = |port: u32| {
        let mut bytes = vec![16, 0, 0, 0];
        bytes.extend(port.to_le_bytes());
        bytes.resize(12, 0);
        bytes
    };
    let other = run.call(nr::__NR_socket, &[AF_NETLINK, RAW, 15]);
    assert_eq!(errno_of(other), Some(errno::EPROTONOSUPPORT));
    let socket = run.socket(AF_NETLINK, RAW | NONBLOCK);
    assert_eq!(run.bind(socket, &address(0)), Ok(0));
    let own = run.name_of(nr::__NR_getsockname, socket).unwrap();
    assert_eq!((own.len(), &own[..4]), (12, &[16, 0, 0, 0][..]));
    let port = u32::from_le_bytes(own[4..8].try_into().unwrap());
    assert_ne!(port, 0);
    fails(run.bind(socket, &address(port - 1)), errno::EINVAL);
    fails(run.receive(socket, 100, 0), errno::EAGAIN);
    // RTM_GETLINK for all.
    run.put(BUF, &words(&[0x301_0012_0000_0014, 7, 0]));
    fails(
        run.with_address(nr::__NR_connect, socket, &address(5)),
        errno::ECONNREFUSED,
    );
    assert_eq!(run.send(socket, 20, 0), Ok(20));
    assert_eq!(run.polled(socket) & 1, 1);
    let len = run.receive(socket, 1000, 0).unwrap();
    let link = run.get(BUF, usize::try_from(len).unwrap());
    assert_eq!(u64::from(link[0]), len);
    assert_eq!((link[4], link[6]), (16, 2), "RTM_NEWLINK of several");
    assert_eq!(link[8..12], [7, 0, 0, 0]);
    assert_eq!(link[12..16], port.to_le_bytes());
    assert!(link.windows(3).any(|name| name == b"lo\0"));
    assert_eq!(run.receive(socket, 1000, 0), Ok(20));
    assert_eq!(run.get(BUF + 4, 1), [3], "NLMSG_DONE");
    fails(run.receive(socket, 100, 0), errno::EAGAIN);
    run.end();
}
