//! Connections by the InfiniBand communication manager, as Linux's RDMA CM makes them.
//!
//! ```text
//!  caller ── path query ─► SA        callee
//!         ── REQ ───────────────────►          service id: port space TCP and the port; private data: who calls whom
//!         ◄─────────────────── REP ──
//!         ── RTU ───────────────────►
//!              …
//!         ── DREQ ──────────────────►          either side
//!         ◄────────────────── DREP ──
//! ```

use core::net::Ipv4Addr;

use hal::{Duration, Instant, Platform};
use mad::cm::{CmAttribute, CmMessage, Dreq, Pair as Names, Rep, Req, Rtu};
use mad::sa::{PathRecord, SaMad, path_record_mask};
use mad::{Attribute, Method};
use verbs::{
    Address, Device, Gid, Lid, PKey, PathToPeer, PortInfo, Psn, QpKind, Qpn, RcParameters,
};

use crate::node::{Node, PERSISTENT, Pair};
use crate::private::{Header, service_id};
use crate::{Error, Wait};

/// Retry interval of a message whose answer has not come.
const AGAIN: Duration = Duration::from_millis(500);
/// Poll interval for datagrams.
const LOOK: Duration = Duration::from_micros(200);
/// READs each way.
const READS: u8 = 1;
/// 4.096 µs × 2^20: some four seconds for an answer.
const RESPONSE_TIMEOUT: u8 = 20;

/// Whom to call, and as whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// The peer's port.
    pub gid: Gid,
    /// The peer's IP address.
    pub to: Ipv4Addr,
    /// Its port.
    pub port: u16,
    /// The address that we call ourselves; it must be of the peer's IPoIB network.
    pub from: Ipv4Addr,
}

/// A connection.
pub struct Connection<D: Device, P: Platform> {
    /// Its queue pair.
    pub pair: Pair<D, P>,
    names: Names,
    peer: Address,
    peer_qpn: Qpn,
}

/// Connects to whoever listens there. `prepare` posts the receives that must be there when the peer
/// begins to send.
///
/// # Errors
///
/// [`Error::Refused`], [`Error::Timeout`], or the device's.
pub async fn connect<D: Device, P: Platform>(
    node: &Node<D, P>,
    call: &Call,
    prepare: impl FnOnce(&mut Pair<D, P>) -> Result<(), Error>,
) -> Result<Connection<D, P>, Error> {
    let port = node.active().await?;
    let path = path(node, &port, call.gid).await?;
    let mut pair = node.queue_pair(QpKind::ReliableConnection).await?;
    let result = ask(node, &mut pair, &port, call, &path, prepare).await;
    match result {
        Ok((names, peer_qpn)) => Ok(Connection {
            pair,
            names,
            peer: Lid(path.dlid.get()).into(),
            peer_qpn,
        }),
        Err(error) => {
            pair.close().await?;
            Err(error)
        }
    }
}

/// Sends REQ until it is answered, connects and confirms.
async fn ask<D: Device, P: Platform>(
    node: &Node<D, P>,
    pair: &mut Pair<D, P>,
    port: &PortInfo,
    call: &Call,
    path: &PathRecord,
    prepare: impl FnOnce(&mut Pair<D, P>) -> Result<(), Error>,
) -> Result<(Names, Qpn), Error> {
    let to = Address::from(Lid(path.dlid.get()));
    let name = fresh_name(node);
    let req = CmMessage::Req(request(pair, port, call, path, name));
    let deadline = node.deadline();
    let mut rep = None;
    while rep.is_none() {
        send(node, to, &req, name).await?;
        let again = (node.platform.now() + AGAIN).min(deadline);
        rep = answer(node, again, |message| match message {
            CmMessage::Rep(rep) if rep.remote_comm_id == name => Some(Ok(rep)),
            CmMessage::Rej(rej) if rej.remote_comm_id == name => {
                Some(Err(Error::Refused(rej.reason)))
            }
            _ => None,
        })
        .await
        .transpose()?;
        if rep.is_none() && node.platform.now() >= deadline {
            return Err(Error::Timeout(Wait::Cm(CmAttribute::REP)));
        }
    }
    let rep: Rep = rep.ok_or(Error::Timeout(Wait::Cm(CmAttribute::REP)))?;
    prepare(pair)?;
    let way = PathToPeer {
        address: to,
        qpn: rep.qpn,
        their_psn: THEIR_PSN,
        our_psn: rep.starting_psn,
        mtu: mtu_bytes(path.mtu.value()),
        sl: 0,
    };
    pair.connect(
        &way,
        &parameters(rep.responder_resources, rep.initiator_depth),
    )
    .await?;
    let names = Names {
        local_comm_id: name,
        remote_comm_id: rep.local_comm_id,
    };
    let rtu = Rtu {
        pair: names,
        private: [0; 224],
    };
    send(node, to, &CmMessage::Rtu(rtu), name).await?;
    Ok((names, rep.qpn))
}

/// Waits for a connection to a port, and accepts it.
///
/// # Errors
///
/// [`Error::Timeout`], or the device's.
pub async fn accept<D: Device, P: Platform>(
    node: &Node<D, P>,
    port: u16,
    prepare: impl FnOnce(&mut Pair<D, P>) -> Result<(), Error>,
) -> Result<Connection<D, P>, Error> {
    let info = node.active().await?;
    let wanted = service_id(port);
    let called = answer(node, node.deadline(), |message| match message {
        CmMessage::Req(req) if req.service_id == wanted => Some(req),
        _ => None,
    });
    let req = called
        .await
        .ok_or(Error::Timeout(Wait::Cm(CmAttribute::REQ)))?;
    let header = Header::parse(&req.private)?;
    log::info!(
        "{} port {} calls {}",
        header.source,
        header.source_port,
        header.destination
    );
    let mut pair = node.queue_pair(QpKind::ReliableConnection).await?;
    match reply(node, &mut pair, &info, &req, prepare).await {
        Ok(names) => Ok(Connection {
            pair,
            names,
            peer: req.local_lid.into(),
            peer_qpn: req.qpn,
        }),
        Err(error) => {
            pair.close().await?;
            Err(error)
        }
    }
}

/// Connects to a caller and sends REP until it is confirmed.
async fn reply<D: Device, P: Platform>(
    node: &Node<D, P>,
    pair: &mut Pair<D, P>,
    port: &PortInfo,
    req: &Req,
    prepare: impl FnOnce(&mut Pair<D, P>) -> Result<(), Error>,
) -> Result<Names, Error> {
    prepare(pair)?;
    let way = PathToPeer {
        address: req.local_lid.into(),
        qpn: req.qpn,
        their_psn: THEIR_PSN,
        our_psn: req.starting_psn,
        mtu: mtu_bytes(req.mtu),
        sl: req.sl,
    };
    pair.connect(
        &way,
        &parameters(req.responder_resources, req.initiator_depth),
    )
    .await?;
    let names = Names {
        local_comm_id: fresh_name(node),
        remote_comm_id: req.local_comm_id,
    };
    let rep = CmMessage::Rep(Rep {
        local_comm_id: names.local_comm_id,
        remote_comm_id: names.remote_comm_id,
        qpn: pair.qpn(),
        starting_psn: THEIR_PSN,
        responder_resources: READS,
        initiator_depth: READS,
        rnr_retry: PERSISTENT.rnr_retry,
        ca_guid: port.guid,
        private: [0; 196],
    });
    let deadline = node.deadline();
    loop {
        send(node, req.local_lid.into(), &rep, names.remote_comm_id).await?;
        let again = (node.platform.now() + AGAIN).min(deadline);
        let confirmed = answer(node, again, |message| match message {
            CmMessage::Rtu(rtu) if rtu.pair.remote_comm_id == names.local_comm_id => Some(Ok(())),
            CmMessage::Rej(rej) if rej.remote_comm_id == names.local_comm_id => {
                Some(Err(Error::Refused(rej.reason)))
            }
            _ => None,
        });
        match confirmed.await {
            Some(result) => return result.map(|()| names),
            None if node.platform.now() >= deadline => {
                return Err(Error::Timeout(Wait::Cm(CmAttribute::RTU)));
            }
            None => {}
        }
    }
}

impl<D: Device, P: Platform> Connection<D, P> {
    /// Takes leave of the peer.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when it does not answer, or the device's.
    pub async fn disconnect(self) -> Result<(), Error> {
        let node = self.pair.node().clone();
        let names = self.names;
        let dreq = CmMessage::Dreq(Dreq {
            pair: names,
            remote_qpn: self.peer_qpn,
            private: [0; 220],
        });
        let deadline = node.deadline();
        loop {
            send(&node, self.peer, &dreq, names.local_comm_id).await?;
            let again = (node.platform.now() + AGAIN).min(deadline);
            let gone = answer(&node, again, |message| match message {
                CmMessage::Drep(pair) if pair.remote_comm_id == names.local_comm_id => Some(()),
                CmMessage::Dreq(dreq) if dreq.pair.remote_comm_id == names.local_comm_id => {
                    Some(())
                }
                _ => None,
            });
            if gone.await.is_some() {
                return self.pair.close().await;
            }
            if node.platform.now() >= deadline {
                return Err(Error::Timeout(Wait::Cm(CmAttribute::DREP)));
            }
        }
    }

    /// Waits until the peer takes leave.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], or the device's.
    pub async fn wait_disconnect(self) -> Result<(), Error> {
        let node = self.pair.node().clone();
        let names = self.names;
        let asked = answer(&node, node.deadline(), |message| match message {
            CmMessage::Dreq(dreq) if dreq.pair.remote_comm_id == names.local_comm_id => Some(()),
            _ => None,
        });
        asked
            .await
            .ok_or(Error::Timeout(Wait::Cm(CmAttribute::DREQ)))?;
        send(
            &node,
            self.peer,
            &CmMessage::Drep(names),
            names.remote_comm_id,
        )
        .await?;
        self.pair.close().await
    }
}

/// The first PSN that the peer is told to send: near its end, so that it wraps.
const THEIR_PSN: Psn = Psn(0xff_fff8);

fn request<D: Device, P: Platform>(
    pair: &Pair<D, P>,
    port: &PortInfo,
    call: &Call,
    path: &PathRecord,
    name: u32,
) -> Req {
    let header = Header {
        source_port: 0x8000,
        source: call.from,
        destination: call.to,
    };
    Req {
        local_comm_id: name,
        service_id: service_id(call.port),
        ca_guid: port.guid,
        qpn: pair.qpn(),
        responder_resources: READS,
        initiator_depth: READS,
        starting_psn: THEIR_PSN,
        remote_response_timeout: RESPONSE_TIMEOUT,
        local_response_timeout: RESPONSE_TIMEOUT,
        retry_count: PERSISTENT.retry_count,
        rnr_retry: PERSISTENT.rnr_retry,
        max_cm_retries: 15,
        pkey: PKey::DEFAULT,
        mtu: path.mtu.value(),
        local_lid: port.address.lid(),
        remote_lid: Lid(path.dlid.get()),
        local_gid: port.gid,
        remote_gid: call.gid,
        rate: path.rate.value(),
        sl: 0,
        ack_timeout: PERSISTENT.ack_timeout,
        private: header.to_private(),
    }
}

/// Returns the connection's READ limits, given how many READs the peer answers and how many it
/// wants to issue.
fn parameters(answers: u8, wants: u8) -> RcParameters {
    RcParameters {
        reads_as_requester: READS.min(answers),
        reads_as_responder: READS.max(wants.min(READS)),
        ..PERSISTENT
    }
}

/// Returns the bytes of an MTU code; for an invalid code those of the smallest.
fn mtu_bytes(code: u8) -> u16 {
    if (1..=5).contains(&code) {
        128 << code
    } else {
        256
    }
}

/// Returns a new ID for a connection, from the clock.
fn fresh_name<D: Device, P: Platform>(node: &Node<D, P>) -> u32 {
    let [a, b, c, d, ..] = (node.platform.now().nanos >> 10).to_le_bytes();
    u32::from_le_bytes([a, b, c, d]) | 1
}

/// Asks the subnet administrator for the way to a GID.
async fn path<D: Device, P: Platform>(
    node: &Node<D, P>,
    port: &PortInfo,
    to: Gid,
) -> Result<PathRecord, Error> {
    const ONE_PATH_REVERSIBLE: u8 = 0x81;
    let record = PathRecord {
        dgid: to.0,
        sgid: port.gid.0,
        reversible_paths: ONE_PATH_REVERSIBLE,
        ..PathRecord::default()
    };
    let mask = path_record_mask::DGID | path_record_mask::SGID | path_record_mask::NUMB_PATH;
    let transaction = u64::from(fresh_name(node));
    let query = SaMad::request(
        Method::GET,
        Attribute::PATH_RECORD,
        mask,
        &record,
        transaction,
    );
    let deadline = node.deadline();
    loop {
        node.device
            .send_mad(node.port, port.manager, PKey::DEFAULT, &query.to_mad())
            .await?;
        let again = (node.platform.now() + AGAIN).min(deadline);
        let found = take(node, again, |mad| {
            let answer = SaMad::parse(mad).ok()?;
            let ours =
                answer.header.transaction.get() == transaction && answer.header.status.get() == 0;
            answer.record::<PathRecord>().filter(|_| ours)
        });
        match found.await {
            Some(path) => return Ok(path),
            None if node.platform.now() >= deadline => return Err(Error::Timeout(Wait::Path)),
            None => {}
        }
    }
}

async fn send<D: Device, P: Platform>(
    node: &Node<D, P>,
    to: Address,
    message: &CmMessage,
    transaction: u32,
) -> Result<(), Error> {
    let mad = message.to_mad(transaction.into());
    Ok(node
        .device
        .send_mad(node.port, to, PKey::DEFAULT, &mad)
        .await?)
}

/// Waits for a message of the communication manager that `wanted` takes; others are dropped.
async fn answer<D: Device, P: Platform, T>(
    node: &Node<D, P>,
    until: Instant,
    wanted: impl Fn(CmMessage) -> Option<T>,
) -> Option<T> {
    take(node, until, |mad| {
        let (_, message) = CmMessage::parse(mad).ok()?;
        wanted(message)
    })
    .await
}

/// Waits for a datagram that `wanted` takes; others are dropped.
async fn take<D: Device, P: Platform, T>(
    node: &Node<D, P>,
    until: Instant,
    wanted: impl Fn(&mad::Mad) -> Option<T>,
) -> Option<T> {
    loop {
        while let Some((_, mad)) = node.device.take_mad(node.port) {
            if let Some(found) = wanted(&mad) {
                return Some(found);
            }
        }
        if node.platform.now() >= until {
            return None;
        }
        node.platform.sleep(LOOK).await;
    }
}
