//! Communication management: making and ending reliable connections over QP1 (IBA 1.3, 12.6;
//! offsets as Linux `include/rdma/ibta_vol1_c12.h` has them).
//!
//! A caller sends REQ, the callee answers REP (or REJ), the caller confirms by RTU; either side
//! ends it by DREQ, answered by DREP. The formats mix bytes with 20- and 24-bit fields, so they are
//! read and written by offset into the 232 bytes behind the header. Fields that FIT has no use for
//! (EE contexts, alternate paths) are sent as zero and skipped when read.

use verbs::{Gid, Guid, Lid, PKey, Psn, Qpn};
use zerocopy::IntoBytes;

use crate::number::open_enum;
use crate::{Attribute, Error, Header, MAD_LEN, Mad, Method, MgmtClass};

const HEADER: usize = 24;

open_enum! {
    /// Message of the class (Linux `CM_REQ_ATTR_ID` and on).
    pub struct CmAttribute(u16) {
        /// Asks for a connection.
        REQ = 0x0010,
        /// Asks for more time.
        MRA = 0x0011,
        /// Refuses.
        REJ = 0x0012,
        /// Accepts.
        REP = 0x0013,
        /// Confirms.
        RTU = 0x0014,
        /// Asks to disconnect.
        DREQ = 0x0015,
        /// Has disconnected.
        DREP = 0x0016,
    }
}

open_enum! {
    /// Reason for a refused connection (IBA 1.3, 12.6.7.2; Linux `enum ib_cm_rej_reason`).
    pub struct RejectReason(u16) {
        /// No queue pair left.
        NO_QP = 1,
        /// Something else is exhausted.
        NO_RESOURCES = 3,
        /// No answer in time.
        TIMEOUT = 4,
        /// The communication id is not known.
        INVALID_COMM_ID = 6,
        /// The service is not served.
        INVALID_SERVICE_ID = 8,
        /// An old connection stands in the way.
        STALE_CONNECTION = 10,
        /// The service itself refuses.
        CONSUMER_DEFINED = 28,
    }
}

/// Asks for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Req {
    /// The caller's name for the connection.
    pub local_comm_id: u32,
    /// Service that is called.
    pub service_id: u64,
    /// The caller's HCA.
    pub ca_guid: Guid,
    /// The caller's queue pair.
    pub qpn: Qpn,
    /// READs the caller answers at once.
    pub responder_resources: u8,
    /// READs the caller wants outstanding.
    pub initiator_depth: u8,
    /// The PSN that the callee shall begin with (12.7.31: that the remote node begins with; Linux
    /// `cm.c` takes it for the callee's send queue).
    pub starting_psn: Psn,
    /// Exponent of the time within which the callee answers: 4.096 µs × 2^n (5 bits).
    pub remote_response_timeout: u8,
    /// The same for the caller (5 bits).
    pub local_response_timeout: u8,
    /// Retries after an ACK timeout that the callee's queue pair shall do (3 bits).
    pub retry_count: u8,
    /// Retries after receiver-not-ready (3 bits).
    pub rnr_retry: u8,
    /// Times the message may be repeated (4 bits).
    pub max_cm_retries: u8,
    /// Partition.
    pub pkey: PKey,
    /// Path MTU code, 1 (256) to 5 (4096).
    pub mtu: u8,
    /// The caller's port.
    pub local_lid: Lid,
    /// The callee's port.
    pub remote_lid: Lid,
    /// The caller's GID.
    pub local_gid: Gid,
    /// The callee's GID.
    pub remote_gid: Gid,
    /// Path rate code (6 bits).
    pub rate: u8,
    /// Service level (4 bits).
    pub sl: u8,
    /// ACK timeout exponent for the caller's end of the path (5 bits).
    pub ack_timeout: u8,
    /// For the service.
    pub private: [u8; 92],
}

/// Accepts a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rep {
    /// The callee's name for the connection.
    pub local_comm_id: u32,
    /// The caller's name.
    pub remote_comm_id: u32,
    /// The callee's queue pair.
    pub qpn: Qpn,
    /// The PSN that the caller shall begin with.
    pub starting_psn: Psn,
    /// READs the callee answers at once.
    pub responder_resources: u8,
    /// READs the callee wants outstanding.
    pub initiator_depth: u8,
    /// Retries after receiver-not-ready (3 bits).
    pub rnr_retry: u8,
    /// The callee's HCA.
    pub ca_guid: Guid,
    /// For the service.
    pub private: [u8; 196],
}

/// Refuses a REQ or REP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rej {
    /// The refuser's name for the connection; 0 if it gave none.
    pub local_comm_id: u32,
    /// The other's name.
    pub remote_comm_id: u32,
    /// The refused message: 0 a REQ, 1 a REP, 2 something else (2 bits).
    pub rejected: u8,
    /// Reason for the refusal.
    pub reason: RejectReason,
    /// For the service.
    pub private: [u8; 148],
}

/// Confirms a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rtu {
    /// The connection.
    pub pair: Pair,
    /// For the service.
    pub private: [u8; 224],
}

/// The two names of a connection, all that DREP says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// The sender's name.
    pub local_comm_id: u32,
    /// The receiver's name.
    pub remote_comm_id: u32,
}

/// Asks to disconnect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dreq {
    /// The connection.
    pub pair: Pair,
    /// The receiver's queue pair.
    pub remote_qpn: Qpn,
    /// For the service.
    pub private: [u8; 220],
}

/// A message of the class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CmMessage {
    /// Asks for a connection.
    Req(Req),
    /// Refuses.
    Rej(Rej),
    /// Accepts.
    Rep(Rep),
    /// Confirms.
    Rtu(Rtu),
    /// Asks to disconnect.
    Dreq(Dreq),
    /// Has disconnected.
    Drep(Pair),
    /// Another message of the class, or one that is not known.
    Other(CmAttribute),
}

/// Reads and writes big-endian fields of the 232 bytes behind the header.
struct Fields<'a>(&'a mut [u8]);

struct View<'a>(&'a [u8]);

impl View<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0[at..at + N]
            .try_into()
            .expect("a field inside the datagram")
    }
    fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }
    fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.bytes(at))
    }
    fn u24(&self, at: usize) -> u32 {
        u32::from_be_bytes([0, self.0[at], self.0[at + 1], self.0[at + 2]])
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bytes(at))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.bytes(at))
    }
    fn pair(&self) -> Pair {
        Pair {
            local_comm_id: self.u32(0),
            remote_comm_id: self.u32(4),
        }
    }
}

impl Fields<'_> {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
    fn u8(&mut self, at: usize, value: u8) {
        self.0[at] = value;
    }
    fn u16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_be_bytes());
    }
    fn u24(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_be_bytes()[1..]);
    }
    fn u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_be_bytes());
    }
    fn u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_be_bytes());
    }
    fn pair(&mut self, pair: Pair) {
        self.u32(0, pair.local_comm_id);
        self.u32(4, pair.remote_comm_id);
    }
}

impl Req {
    fn put(&self, f: &mut Fields<'_>) {
        f.u32(0, self.local_comm_id);
        f.u64(8, self.service_id);
        f.u64(16, self.ca_guid.0);
        f.u24(32, self.qpn.0);
        f.u8(35, self.responder_resources);
        f.u8(39, self.initiator_depth);
        // Service type 0 is RC; the lowest bit asks for end-to-end flow control.
        f.u8(43, (self.remote_response_timeout & 0x1f) << 3 | 1);
        f.u24(44, self.starting_psn.0);
        f.u8(
            47,
            (self.local_response_timeout & 0x1f) << 3 | self.retry_count & 7,
        );
        f.u16(48, self.pkey.0);
        f.u8(50, self.mtu << 4 | self.rnr_retry & 7);
        f.u8(51, self.max_cm_retries << 4);
        f.u16(52, self.local_lid.0);
        f.u16(54, self.remote_lid.0);
        f.put(56, &self.local_gid.0);
        f.put(72, &self.remote_gid.0);
        f.u8(91, self.rate & 0x3f);
        f.u8(93, 1); // hop limit
        f.u8(94, self.sl << 4 | 1 << 3); // the path stays in the subnet
        f.u8(95, (self.ack_timeout & 0x1f) << 3);
        f.put(140, &self.private);
    }

    fn take(v: &View<'_>) -> Self {
        Self {
            local_comm_id: v.u32(0),
            service_id: v.u64(8),
            ca_guid: Guid(v.u64(16)),
            qpn: Qpn(v.u24(32)),
            responder_resources: v.u8(35),
            initiator_depth: v.u8(39),
            starting_psn: Psn(v.u24(44)),
            remote_response_timeout: v.u8(43) >> 3,
            local_response_timeout: v.u8(47) >> 3,
            retry_count: v.u8(47) & 7,
            rnr_retry: v.u8(50) & 7,
            max_cm_retries: v.u8(51) >> 4,
            pkey: PKey(v.u16(48)),
            mtu: v.u8(50) >> 4,
            local_lid: Lid(v.u16(52)),
            remote_lid: Lid(v.u16(54)),
            local_gid: Gid(v.bytes(56)),
            remote_gid: Gid(v.bytes(72)),
            rate: v.u8(91) & 0x3f,
            sl: v.u8(94) >> 4,
            ack_timeout: v.u8(95) >> 3,
            private: v.bytes(140),
        }
    }
}

impl Rep {
    fn put(&self, f: &mut Fields<'_>) {
        f.pair(Pair {
            local_comm_id: self.local_comm_id,
            remote_comm_id: self.remote_comm_id,
        });
        f.u24(12, self.qpn.0);
        f.u24(20, self.starting_psn.0);
        f.u8(24, self.responder_resources);
        f.u8(25, self.initiator_depth);
        f.u8(26, 1); // end-to-end flow control
        f.u8(27, self.rnr_retry << 5);
        f.u64(28, self.ca_guid.0);
        f.put(36, &self.private);
    }

    fn take(v: &View<'_>) -> Self {
        Self {
            local_comm_id: v.u32(0),
            remote_comm_id: v.u32(4),
            qpn: Qpn(v.u24(12)),
            starting_psn: Psn(v.u24(20)),
            responder_resources: v.u8(24),
            initiator_depth: v.u8(25),
            rnr_retry: v.u8(27) >> 5,
            ca_guid: Guid(v.u64(28)),
            private: v.bytes(36),
        }
    }
}

impl CmMessage {
    /// Returns the message's attribute.
    #[must_use]
    pub fn attribute(&self) -> CmAttribute {
        match self {
            Self::Req(_) => CmAttribute::REQ,
            Self::Rej(_) => CmAttribute::REJ,
            Self::Rep(_) => CmAttribute::REP,
            Self::Rtu(_) => CmAttribute::RTU,
            Self::Dreq(_) => CmAttribute::DREQ,
            Self::Drep(_) => CmAttribute::DREP,
            Self::Other(attribute) => *attribute,
        }
    }

    /// The datagram. Fields wider than their place on the wire lose their upper bits.
    #[must_use]
    pub fn to_mad(&self, transaction: u64) -> Mad {
        let attribute = Attribute(self.attribute().0);
        let header = Header::request(MgmtClass::CM, Method::SEND, attribute, 0, transaction);
        let mut mad = [0; MAD_LEN];
        mad[..HEADER].copy_from_slice(header.as_bytes());
        let mut fields = Fields(&mut mad[HEADER..]);
        match self {
            Self::Req(req) => req.put(&mut fields),
            Self::Rep(rep) => rep.put(&mut fields),
            Self::Rej(rej) => {
                fields.pair(Pair {
                    local_comm_id: rej.local_comm_id,
                    remote_comm_id: rej.remote_comm_id,
                });
                fields.u8(8, rej.rejected << 6);
                fields.u16(10, rej.reason.0);
                fields.put(84, &rej.private);
            }
            Self::Rtu(rtu) => {
                fields.pair(rtu.pair);
                fields.put(8, &rtu.private);
            }
            Self::Drep(pair) => fields.pair(*pair),
            Self::Dreq(dreq) => {
                fields.pair(dreq.pair);
                fields.u24(8, dreq.remote_qpn.0);
                fields.put(12, &dreq.private);
            }
            Self::Other(_) => {}
        }
        mad
    }

    /// Takes a datagram of the class apart, with its transaction.
    ///
    /// # Errors
    ///
    /// When it is of another class or version.
    pub fn parse(mad: &Mad) -> Result<(u64, Self), Error> {
        let header = Header::parse(mad)?;
        if header.class != MgmtClass::CM {
            return Err(Error::Class(header.class));
        }
        if header.class_version != 2 {
            return Err(Error::ClassVersion(header.class_version));
        }
        let view = View(&mad[HEADER..]);
        let message = match CmAttribute(header.attribute.get()) {
            CmAttribute::REQ => Self::Req(Req::take(&view)),
            CmAttribute::REP => Self::Rep(Rep::take(&view)),
            CmAttribute::REJ => Self::Rej(Rej {
                local_comm_id: view.u32(0),
                remote_comm_id: view.u32(4),
                rejected: view.u8(8) >> 6,
                reason: RejectReason(view.u16(10)),
                private: view.bytes(84),
            }),
            CmAttribute::RTU => Self::Rtu(Rtu {
                pair: view.pair(),
                private: view.bytes(8),
            }),
            CmAttribute::DREQ => Self::Dreq(Dreq {
                pair: view.pair(),
                remote_qpn: Qpn(view.u24(8)),
                private: view.bytes(12),
            }),
            CmAttribute::DREP => Self::Drep(view.pair()),
            other => Self::Other(other),
        };
        Ok((header.transaction.get(), message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn req() -> Req {
        Req {
            local_comm_id: 0x0102_0304,
            service_id: 0x1011_1213_1415_1617,
            ca_guid: Guid(0x2021_2223_2425_2627),
            qpn: Qpn(0x30_3132),
            responder_resources: 16,
            initiator_depth: 15,
            starting_psn: Psn(0x40_4142),
            remote_response_timeout: 20,
            local_response_timeout: 19,
            retry_count: 7,
            rnr_retry: 6,
            max_cm_retries: 15,
            pkey: PKey::DEFAULT,
            mtu: 4,
            local_lid: Lid(0x5051),
            remote_lid: Lid(0x5253),
            local_gid: Gid([0x60; 16]),
            remote_gid: Gid([0x70; 16]),
            rate: 7,
            sl: 3,
            ack_timeout: 14,
            private: [0xaa; 92],
        }
    }

    /// Offsets and widths: Linux include/rdma/ibta_vol1_c12.h, CM_REQ_*.
    #[test]
    fn req_is_as_linux_lays_it_out() {
        let mad = CmMessage::Req(req()).to_mad(0x99);
        assert_eq!(
            mad[..24],
            [
                1, 7, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x99, 0, 0x10, 0, 0, 0, 0, 0, 0
            ]
        );
        let body = &mad[24..];
        assert_eq!(
            body[..16],
            [
                1, 2, 3, 4, 0, 0, 0, 0, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17
            ]
        );
        assert_eq!(
            body[16..24],
            [0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27]
        );
        assert_eq!(body[24..32], [0; 8]);
        assert_eq!(body[32..40], [0x30, 0x31, 0x32, 16, 0, 0, 0, 15]);
        assert_eq!(
            body[40..48],
            [0, 0, 0, 20 << 3 | 1, 0x40, 0x41, 0x42, 19 << 3 | 7]
        );
        assert_eq!(
            body[48..56],
            [0xff, 0xff, 4 << 4 | 6, 15 << 4, 0x50, 0x51, 0x52, 0x53]
        );
        assert_eq!(
            (&body[56..72], &body[72..88]),
            (&[0x60; 16][..], &[0x70; 16][..])
        );
        assert_eq!(body[88..96], [0, 0, 0, 7, 0, 1, 3 << 4 | 8, 14 << 3]);
        assert_eq!(body[96..140], [0; 44]);
        assert_eq!(body[140..], [0xaa; 92]);
    }

    /// Offsets and widths: Linux include/rdma/ibta_vol1_c12.h, CM_REP_*.
    #[test]
    fn rep_is_as_linux_lays_it_out() {
        let rep = Rep {
            local_comm_id: 0x0102_0304,
            remote_comm_id: 0x0506_0708,
            qpn: Qpn(0x30_3132),
            starting_psn: Psn(0x40_4142),
            responder_resources: 16,
            initiator_depth: 4,
            rnr_retry: 6,
            ca_guid: Guid(0x2021_2223_2425_2627),
            private: [0xbb; 196],
        };
        let mad = CmMessage::Rep(rep).to_mad(1);
        assert_eq!(mad[16..18], [0, 0x13]);
        let body = &mad[24..];
        assert_eq!(
            body[..16],
            [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0x30, 0x31, 0x32, 0]
        );
        assert_eq!(
            body[16..28],
            [0, 0, 0, 0, 0x40, 0x41, 0x42, 0, 16, 4, 1, 6 << 5]
        );
        assert_eq!(
            body[28..36],
            [0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27]
        );
        assert_eq!(body[36..], [0xbb; 196]);
        assert_eq!(CmMessage::parse(&mad), Ok((1, CmMessage::Rep(rep))));
    }

    /// Offsets and widths: Linux include/rdma/ibta_vol1_c12.h, CM_REJ_*, CM_RTU_* and CM_DREQ_*.
    #[test]
    fn rej_rtu_and_dreq_are_as_linux_lays_them_out() {
        let reason = RejectReason::CONSUMER_DEFINED;
        let rej = Rej {
            local_comm_id: 1,
            remote_comm_id: 2,
            rejected: 1,
            reason,
            private: [0xee; 148],
        };
        let mad = CmMessage::Rej(rej).to_mad(0);
        assert_eq!(mad[24..36], [0, 0, 0, 1, 0, 0, 0, 2, 1 << 6, 0, 0, 28]);
        assert_eq!(
            (&mad[36..108], &mad[108..]),
            (&[0; 72][..], &[0xee; 148][..])
        );
        let pair = Pair {
            local_comm_id: 1,
            remote_comm_id: 2,
        };
        let mad = CmMessage::Dreq(Dreq {
            pair,
            remote_qpn: Qpn(0x30_3132),
            private: [0xcc; 220],
        })
        .to_mad(0);
        assert_eq!(mad[24..36], [0, 0, 0, 1, 0, 0, 0, 2, 0x30, 0x31, 0x32, 0]);
        assert_eq!(mad[36..], [0xcc; 220]);
        let rtu = Rtu {
            pair,
            private: [0xdd; 224],
        };
        let mad = CmMessage::Rtu(rtu).to_mad(0);
        assert_eq!(mad[24..32], [0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(mad[32..], [0xdd; 224]);
    }

    #[test]
    fn another_class_is_refused() {
        let mut mad = CmMessage::Req(req()).to_mad(0);
        mad[1] = 3;
        assert_eq!(
            CmMessage::parse(&mad),
            Err(Error::Class(MgmtClass::SUBN_ADM))
        );
    }

    proptest! {
        #[test]
        fn what_parses_is_encoded_to_what_parses_the_same(
            bytes in proptest::collection::vec(any::<u8>(), MAD_LEN), attribute in 0x0f_u8..0x18,
        ) {
            let mut mad: Mad = bytes.try_into().unwrap();
            let _ = CmMessage::parse(&mad);
            (mad[0], mad[1], mad[2], mad[16], mad[17]) = (1, 7, 2, 0, attribute);
            let (transaction, message) = CmMessage::parse(&mad).unwrap();
            prop_assert_eq!(CmMessage::parse(&message.to_mad(transaction)), Ok((transaction, message)));
        }
    }
}
