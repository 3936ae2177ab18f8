//! Directed routes at their end: what a node does to a request that has arrived and to its answer
//! (InfiniBand Architecture 1.3, 14.2.2.2; Linux `core/smi.c`).

use mad::Attribute;
use mad::smp::{PERMISSIVE_LID, Smp};

/// A request on QP0 as it is when it has reached its node (InfiniBand Architecture 1.3, 14.2.2.2),
/// or nothing if it is no request or has gone astray.
pub(crate) fn arrived(mut smp: Smp, port: u8) -> Option<Smp> {
    if smp.header.method.is_response() || smp.header.attribute.get() == Attribute::SM_INFO.0 {
        return None;
    }
    if !smp.is_directed() {
        return Some(smp);
    }
    let (pointer, count) = (smp.hop_pointer(), smp.hop_count());
    if smp.is_returning() || pointer != count || smp.dr_dlid.get() != PERMISSIVE_LID {
        return None;
    }
    if count > 0 {
        *smp.return_path.get_mut(usize::from(pointer))? = port;
    }
    smp.set_hops(pointer + 1, count);
    Some(smp)
}

/// An answer as it is when it leaves its node, or nothing if there is none to send.
///
/// That it is on its way back is not the agent's to say (Linux `hw/mlx4/mad.c`, `ib_process_mad`:
/// "set return bit in status").
pub(crate) fn leaving(mut smp: Smp, port: u8) -> Option<Smp> {
    if !smp.header.method.is_response() {
        return None;
    }
    if !smp.is_directed() {
        return Some(smp);
    }
    let (pointer, count) = (smp.hop_pointer(), smp.hop_count());
    if pointer != count + 1 {
        return None;
    }
    if count > 0 && *smp.return_path.get(usize::from(count))? != port {
        return None;
    }
    smp.set_returning(true);
    smp.set_hops(count, count);
    Some(smp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mad::{MAD_LEN, Method, Status as MadStatus};
    use proptest::prelude::*;

    fn directed(path: &[u8]) -> Smp {
        Smp::request(Method::GET, Attribute::NODE_INFO, 0, 7)
            .directed(path)
            .unwrap()
    }

    #[test]
    fn a_directed_request_comes_back_the_way_it_came() {
        // Linux core/smi.c: at the end of the path the return path gets the port and the pointer
        // goes one beyond; the answer sets out with the pointer back at the count.
        let mut request = directed(&[1, 3]);
        request.set_hops(2, 2);
        let at_node = arrived(request, 1).unwrap();
        assert_eq!((at_node.hop_pointer(), at_node.return_path[2]), (3, 1));
        // The agent's answer: without the direction.
        let mut answer = at_node.into_response(MadStatus::OK);
        answer.set_returning(false);
        let answer = leaving(answer, 1).unwrap();
        assert_eq!((answer.hop_pointer(), answer.hop_count()), (2, 2));
        assert!(answer.is_returning());
    }

    #[test]
    fn answers_and_strays_are_dropped() {
        let mut passing = directed(&[1, 3]);
        passing.set_hops(1, 2);
        assert!(arrived(passing, 1).is_none());
        assert!(arrived(directed(&[]).into_response(MadStatus::OK), 1).is_none());
        assert!(leaving(directed(&[]), 1).is_none());
    }

    proptest! {
        #[test]
        fn what_arrives_is_answered_the_way_it_came(
            mut bytes in proptest::collection::vec(any::<u8>(), MAD_LEN),
            (pointer, count) in (0_u8..66, 0_u8..66),
            there: bool,
            port: u8,
        ) {
            // A directed Get, most often at the end of its path and going outward.
            bytes[..4].copy_from_slice(&[1, 0x81, 1, 1]);
            bytes[4] &= 0x7f;
            (bytes[6], bytes[7]) = (if there { count } else { pointer }, count);
            if there {
                bytes[32..36].fill(0xff);
            }
            let Ok(smp) = Smp::parse(&bytes) else {
                prop_assert!(count > 63 || bytes[6] > count + 1);
                return Ok(());
            };
            let Some(request) = arrived(smp, port) else {
                prop_assert!(!there || smp.header.attribute.get() == Attribute::SM_INFO.0);
                return Ok(());
            };
            prop_assert_eq!(request.hop_pointer(), count + 1);
            let answer = leaving(request.into_response(MadStatus::OK), port);
            prop_assert_eq!(answer.map(|answer| answer.hop_pointer()), Some(count));
        }
    }
}
