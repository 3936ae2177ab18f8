//! The handshake of two sides that connect, and the proof that each holds the cluster's key.
//!
//! A hello stands at the head of the private data of CM REQ and REP, a proof behind it; RTU and
//! DREQ carry a proof only:
//!
//! ```text
//!  0         1      2      4                 6        8              12         16            24    32          36         38      40      56      88
//!  | version | role | lane | message version | serves | message size | capacity | incarnation | tag | bulk size | one-ways | cores | nonce | proof |
//! ```
//!
//! Little-endian. REQ's proof speaks of the caller's side, of whom it calls, of the way between
//! them and of the callee's challenge; the others' of both sides and the way: each GID, LID, queue
//! pair, first PSN, communication id, READs and hello, the caller's first. As both hellos hold a
//! fresh nonce, a proof is good for one connection; as each message has a purpose of its own in its
//! proof, none can be sent back to where it came from.
//!
//! The challenge is a number that the callee has drawn: its incarnation, and another each time that
//! it has remembered as many nonces as it can. So a request that was made for another life of the
//! callee, or that it has forgotten, proves nothing. A caller that does not know the challenge
//! proves its request for 0, and is told it by REJ:
//!
//! ```text
//!  0           8       40
//!  | challenge | proof |
//! ```
//!
//! REJ's proof speaks of the request's, the reason and the challenge.

use hal::Duration;
use mutants::Mutant;
use verbs::{Address, DeviceLimits, Gid, Psn, Qpn, RcParameters};

use crate::config::MIN_MESSAGE;
use crate::membership::proof::{NONCE_LEN, Nonce, PROOF_LEN, Proof, Purpose, holds, prove};
use crate::{Config, Incarnation, Key, Member, PeerName, Role, Target, VERSION};

/// The service that FIT nodes call each other by: an OS-administered id (IBA 1.3, annex A3: first
/// byte 2), `TESS`, 1.
pub(crate) const SERVICE_ID: u64 = 0x0200_5445_5353_0001;

/// The lanes of page paths: connections that only carry pages, beside those of which there are as
/// many as cores. Each such path of the caller's has a number of its own from here on.
pub(crate) const PAGE_LANES: u16 = 1 << 15;

/// The most cores that a node may say it has.
const MAX_CORES: u16 = 64;

/// Bytes of a [`Hello`].
pub(crate) const HELLO_LEN: usize = 56;
const NONCE: usize = HELLO_LEN - NONCE_LEN;
const SIDE_LEN: usize = 16 + 3 * 4 + 4 + HELLO_LEN;
const REFUSAL_LEN: usize = 8 + PROOF_LEN;

/// A side's introduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) role: Role,
    /// Lane: the number of this connection among those between the two nodes; from [`PAGE_LANES`]
    /// on, a page path of the caller's.
    pub(crate) lane: u16,
    /// Cores of the node that have queues.
    pub(crate) cores: u16,
    pub(crate) message_version: u16,
    pub(crate) serves: u16,
    pub(crate) message_size: u32,
    pub(crate) capacity: u32,
    pub(crate) incarnation: Incarnation,
    pub(crate) tag: [u8; 8],
    pub(crate) bulk_size: u32,
    pub(crate) one_ways: u16,
    pub(crate) nonce: Nonce,
}

/// Reasons to refuse a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadHello {
    Version(u8),
    MessageVersion(u16),
    Role(u8),
    Depths,
    /// It is of another cluster.
    Cluster,
}

impl Hello {
    pub(crate) fn of(config: &Config, me: &Member, lane: u16, nonce: Nonce) -> Self {
        Self {
            role: me.name.role,
            lane,
            cores: config.cores,
            message_version: config.message_version,
            serves: config.serves,
            message_size: config.message_size,
            capacity: me.capacity,
            incarnation: me.incarnation,
            tag: config.cluster.tag,
            bulk_size: config.bulk_size,
            one_ways: config.one_ways,
            nonce,
        }
    }

    pub(crate) fn encode(&self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        bytes[0] = VERSION;
        bytes[1] = self.role.number();
        bytes[2..4].copy_from_slice(&self.lane.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.message_version.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.serves.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.message_size.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.capacity.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.incarnation.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.tag);
        bytes[32..36].copy_from_slice(&self.bulk_size.to_le_bytes());
        bytes[36..38].copy_from_slice(&self.one_ways.to_le_bytes());
        bytes[38..40].copy_from_slice(&self.cores.to_le_bytes());
        bytes[NONCE..].copy_from_slice(&self.nonce);
        bytes
    }

    /// Reads private data, and checks that this side can talk to the peer. Its proof is not looked
    /// at.
    pub(crate) fn decode(bytes: &[u8], config: &Config) -> Result<Self, BadHello> {
        let version = bytes.first().copied().unwrap_or(0);
        let Some(bytes) = bytes
            .first_chunk::<HELLO_LEN>()
            .filter(|_| version == VERSION)
        else {
            return Err(BadHello::Version(version));
        };
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let double = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
        if bytes[24..32] != config.cluster.tag {
            return Err(BadHello::Cluster);
        }
        if word(4) != config.message_version {
            return Err(BadHello::MessageVersion(word(4)));
        }
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&bytes[NONCE..]);
        let hello = Self {
            role: Role::from_number(bytes[1]).ok_or(BadHello::Role(bytes[1]))?,
            lane: word(2),
            cores: word(38),
            message_version: word(4),
            serves: word(6),
            message_size: double(8),
            capacity: double(12),
            incarnation: Incarnation(u64::from(double(16)) | u64::from(double(20)) << 32),
            tag: config.cluster.tag,
            bulk_size: double(32),
            one_ways: word(36),
            nonce,
        };
        let usable = hello.serves > 0
            && hello.message_size as usize >= MIN_MESSAGE
            && (1..=MAX_CORES).contains(&hello.cores)
            && (hello.lane >= PAGE_LANES || hello.lane < hello.lanes(config));
        usable.then_some(hello).ok_or(BadHello::Depths)
    }

    /// Returns the peer's limits for the connection, given the READs that it answers at once.
    pub(crate) fn target(&self, limits: &DeviceLimits, reads_answered: u8) -> Target {
        Target {
            serves: self.serves,
            message_size: self.message_size,
            bulk_size: self.bulk_size,
            one_ways: self.one_ways,
            reads: limits.max_reads.min(reads_answered),
        }
    }

    /// Connections that there are between the two nodes: as many as the one with more cores has.
    /// Each joins core `lane % cores` of either.
    pub(crate) fn lanes(&self, config: &Config) -> u16 {
        self.cores.max(config.cores)
    }

    /// The node that says so, whose port has this GID.
    pub(crate) fn member(&self, gid: Gid) -> Member {
        Member {
            name: PeerName {
                role: self.role,
                gid,
            },
            incarnation: self.incarnation,
            capacity: self.capacity,
        }
    }
}

/// One side of a connection, as both know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Side {
    pub(crate) gid: Gid,
    pub(crate) qpn: Qpn,
    pub(crate) psn: Psn,
    pub(crate) comm_id: u32,
    pub(crate) address: Address,
    /// READs that it answers at once, and that it wants outstanding.
    pub(crate) reads: (u8, u8),
    pub(crate) hello: Hello,
}

/// The way between two sides, as the caller chose it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Way {
    /// The callee's port.
    pub(crate) callee: Address,
    /// The MTU's code.
    pub(crate) mtu: u8,
    pub(crate) sl: u8,
}

impl Way {
    fn encode(self) -> [u8; 4] {
        let [low, high] = self.callee.lid().0.to_le_bytes();
        [low, high, self.mtu, self.sl]
    }
}

impl Side {
    fn encode(&self) -> [u8; SIDE_LEN] {
        let mut bytes = [0; SIDE_LEN];
        bytes[..16].copy_from_slice(&self.gid.0);
        bytes[16..20].copy_from_slice(&self.qpn.0.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.psn.0.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.comm_id.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.address.lid().0.to_le_bytes());
        (bytes[30], bytes[31]) = self.reads;
        bytes[32..].copy_from_slice(&self.hello.encode());
        bytes
    }

    /// The proof that goes with this side's request to the port `callee`, by this way.
    pub(crate) fn request(&self, key: &Key, (callee, way): (Gid, Way), challenge: u64) -> Proof {
        let parts: [&[u8]; 4] = [
            &self.encode(),
            &callee.0,
            &way.encode(),
            &challenge.to_le_bytes(),
        ];
        prove(key, Purpose::Request, &parts)
    }

    /// Returns whether a request's proof holds.
    pub(crate) fn check_request(
        &self,
        key: &Key,
        (callee, way): (Gid, Way),
        challenge: u64,
        private: &[u8],
    ) -> bool {
        let parts: [&[u8]; 4] = [
            &self.encode(),
            &callee.0,
            &way.encode(),
            &challenge.to_le_bytes(),
        ];
        holds(key, Purpose::Request, &parts, behind_hello(private))
    }
}

/// Private data of the refusal, for this reason, of a request with this private data.
pub(crate) fn refusal<const N: usize>(
    key: &Key,
    request: &[u8],
    reason: u16,
    challenge: u64,
) -> [u8; N] {
    let challenge = challenge.to_le_bytes();
    let parts: [&[u8]; 3] = [behind_hello(request), &reason.to_le_bytes(), &challenge];
    let mut private = [0; N];
    private[..8].copy_from_slice(&challenge);
    private[8..REFUSAL_LEN].copy_from_slice(&prove(key, Purpose::Refuse, &parts));
    private
}

/// The callee's challenge, if this is the private data of its refusal of the request with this
/// proof.
pub(crate) fn read_refusal(key: &Key, request: &Proof, reason: u16, private: &[u8]) -> Option<u64> {
    let (challenge, rest) = private.split_first_chunk::<8>()?;
    let parts: [&[u8]; 3] = [request, &reason.to_le_bytes(), challenge];
    (holds(key, Purpose::Refuse, &parts, rest.get(..PROOF_LEN)?)
        || Mutant::RefusalProofIgnored.on())
    .then_some(u64::from_le_bytes(*challenge))
}

/// Both sides of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sides {
    pub(crate) caller: Side,
    pub(crate) callee: Side,
    pub(crate) way: Way,
}

impl Sides {
    pub(crate) fn prove(&self, key: &Key, purpose: Purpose) -> Proof {
        let parts: [&[u8]; 3] = [
            &self.caller.encode(),
            &self.callee.encode(),
            &self.way.encode(),
        ];
        prove(key, purpose, &parts)
    }

    /// Returns whether the proof at the head of `private` holds.
    pub(crate) fn check(&self, key: &Key, purpose: Purpose, private: &[u8]) -> bool {
        let parts: [&[u8]; 3] = [
            &self.caller.encode(),
            &self.callee.encode(),
            &self.way.encode(),
        ];
        let proof = private.get(..PROOF_LEN).unwrap_or_default();
        holds(key, purpose, &parts, proof)
    }
}

/// The proof that follows a hello.
pub(crate) fn behind_hello(private: &[u8]) -> &[u8] {
    private
        .get(HELLO_LEN..HELLO_LEN + PROOF_LEN)
        .unwrap_or_default()
}

/// Private data of a hello and a proof, the rest zero.
pub(crate) fn introduction<const N: usize>(hello: &Hello, proof: &Proof) -> [u8; N] {
    let mut private = [0; N];
    private[..HELLO_LEN].copy_from_slice(&hello.encode());
    private[HELLO_LEN..HELLO_LEN + PROOF_LEN].copy_from_slice(proof);
    private
}

/// Private data of a proof alone.
pub(crate) fn proof_only<const N: usize>(proof: &Proof) -> [u8; N] {
    let mut private = [0; N];
    private[..PROOF_LEN].copy_from_slice(proof);
    private
}

/// Returns the timeouts and retries of a connection. The transport gives up after some 8 × 67 ms to
/// 4 times that (vendors stretch the timeout), before any of FIT's own deadlines.
pub(crate) fn persistence(reads_as_requester: u8, reads_as_responder: u8) -> RcParameters {
    RcParameters {
        ack_timeout: 14,
        retry_count: 7,
        rnr_retry: 6,
        min_rnr_timer: 12,
        reads_as_requester,
        reads_as_responder,
    }
}

/// The wait before the next try: doubling from 20 ms to one second.
pub(crate) fn back_off(tries: u32) -> Duration {
    Duration::from_millis((20 << tries.min(6)).min(1000))
}

/// The bytes of an MTU code, 1 (256) to 5 (4096); nothing for another.
pub(crate) fn mtu_bytes(code: u8) -> Option<u16> {
    (1..=5).contains(&code).then(|| 128 << code)
}

/// The code of an MTU, rounded down to one that has a code.
pub(crate) fn mtu_code(bytes: u16) -> u8 {
    (1..=5)
        .rev()
        .find(|&code| 128_u16 << code <= bytes)
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Cluster;

    fn hello(lane: u16, nonce: u8) -> Hello {
        let me = Member {
            name: PeerName {
                role: Role::Storage,
                gid: Gid::default(),
            },
            incarnation: Incarnation(0x1122_3344_5566_7788),
            capacity: 0x0102_0304,
        };
        Hello::of(&Config::default(), &me, lane, [nonce; NONCE_LEN])
    }

    fn sides(a: u8, b: u8) -> Sides {
        let side = |number: u8| Side {
            gid: Gid([number; 16]),
            qpn: Qpn(number.into()),
            psn: Psn(7),
            comm_id: 3,
            address: verbs::Lid(number.into()).into(),
            reads: (16, 16),
            hello: hello(0, number),
        };
        Sides {
            caller: side(a),
            callee: side(b),
            way: WAY,
        }
    }

    const WAY: Way = Way {
        callee: Address::of_lid(verbs::Lid(9)),
        mtu: 4,
        sl: 0,
    };
    const TO: (Gid, Way) = (Gid([2; 16]), WAY);

    proptest! {
        #[test]
        fn a_hello_round_trips(lane in 0u16..5, serves in 1u16.., message_size in 280u32.., bulk_size: u32, one_ways: u16, nonce: [u8; 16]) {
            let hello = Hello { serves, message_size, bulk_size, one_ways, cores: 5, nonce, ..hello(lane, 0) };
            let private: [u8; 92] = introduction(&hello, &[9; PROOF_LEN]);
            prop_assert_eq!(Hello::decode(&private, &Config::default()), Ok(hello));
            prop_assert_eq!(behind_hello(&private), [9; PROOF_LEN]);
        }

        #[test]
        fn arbitrary_private_data_never_panics_and_proves_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Hello::decode(&bytes, &Config::default());
            let key = Key::new([1; 32]);
            prop_assert!(!sides(1, 2).caller.check_request(&key, TO, 5, &bytes));
            prop_assert_eq!(read_refusal(&key, &[1; PROOF_LEN], 28, &bytes), None);
            prop_assert!(!sides(1, 2).check(&key, Purpose::Accept, &bytes));
        }

        #[test]
        fn a_changed_request_is_noticed(bit in 0..(HELLO_LEN + PROOF_LEN) * 8) {
            let (key, config) = (Key::new([1; 32]), Config::default());
            let caller = sides(1, 2).caller;
            let mut private: [u8; 92] = introduction(&caller.hello, &caller.request(&key, TO, 5));
            prop_assert!(caller.check_request(&key, TO, 5, &private));
            private[bit / 8] ^= 1 << (bit % 8);
            let believed = Hello::decode(&private, &config).is_ok_and(|hello| {
                Side { hello, ..caller }.check_request(&key, TO, 5, &private)
            });
            prop_assert!(!believed);
        }
    }

    #[test]
    fn other_versions_clusters_and_depths_of_zero_are_refused() {
        let config = Config::default();
        let good = hello(0, 0).encode();
        let with = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            Hello::decode(&bytes, &config)
        };
        assert_eq!(with(0, 9), Err(BadHello::Version(9)));
        assert_eq!(with(4, 1), Err(BadHello::MessageVersion(1)));
        assert_eq!(with(1, 7), Err(BadHello::Role(7)));
        assert_eq!(with(6, 0), Err(BadHello::Depths));
        // A lane that there is not, no cores, and more than anybody has.
        for (at, value) in [(2, 1), (38, 0), (38, 65)] {
            assert_eq!(with(at, value), Err(BadHello::Depths));
        }
        let other = Config {
            cluster: Cluster::new("another", Key::new([0; 32])),
            ..config
        };
        assert_eq!(Hello::decode(&good, &other), Err(BadHello::Cluster));
    }

    #[test]
    fn a_proof_is_good_for_its_connection_direction_and_step_only() {
        let key = Key::new([1; 32]);
        let proof = sides(1, 2).prove(&key, Purpose::Accept);
        assert!(sides(1, 2).check(&key, Purpose::Accept, &proof));
        assert!(
            !sides(1, 2).check(&key, Purpose::Confirm, &proof),
            "sent back as RTU"
        );
        assert!(
            !sides(2, 1).check(&key, Purpose::Accept, &proof),
            "sent back as REP"
        );
        assert!(
            !sides(1, 3).check(&key, Purpose::Accept, &proof),
            "from elsewhere"
        );
        let mut again = sides(1, 2);
        again.caller.hello.nonce = [5; NONCE_LEN];
        assert!(!again.check(&key, Purpose::Accept, &proof), "played again");
        assert!(!sides(1, 2).check(&Key::new([2; 32]), Purpose::Accept, &proof));
        let request = sides(1, 2).caller.request(&key, TO, 5);
        let private: [u8; 92] = introduction(&sides(1, 2).caller.hello, &request);
        let caller = sides(1, 2).caller;
        assert!(
            !caller.check_request(&key, (Gid([3; 16]), WAY), 5, &private),
            "sent on"
        );
        assert!(
            !caller.check_request(&key, TO, 6, &private),
            "for another life"
        );
        for way in [
            Way {
                callee: verbs::Lid(8).into(),
                ..WAY
            },
            Way { mtu: 5, ..WAY },
            Way { sl: 1, ..WAY },
        ] {
            assert!(
                !caller.check_request(&key, (TO.0, way), 5, &private),
                "{way:?}"
            );
        }
        let moved = Side {
            address: verbs::Lid(7).into(),
            ..caller
        };
        let greedy = Side {
            reads: (16, 4),
            ..caller
        };
        for changed in [moved, greedy] {
            assert!(!changed.check_request(&key, TO, 5, &private), "{changed:?}");
        }
    }

    #[test]
    fn a_refusal_is_good_for_its_request_and_reason_only() {
        let key = Key::new([1; 32]);
        let private: [u8; 92] = introduction(&sides(1, 2).caller.hello, &[7; PROOF_LEN]);
        let told: [u8; 148] = refusal(&key, &private, 28, 99);
        assert_eq!(read_refusal(&key, &[7; PROOF_LEN], 28, &told), Some(99));
        assert_eq!(read_refusal(&key, &[8; PROOF_LEN], 28, &told), None);
        assert_eq!(read_refusal(&key, &[7; PROOF_LEN], 10, &told), None);
        assert_eq!(
            read_refusal(&Key::new([2; 32]), &[7; PROOF_LEN], 28, &told),
            None
        );
        let mut other = told;
        other[0] ^= 1;
        assert_eq!(read_refusal(&key, &[7; PROOF_LEN], 28, &other), None);
    }

    #[test]
    fn mtu_codes_round_trip() {
        for (code, bytes) in [(1, 256), (2, 512), (3, 1024), (4, 2048), (5, 4096)] {
            assert_eq!(mtu_bytes(code), Some(bytes));
            assert_eq!(mtu_code(bytes), code);
        }
        assert_eq!(
            (mtu_bytes(0), mtu_bytes(6), mtu_code(1500)),
            (None, None, 3)
        );
    }

    #[test]
    fn back_off_ends_at_a_second() {
        assert_eq!(back_off(0), Duration::from_millis(20));
        assert_eq!(back_off(40), Duration::from_secs(1));
    }
}
