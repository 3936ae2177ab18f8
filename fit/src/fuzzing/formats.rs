//! FIT's formats: the header, the announcement, the hello and its proofs.

use verbs::{DeviceLimits, Gid, Lid, Psn, Qpn};

use super::Input;
use crate::handshake::{HELLO_LEN, Hello, Side, Sides, Way, mtu_bytes, mtu_code};
use crate::membership::announcement::{ANNOUNCEMENT_LEN, Announcement};
use crate::membership::proof::{PROOF_LEN, Purpose, prove};
use crate::wire::{Header, MessageType};
use crate::{Cluster, Config, Key};

/// FIT's header: what is taken for one is written as it was read.
pub fn header(bytes: &[u8]) {
    let mut input = Input(bytes);
    let bytes = input.array();
    let len = input.u32();
    if let Some(header) = Header::decode(&bytes, len) {
        assert_eq!(header.encode(), bytes);
        let in_front = crate::HEADER_LEN
            + 16 * usize::from(header.gathers)
            + 16 * usize::from(header.scatters);
        let behind = match header.message {
            MessageType::Request if header.gathers == 0 => header.bulk as usize,
            _ => 0,
        };
        assert_eq!(in_front + header.body as usize + behind, len as usize);
    }
}

/// An announcement, by somebody without the key (first byte even) or by one who has it.
pub fn announcement(bytes: &[u8]) {
    let cluster = Cluster::new("fuzz", Key::new([7; Key::LEN]));
    let mut input = Input(bytes);
    if input.u8() & 1 == 0 {
        assert!(
            Announcement::decode(input.0, &cluster).is_err(),
            "taken without a proof"
        );
        return;
    }
    let mut bytes: [u8; ANNOUNCEMENT_LEN] = input.array();
    bytes[16..24].copy_from_slice(&cluster.tag);
    let body = ANNOUNCEMENT_LEN - PROOF_LEN;
    let proof = prove(&cluster.key, Purpose::Announce, &[&bytes[..body]]);
    bytes[body..].copy_from_slice(&proof);
    if let Ok(announcement) = Announcement::decode(&bytes, &cluster) {
        let again = announcement.encode(&cluster);
        assert_eq!(Announcement::decode(&again, &cluster), Ok(announcement));
    }
}

/// Private data of a connection request: the hello, and every proof that may stand in it.
pub fn handshake(bytes: &[u8]) {
    let mut input = Input(bytes);
    let config = Config {
        cluster: Cluster::new("fuzz", Key::new([7; Key::LEN])),
        ..Config::default()
    };
    let ours = input.u8() & 1 == 1;
    let code = input.u8();
    if let Some(mtu) = mtu_bytes(code) {
        assert_eq!(mtu_code(mtu), code);
    }
    let mut private = [0; HELLO_LEN + PROOF_LEN + 16];
    let len = input.0.len().min(private.len());
    private[..len].copy_from_slice(input.bytes(len));
    if ours {
        private[24..32].copy_from_slice(&config.cluster.tag);
    }
    let Ok(hello) = Hello::decode(&private[..len], &config) else {
        return;
    };
    assert_eq!(hello.encode(), private[..HELLO_LEN]);
    let limits = DeviceLimits {
        max_reads: 16,
        max_reads_as_responder: 16,
        max_queue_depth: 1 << 14,
        max_sge: 1,
        max_inline: 200,
        max_cq_depth: 1 << 16,
        ports: 1,
        max_domains: 1,
    };
    let target = hello.target(&limits, code);
    assert!(target.serves > 0 && target.reads <= limits.max_reads);
    assert!(target.message_size as usize >= 2 * crate::HEADER_LEN);
    let side = |number: u8| Side {
        gid: Gid([number; 16]),
        qpn: Qpn(number.into()),
        psn: Psn(1),
        comm_id: 2,
        address: Lid(3).into(),
        reads: (16, 16),
        hello,
    };
    let (key, sides) = (
        &config.cluster.key,
        Sides {
            caller: side(1),
            callee: side(2),
            way: Way::default(),
        },
    );
    let proof = &private[HELLO_LEN..];
    assert_eq!(
        crate::handshake::read_refusal(key, &[0; 32], 28, &private),
        None,
        "refused without the key"
    );
    assert!(
        !side(1).check_request(key, (Gid([2; 16]), Way::default()), 1, &private),
        "proven without the key"
    );
    for purpose in [
        Purpose::Accept,
        Purpose::Confirm,
        Purpose::CallerLeaves,
        Purpose::CalleeLeaves,
    ] {
        assert!(!sides.check(key, purpose, proof), "proven without the key");
        assert!(sides.check(key, purpose, &sides.prove(key, purpose)));
    }
}
