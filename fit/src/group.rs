//! The cluster's multicast group: joining it, the datagrams in it, and the queue pair that takes
//! them, made anew when it fails.

use alloc::vec::Vec;

use hal::{DmaBuffer, Duration, Instant, Platform};
use mad::sa::{JoinState, McMemberRecord, SaMad, mc_member_mask};
use mad::{Attribute, Mad, Method, Status};
use verbs::{
    Access, Address, Completion, CompletionKind, Device, Domain, Gid, PKey, Payload, PortInfo,
    QpConfig, QpKind, QpSlot, Qpn, QueueSet, Region, SendOp, SendRequest, Sge, UdAddress,
};

use crate::handshake::{back_off, persistence};
use crate::membership::{ANNOUNCEMENT_LEN, Cluster};
use crate::{Config, Error};

/// Datagrams that may arrive between two looks; what is more is dropped by the HCA, as datagrams
/// may be.
const RECEIVES: usize = 64;
const SENDS: usize = 4;
/// A datagram's receive begins with its GRH.
const GRH_LEN: usize = 40;
/// Room for any datagram that there can be: one that did not fit would end the queue pair, and
/// anyone may send one.
const RECEIVE_LEN: usize = 64 + 4096;
/// Room for an announcement.
const SEND_LEN: usize = 128;
/// A port that is a member asks again so often, for a subnet manager that was started anew may have
/// forgotten it.
const JOIN_AGAIN: Duration = Duration::from_secs(60);
/// Requests to join without an answer after which the manager may be elsewhere.
const IGNORED: u32 = 3;
/// Between two tries to make the queue pair anew.
const MEND_AGAIN: Duration = Duration::from_millis(100);
/// Bits of a join: full member.
const FULL_MEMBER: u8 = 1;
/// The scope of a link-local group (IBA 1.3, 4.1.1).
const LINK_LOCAL: u8 = 2;

/// A datagram that was received.
pub(crate) struct Datagram {
    pub(crate) from: Address,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) struct Group<D: Device, P: Platform> {
    queues: D::Queues,
    /// The queue pair, but while it is made anew.
    pair: Option<(QpSlot, Qpn)>,
    /// Whether it has failed and must be made anew, and when to try.
    broken: bool,
    next_mend: Instant,
    mgid: Gid,
    memory: P::Buffer,
    region: Region,
    /// The group's address, once the port is a member.
    address: Option<Address>,
    transaction: u64,
    tries: u32,
    next: Instant,
    /// Datagrams sent, and those known to be finished: the number of one is its request's id.
    sent: u64,
    done: u64,
}

impl<D: Device, P: Platform> Group<D, P> {
    pub(crate) async fn new(device: &D, platform: &P, config: &Config) -> Result<Self, Error> {
        let depth = u32::try_from(RECEIVES + SENDS).expect("few");
        let queues = device.create_queues(depth, config.first_vector).await?;
        let memory = platform.alloc(RECEIVES * RECEIVE_LEN + SENDS * SEND_LEN, 4096)?;
        let access = Access {
            local_write: true,
            ..Access::default()
        };
        let (addr, len) = (memory.bus_addr().0, memory.len() as u64);
        let region = device
            .register(Domain::default(), addr, len, access)
            .await?;
        let mut group = Self {
            queues,
            pair: None,
            broken: false,
            next_mend: Instant::default(),
            mgid: config.cluster.mgid,
            memory,
            region,
            address: None,
            transaction: 0,
            tries: 0,
            next: Instant::default(),
            sent: 0,
            done: 0,
        };
        group.make_pair(device, config.port).await?;
        Ok(group)
    }

    /// Makes the queue pair, after taking away the one that was there.
    async fn make_pair(&mut self, device: &D, port: u8) -> Result<(), verbs::Error> {
        if let Some((qp, qpn)) = self.pair {
            device.detach_multicast(qpn, self.mgid).await?;
            device.destroy_qp(&mut self.queues, qp).await?;
            self.pair = None;
        }
        let config = QpConfig {
            kind: QpKind::Datagram {
                qkey: Cluster::QKEY,
            },
            domain: Domain::default(),
            port,
            send_depth: u32::try_from(SENDS).expect("few"),
            receive_depth: u32::try_from(RECEIVES).expect("few"),
            send_sge: 1,
            receive_sge: 1,
            inline: 0,
            remote_access: Access::default(),
        };
        let (qp, qpn) = device.create_qp(&mut self.queues, &config).await?;
        self.pair = Some((qp, qpn));
        device.ready_to_send(qpn, None, &persistence(0, 0)).await?;
        device.attach_multicast(qpn, self.mgid).await?;
        self.done = self.sent;
        self.broken = false;
        (0..RECEIVES).for_each(|index| self.post_receive(index));
        Ok(())
    }

    /// The queue pair has failed, if it is this one.
    pub(crate) fn on_failed(&mut self, qpn: Qpn) {
        self.broken |= self.pair.is_some_and(|(_, ours)| ours == qpn);
    }

    /// Makes the queue pair anew if it has failed. The port's membership is not its own, so it
    /// stays.
    pub(crate) async fn mend(&mut self, device: &D, port: u8, now: Instant) {
        if !self.broken || now < self.next_mend {
            return;
        }
        self.next_mend = now + MEND_AGAIN;
        match self.make_pair(device, port).await {
            Ok(()) => {
                log::warn!("the multicast group: its queue pair had failed and was made anew")
            }
            Err(error) => {
                log::error!("the multicast group: its queue pair can't be made anew: {error}")
            }
        }
    }

    fn piece(&self, at: usize, len: usize) -> Sge {
        Sge {
            addr: self.region.addr + at as u64,
            len: u32::try_from(len).expect("short"),
            lkey: self.region.lkey,
        }
    }

    fn post_receive(&mut self, index: usize) {
        let piece = self.piece(index * RECEIVE_LEN, RECEIVE_LEN);
        let Some((qp, _)) = self.pair else { return };
        if let Err(error) = self.queues.post_receive(qp, index as u64, &[piece]) {
            log::error!("the multicast group: {error}");
            self.broken = true;
        }
    }

    /// The port has other addresses, or the subnet another manager: the port must join again.
    pub(crate) fn leave(&mut self, now: Instant) {
        (self.address, self.tries, self.next) = (None, 0, now);
    }

    /// Returns whether to ask to join, once more or for the first time.
    pub(crate) fn is_join_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// Returns whether the subnet administrator seems to ignore the requests.
    pub(crate) fn is_ignored(&self) -> bool {
        self.tries > IGNORED
    }

    /// The request to join.
    pub(crate) fn join(&mut self, port: &PortInfo, transaction: u64, now: Instant) -> Mad {
        self.next = now + back_off(self.tries);
        self.tries += 1;
        self.transaction = transaction;
        let record = McMemberRecord {
            mgid: self.mgid.0,
            port_gid: port.gid.0,
            qkey: Cluster::QKEY.0.into(),
            pkey: PKey::DEFAULT.0.into(),
            scope_join: JoinState::new()
                .with_scope(LINK_LOCAL)
                .with_join(FULL_MEMBER),
            ..McMemberRecord::default()
        };
        let mask = mc_member_mask::MGID | mc_member_mask::PORT_GID | mc_member_mask::CREATE;
        let attribute = Attribute::MC_MEMBER_RECORD;
        SaMad::request(Method::SET, attribute, mask, &record, transaction).to_mad()
    }

    /// Takes an answer of the subnet administrator, if it is the one to our request.
    pub(crate) fn on_answer(&mut self, answer: &SaMad, now: Instant) {
        // Upper halves of transactions belong to whoever carries the datagrams.
        let transaction = answer.header.transaction.get() & u64::from(u32::MAX);
        if transaction != self.transaction {
            return;
        }
        let status = answer.header.status();
        if status != Status::OK {
            return log::warn!("the multicast group: the subnet administrator answers {status}");
        }
        let record = answer.record::<McMemberRecord>();
        let Some(record) = record.filter(|record| record.mgid == self.mgid.0) else {
            return;
        };
        let address = Some(Address::from(verbs::Lid(record.mlid.get())));
        if core::mem::replace(&mut self.address, address) != address {
            log::info!("joined the multicast group {}", self.mgid);
        }
        (self.tries, self.next) = (0, now + JOIN_AGAIN);
    }

    /// Sends a datagram to everyone; dropped while the port is no member, or the queue pair is to
    /// be made anew.
    pub(crate) fn send(&mut self, bytes: &[u8; ANNOUNCEMENT_LEN]) {
        let under_way = self.sent - self.done;
        let Some(address) = self.address.filter(|_| under_way < SENDS as u64) else {
            return;
        };
        let Some((qp, _)) = self.pair.filter(|_| !self.broken) else {
            return;
        };
        let slot = usize::try_from(self.sent % SENDS as u64).expect("less than SENDS");
        let at = RECEIVES * RECEIVE_LEN + slot * SEND_LEN;
        self.memory.write(at, bytes);
        let piece = self.piece(at, bytes.len());
        let request = SendRequest {
            id: self.sent,
            op: SendOp::Send { imm: None },
            payload: Payload::Gather(&[piece]),
            signalled: true,
            solicited: false,
            fence: false,
            to: Some(UdAddress {
                address,
                qpn: Qpn::MULTICAST,
                qkey: Cluster::QKEY,
                sl: 0,
                gid: Some(self.mgid),
            }),
        };
        match self.queues.post_send(qp, &request) {
            Ok(()) => {
                self.sent += 1;
                self.queues.ring(qp);
            }
            Err(error) => {
                log::error!("the multicast group: {error}");
                self.broken = true;
            }
        }
    }

    /// Takes what arrived, at most as much as there are receives.
    pub(crate) fn hear(&mut self) -> Vec<Datagram> {
        let mut heard = Vec::new();
        let mut batch = [Completion::EMPTY; RECEIVES + SENDS];
        let Ok(count) = self.queues.poll(&mut batch) else {
            return heard;
        };
        for completion in &batch[..count] {
            if self.pair.is_none_or(|(qp, _)| qp != completion.qp) {
                continue;
            }
            if completion.status != verbs::Status::Success {
                // An error ends the queue pair, whatever it was of.
                if !core::mem::replace(&mut self.broken, true) {
                    let (kind, status) = (completion.kind, completion.status);
                    log::error!("the multicast group: {kind:?} ended with {status:?}");
                }
                continue;
            }
            if completion.kind == CompletionKind::Send {
                // A queue pair finishes in order; a completion that comes again says nothing.
                if (self.done..self.sent).contains(&completion.id) {
                    self.done = completion.id + 1;
                }
                continue;
            }
            let Some(index) = usize::try_from(completion.id)
                .ok()
                .filter(|&id| id < RECEIVES)
            else {
                continue;
            };
            let len = (completion.bytes as usize).clamp(GRH_LEN, RECEIVE_LEN) - GRH_LEN;
            if let Some(source) = completion.source {
                // What is longer is no announcement, however it goes on.
                let mut bytes = alloc::vec![0; len.min(ANNOUNCEMENT_LEN + 1)];
                self.memory.read(index * RECEIVE_LEN + GRH_LEN, &mut bytes);
                heard.push(Datagram {
                    from: source.address,
                    bytes,
                });
            }
            if !self.broken {
                self.post_receive(index);
            }
        }
        heard
    }
}
