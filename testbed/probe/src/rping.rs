//! `rping`, either side (rdma-core `librdmacm/examples/rping.c`).
//!
//! ```text
//!  client ── SEND: source buffer ──► server    READs the source
//!         ◄── SEND: go on ──────────
//!         ── SEND: sink buffer ────►           WRITEs what it has read
//!         ◄── SEND: go on ──────────
//! ```
//!
//! Both messages of both sides have 16 bytes: address, rkey and length, big-endian. The data is a
//! string with a NUL at its end: Linux's server writes no more than that back.

use alloc::format;
use alloc::vec::Vec;

use hal::Platform;
use verbs::{CompletionKind, Device, RemoteAddr, Rkey, SendOp};
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Error;
use crate::cm::{self, Call};
use crate::node::{Node, Pair, Piece};
use crate::pingpong::check;

/// rping's port.
pub const PORT: u16 = 7174;
/// Bytes of the data (`-S`).
pub const SIZE: u32 = 64;
/// Largest data that a client may have us read.
const MOST: u32 = 1 << 16;

/// A buffer, as one side tells the other (`struct rping_rdma_info`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Advert {
    /// Its address.
    pub addr: U64,
    /// Its key.
    pub rkey: U32,
    /// Its length.
    pub len: U32,
}

/// Bytes of an [`Advert`].
pub const ADVERT_LEN: u32 = 16;
const _: () = assert!(size_of::<Advert>() == ADVERT_LEN as usize);

const SEND: SendOp = SendOp::Send { imm: None };

/// Adverts that come and go: the receive's place, then the send's.
struct Words<P: Platform>(Piece<P>);

impl<P: Platform> Words<P> {
    async fn new<D: Device>(node: &Node<D, P>) -> Result<Self, Error> {
        Ok(Self(node.memory(2 * ADVERT_LEN).await?))
    }

    /// Posts the receive of the peer's next word.
    fn expect<D: Device>(&self, pair: &mut Pair<D, P>) -> Result<(), Error> {
        pair.receive(0, self.0.sge(0, ADVERT_LEN))
    }

    async fn tell<D: Device>(&self, pair: &mut Pair<D, P>, advert: Advert) -> Result<(), Error> {
        self.0.write(ADVERT_LEN as usize, advert.as_bytes());
        pair.complete(1, SEND, self.0.sge(ADVERT_LEN, ADVERT_LEN))
            .await?;
        Ok(())
    }

    /// Waits for the peer's message, and posts the receive of the next.
    async fn hear<D: Device>(&self, pair: &mut Pair<D, P>) -> Result<Advert, Error> {
        let got = pair.next(CompletionKind::Receive).await?;
        if got.bytes != ADVERT_LEN {
            let (len, wanted) = (got.bytes, ADVERT_LEN);
            return Err(Error::Length { len, wanted });
        }
        let bytes = self.0.read(0, ADVERT_LEN as usize);
        self.expect(pair)?;
        Advert::read_from_bytes(&bytes).map_err(|_| Error::BadExchange)
    }
}

/// Calls a server and lets it read and write `rounds` times; checks what it wrote.
///
/// # Errors
///
/// The first thing that went wrong.
pub async fn client<D: Device, P: Platform>(
    node: &Node<D, P>,
    call: &Call,
    rounds: u32,
) -> Result<(), Error> {
    let words = Words::new(node).await?;
    let source = node.memory(SIZE).await?;
    let sink = node.memory(SIZE).await?;
    let result = client_with(node, call, rounds, &words, &source, &sink).await;
    for piece in [words.0, source, sink] {
        node.forget(piece).await?;
    }
    result
}

async fn client_with<D: Device, P: Platform>(
    node: &Node<D, P>,
    call: &Call,
    rounds: u32,
    words: &Words<P>,
    source: &Piece<P>,
    sink: &Piece<P>,
) -> Result<(), Error> {
    let mut connection = cm::connect(node, call, |pair| words.expect(pair)).await?;
    let mut result = Ok(());
    for round in 0..rounds {
        result = ask(&mut connection.pair, words, source, sink, round).await;
        if result.is_err() {
            break;
        }
    }
    result.and(connection.disconnect().await)
}

async fn ask<D: Device, P: Platform>(
    pair: &mut Pair<D, P>,
    words: &Words<P>,
    source: &Piece<P>,
    sink: &Piece<P>,
    round: u32,
) -> Result<(), Error> {
    let text = text(round);
    source.write(0, &text);
    sink.write(0, &[0; SIZE as usize]);
    for buffer in [source, sink] {
        words.tell(pair, advert(buffer)).await?;
        words.hear(pair).await?;
    }
    check(round, &text, &sink.read(0, text.len()))
}

/// Waits for a client and serves it: reads its memory and writes it `rounds` times, until it
/// leaves.
///
/// # Errors
///
/// The first thing that went wrong.
pub async fn server<D: Device, P: Platform>(node: &Node<D, P>, rounds: u32) -> Result<(), Error> {
    let words = Words::new(node).await?;
    let data = node.memory(MOST).await?;
    let result = server_with(node, rounds, &words, &data).await;
    for piece in [words.0, data] {
        node.forget(piece).await?;
    }
    result
}

async fn server_with<D: Device, P: Platform>(
    node: &Node<D, P>,
    rounds: u32,
    words: &Words<P>,
    data: &Piece<P>,
) -> Result<(), Error> {
    let mut connection = cm::accept(node, PORT, |pair| words.expect(pair)).await?;
    for round in 0..rounds {
        let served = serve(&mut connection.pair, words, data, round).await;
        if served.is_err() {
            return served.and(connection.disconnect().await);
        }
    }
    connection.wait_disconnect().await
}

async fn serve<D: Device, P: Platform>(
    pair: &mut Pair<D, P>,
    words: &Words<P>,
    data: &Piece<P>,
    round: u32,
) -> Result<(), Error> {
    let source = words.hear(pair).await?;
    let len = source.len.get();
    if len > MOST {
        return Err(Error::Length { len, wanted: MOST });
    }
    let read = SendOp::Read {
        from: place(&source),
    };
    pair.complete(2, read, data.sge(0, len)).await?;
    // Linux's client begins its data so.
    let begin = format!("rdma-ping-{round}: ");
    check(round, begin.as_bytes(), &data.read(0, begin.len()))?;
    words.tell(pair, advert(data)).await?;
    let sink = words.hear(pair).await?;
    let write = SendOp::Write {
        to: place(&sink),
        imm: None,
    };
    pair.complete(3, write, data.sge(0, len.min(sink.len.get())))
        .await?;
    words.tell(pair, advert(data)).await
}

fn place(advert: &Advert) -> RemoteAddr {
    RemoteAddr {
        addr: advert.addr.get(),
        rkey: Rkey(advert.rkey.get()),
    }
}

fn advert<P: Platform>(piece: &Piece<P>) -> Advert {
    let RemoteAddr { addr, rkey } = piece.remote();
    Advert {
        addr: addr.into(),
        rkey: rkey.0.into(),
        len: piece.len().into(),
    }
}

/// Returns a round's data: a string that fills it, with its NUL.
fn text(round: u32) -> Vec<u8> {
    let mut text = format!("rdma-ping-{round}: ").into_bytes();
    let letters = (b'A'..=b'z')
        .cycle()
        .skip(usize::try_from(round).unwrap_or(0));
    let room = (SIZE as usize).saturating_sub(text.len() + 1);
    text.extend(letters.take(room));
    text.push(0);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advert_is_as_linux_lays_it_out() {
        // rping.c: struct rping_rdma_info { __be64 buf; __be32 rkey; __be32 size; }.
        let advert = Advert {
            addr: 0x0102_0304_0506_0708.into(),
            rkey: 0x1112_1314.into(),
            len: 64.into(),
        };
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0, 0, 0, 64];
        assert_eq!(advert.as_bytes(), bytes);
    }

    #[test]
    fn data_is_a_string_that_fills_its_place() {
        for round in [0, 9, 1000] {
            let text = text(round);
            assert_eq!(text.len(), SIZE as usize);
            assert_eq!(
                text.iter().position(|byte| *byte == 0),
                Some(text.len() - 1)
            );
        }
        assert!(text(7).starts_with(b"rdma-ping-7: "));
    }
}
