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
    // IP_PKTINFO, IP_RECVTOS, UDP_SEGMENT, UDP_GRO: nothing would come of them.
    for (level, name) in [(ip, 8), (ip, 13), (udp, 103), (udp, 104)] {
        let refused = run.set_option(datagrams, level, name, &int(1));
        fails(refused, errno::ENOPROTOOPT);
        assert_eq!(run.set_option(datagrams, level, name, &int(0)), Ok(0));
        assert_eq!(run.option(datagrams, level, name), Ok(0));
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
