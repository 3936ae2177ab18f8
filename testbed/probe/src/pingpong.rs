//! `ibv_rc_pingpong` and `ibv_ud_pingpong`, either side.
//!
//! Both sides tell each other where their queue pair is, over TCP (rdma-core
//! `libibverbs/examples/rc_pingpong.c`, `pp_client_exch_dest`, `pp_server_exch_dest`):
//!
//! ```text
//!  client ── "lid:qpn:psn:gid" and a NUL ──► server       %04x:%06x:%06x: and 32 hex digits
//!         ◄──────── the same ───────────────
//!         ── "done" and a NUL ─────────────►
//! ```
//!
//! Then the client sends, the server answers, and so on. Linux's tool receives into the buffer that
//! it sends from, so what comes back is what was sent: that is checked here, in each round with
//! other bytes.

use alloc::format;
use alloc::vec::Vec;
use core::fmt::Write;

use hal::Platform;
use verbs::{
    CompletionKind, Device, Gid, Lid, PathToPeer, Psn, QKey, QpKind, Qpn, SendOp, UdAddress,
};

use crate::node::{Node, PERSISTENT, Pair, Piece};
use crate::{Error, Stream};

/// Bytes of an address on the stream, with the NUL behind it.
pub const ADDRESS_LEN: usize = 4 + 1 + 6 + 1 + 6 + 1 + 32 + 1;
/// The Q_Key of `ibv_ud_pingpong` (`ud_pingpong.c`).
pub const QKEY: QKey = QKey(0x1111_1111);
/// The client's last word.
const DONE: &[u8; 5] = b"done\0";
/// Place of the GRH in a datagram's receive.
const GRH_LEN: u32 = 40;
const SEND: SendOp = SendOp::Send { imm: None };

/// Address of a queue pair: LID, GID, number and first PSN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The port.
    pub lid: Lid,
    /// The queue pair.
    pub qpn: Qpn,
    /// The first PSN that it sends.
    pub psn: Psn,
    /// The port's GID, or zero when it is not to be used.
    pub gid: Gid,
}

impl Address {
    /// Encodes the address as it is sent on the stream.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; ADDRESS_LEN] {
        let (lid, qpn, psn) = (self.lid.0, self.qpn.0 & 0xff_ffff, self.psn.0 & 0xff_ffff);
        let mut text = format!("{lid:04x}:{qpn:06x}:{psn:06x}:");
        for byte in self.gid.0 {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        let mut bytes = [0; ADDRESS_LEN];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        bytes
    }

    /// Reads one.
    ///
    /// # Errors
    ///
    /// [`Error::BadExchange`].
    pub fn parse(bytes: &[u8; ADDRESS_LEN]) -> Result<Self, Error> {
        let text = bytes.strip_suffix(b"\0").ok_or(Error::BadExchange)?;
        let text = core::str::from_utf8(text).map_err(|_| Error::BadExchange)?;
        let mut parts = text.split(':');
        let mut number = |most: u32| {
            let part = parts.next().ok_or(Error::BadExchange)?;
            u32::from_str_radix(part, 16)
                .ok()
                .filter(|number| *number <= most)
                .ok_or(Error::BadExchange)
        };
        let lid = u16::try_from(number(0xffff)?).map_err(|_| Error::BadExchange)?;
        let (qpn, psn) = (number(0xff_ffff)?, number(0xff_ffff)?);
        let gid = parts
            .next()
            .filter(|gid| gid.len() == 32)
            .ok_or(Error::BadExchange)?;
        let gid = u128::from_str_radix(gid, 16).map_err(|_| Error::BadExchange)?;
        Ok(Self {
            lid: Lid(lid),
            qpn: Qpn(qpn),
            psn: Psn(psn),
            gid: Gid(gid.to_be_bytes()),
        })
    }
}

/// Side of the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Speaks first.
    Client,
    /// Answers.
    Server,
}

/// Parameters of a pingpong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// This side.
    pub side: Side,
    /// Rounds (`-n`).
    pub rounds: u32,
    /// Bytes of a message (`-s`).
    pub size: u32,
    /// Send back the received bytes, as Linux's tool does, and check nothing. If unset, the peer
    /// must do so and this side checks.
    pub echo: bool,
}

/// Plays `ibv_rc_pingpong`'s peer.
///
/// # Errors
///
/// The first thing that went wrong; [`Error::StreamEnded`] before anything was sent when the peer
/// is not there yet.
pub async fn rc<D: Device, P: Platform>(
    node: &Node<D, P>,
    stream: &mut impl Stream,
    plan: &Plan,
) -> Result<(), Error> {
    let mut pair = node.queue_pair(QpKind::ReliableConnection).await?;
    let memory = node.memory(2 * plan.size).await?;
    let result = rc_with(&mut pair, &memory, stream, plan).await;
    pair.close().await?;
    node.forget(memory).await?;
    result
}

async fn rc_with<D: Device, P: Platform>(
    pair: &mut Pair<D, P>,
    memory: &Piece<P>,
    stream: &mut impl Stream,
    plan: &Plan,
) -> Result<(), Error> {
    pair.receive(0, memory.sge(0, plan.size))?;
    let ours = address(pair).await?;
    let path = |theirs: &Address| PathToPeer {
        address: theirs.lid.into(),
        qpn: theirs.qpn,
        their_psn: theirs.psn,
        our_psn: ours.psn,
        mtu: 1024,
        sl: 0,
    };
    match plan.side {
        Side::Client => {
            let theirs = ask(stream, &ours).await?;
            pair.connect(&path(&theirs), &PERSISTENT).await?;
        }
        Side::Server => {
            let theirs = listen(stream).await?;
            pair.connect(&path(&theirs), &PERSISTENT).await?;
            answer(stream, &ours).await?;
        }
    }
    play(pair, memory, plan, None).await
}

/// Plays `ibv_ud_pingpong`'s peer. The size must fit one packet.
///
/// # Errors
///
/// As [`rc`].
pub async fn ud<D: Device, P: Platform>(
    node: &Node<D, P>,
    stream: &mut impl Stream,
    plan: &Plan,
) -> Result<(), Error> {
    let mut pair = node.queue_pair(QpKind::Datagram { qkey: QKEY }).await?;
    let memory = node.memory(2 * plan.size + GRH_LEN).await?;
    let result = ud_with(&mut pair, &memory, stream, plan).await;
    pair.close().await?;
    node.forget(memory).await?;
    result
}

async fn ud_with<D: Device, P: Platform>(
    pair: &mut Pair<D, P>,
    memory: &Piece<P>,
    stream: &mut impl Stream,
    plan: &Plan,
) -> Result<(), Error> {
    pair.receive(0, memory.sge(0, plan.size + GRH_LEN))?;
    pair.ready().await?;
    let ours = address(pair).await?;
    let theirs = match plan.side {
        Side::Client => ask(stream, &ours).await?,
        Side::Server => {
            let theirs = listen(stream).await?;
            answer(stream, &ours).await?;
            theirs
        }
    };
    let to = UdAddress {
        address: theirs.lid.into(),
        qpn: theirs.qpn,
        qkey: QKEY,
        sl: 0,
        gid: None,
    };
    play(pair, memory, plan, Some(to)).await
}

async fn address<D: Device, P: Platform>(pair: &Pair<D, P>) -> Result<Address, Error> {
    let node = pair.node();
    let port = node.device.port(node.port).await?;
    Ok(Address {
        lid: port.address.lid(),
        qpn: pair.qpn(),
        // Near its end, so that it wraps.
        psn: Psn(0xff_fff0),
        gid: Gid([0; 16]),
    })
}

async fn ask(stream: &mut impl Stream, ours: &Address) -> Result<Address, Error> {
    stream.send(&ours.to_bytes()).await?;
    let mut bytes = [0; ADDRESS_LEN];
    stream.receive(&mut bytes).await?;
    let theirs = Address::parse(&bytes)?;
    stream.send(DONE).await?;
    Ok(theirs)
}

async fn listen(stream: &mut impl Stream) -> Result<Address, Error> {
    let mut bytes = [0; ADDRESS_LEN];
    stream.receive(&mut bytes).await?;
    Address::parse(&bytes)
}

async fn answer(stream: &mut impl Stream, ours: &Address) -> Result<(), Error> {
    stream.send(&ours.to_bytes()).await?;
    let mut done = [0; DONE.len()];
    stream.receive(&mut done).await?;
    if done == *DONE {
        Ok(())
    } else {
        Err(Error::BadExchange)
    }
}

/// Plays the rounds. The first bytes of `memory` are for received data, the last for sent data.
async fn play<D: Device, P: Platform>(
    pair: &mut Pair<D, P>,
    memory: &Piece<P>,
    plan: &Plan,
    to: Option<UdAddress>,
) -> Result<(), Error> {
    let head = if to.is_some() { GRH_LEN } else { 0 };
    let from = if plan.echo {
        head
    } else {
        memory.len() - plan.size
    };
    let len = usize::try_from(plan.size).unwrap_or(0);
    let [before, place] = [head, from].map(|at| usize::try_from(at).unwrap_or(0));
    // Nothing is known of what comes first to a server.
    let mut expected: Option<Vec<u8>> = None;
    for round in 0..plan.rounds {
        let send = |pair: &mut Pair<D, P>| {
            let fresh = (!plan.echo).then(|| pattern(len, round));
            if let Some(bytes) = &fresh {
                memory.write(place, bytes);
            }
            pair.send(round.into(), SEND, memory.sge(from, plan.size), to)?;
            Ok::<_, Error>(fresh)
        };
        if plan.side == Side::Client {
            expected = send(pair)?;
        }
        let got = pair.next(CompletionKind::Receive).await?;
        if got.bytes != plan.size + head {
            let (len, wanted) = (got.bytes, plan.size + head);
            return Err(Error::Length { len, wanted });
        }
        if let Some(wanted) = &expected {
            check(round, wanted, &memory.read(before, len))?;
        }
        pair.receive(round.into(), memory.sge(0, plan.size + head))?;
        if plan.side == Side::Server {
            expected = send(pair)?;
        }
        pair.next(CompletionKind::Send).await?;
    }
    Ok(())
}

/// Bytes that differ from place to place and from round to round.
pub(crate) fn pattern(len: usize, round: u32) -> Vec<u8> {
    let seed = usize::try_from(round).unwrap_or(0);
    (0..len)
        .map(|at| ((at * 31 + seed * 17) ^ (at >> 8)).to_le_bytes()[0])
        .collect()
}

/// Compares what came with what was due.
pub(crate) fn check(round: u32, wanted: &[u8], found: &[u8]) -> Result<(), Error> {
    let wrong = wanted
        .iter()
        .zip(found)
        .position(|(wanted, found)| wanted != found);
    match wrong {
        None => Ok(()),
        Some(at) => Err(Error::Data {
            round,
            at,
            found: found[at],
            wanted: wanted[at],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_is_as_linux_prints_it() {
        // rc_pingpong.c: sprintf(msg, "%04x:%06x:%06x:%s", lid, qpn, psn, wgid); sizeof msg
        // includes the NUL.
        let address = Address {
            lid: Lid(2),
            qpn: Qpn(0x208),
            psn: Psn(0xab_cdef),
            gid: Gid::new(Gid::DEFAULT_PREFIX, verbs::Guid(0x0002_c903_0000_0101)),
        };
        let bytes = address.to_bytes();
        assert_eq!(
            &bytes,
            b"0002:000208:abcdef:fe800000000000000002c90300000101\0"
        );
        assert_eq!(Address::parse(&bytes), Ok(address));
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        for text in [
            b"0002:000208:abcdef:fe800000000000000002c90300000101:",
            b"0002:000208:abcdef:fe800000000000000002c903000001010",
            b"00020000208:abcdef:fe800000000000000002c903000001010",
            b"0002:1000208:abcdef:fe800000000000000002c9030000010\0",
        ] {
            assert_eq!(Address::parse(text), Err(Error::BadExchange));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), ADDRESS_LEN)) {
            let bytes: [u8; ADDRESS_LEN] = bytes.try_into().unwrap();
            let _ = Address::parse(&bytes);
        }
    }

    #[test]
    fn the_first_wrong_byte_is_named() {
        assert_eq!(
            check(3, &[1, 2, 3], &[1, 9, 8]),
            Err(Error::Data {
                round: 3,
                at: 1,
                found: 9,
                wanted: 2
            })
        );
        assert_eq!(check(0, &pattern(300, 7), &pattern(300, 7)), Ok(()));
        assert!(check(0, &pattern(300, 7), &pattern(300, 8)).is_err());
    }
}
