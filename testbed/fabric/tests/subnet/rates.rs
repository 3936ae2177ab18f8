//! Links that have a rate, and are full.

use super::*;
use fabric::LinkRate;

const PACKETS: u32 = 100;

/// Sends pages from the first ports to the last one, and returns the time until all are there, and
/// the nanoseconds that they waited at the switch.
fn crowd(rate: Option<LinkRate>, senders: usize) -> (Duration, u32) {
    let (mut fabric, start) = subnet(3);
    fabric.set_rate(rate);
    let page = |from: usize| Packet {
        dlid: Lid(4),
        dqpn: Qpn(77),
        payload: vec![0; 4096],
        ..request_packet(
            from,
            &SaMad::request(Method::GET, Attribute::NODE_RECORD, 0, &[0_u8; 8], 0),
        )
    };
    for _ in 0..PACKETS {
        for from in 0..senders {
            fabric.send(start, PortIndex(from), page(from));
        }
    }
    let mut now = start;
    let mut left = PACKETS as usize * senders;
    while left > 0 {
        while let Some((port, _)) = fabric.next(now) {
            assert_eq!(port, PortIndex(2));
            left -= 1;
        }
        if left > 0 {
            now = fabric.deadline().expect("more packets");
        }
    }
    let of = PortCounters {
        port: 3,
        ..PortCounters::default()
    };
    fabric.set_rate(None);
    let attribute = Attribute::PORT_COUNTERS;
    let counts = switch::counters(&mut fabric, now, Method::GET, attribute, &of);
    (now.since(start), counts.xmit_wait.get())
}

#[test]
fn a_link_that_two_send_to_is_full_and_makes_them_wait() {
    let page = LinkRate::Fdr.time_of(4096 + 8 + 12 + 8 + 4, 4);
    let (none, _) = crowd(None, 2);
    assert_eq!(none, Duration::ZERO);
    let (alone, waited) = crowd(Some(LinkRate::Fdr), 1);
    // The last one follows the others into the switch, and then takes its time out of it.
    assert_eq!((alone, waited), (page * (PACKETS + 1), 0));
    let (both, waited) = crowd(Some(LinkRate::Fdr), 2);
    assert_eq!(both, page * (2 * PACKETS + 1));
    assert!(waited > 0);
    let (slow, _) = crowd(Some(LinkRate::Qdr), 1);
    assert!(slow > alone * 3 / 2);
}
