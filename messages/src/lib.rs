//! The messages that the components exchange over FIT, defined once and used by both sides.
//!
//! FIT carries for each call a [`Kind`] and the bytes of the request, and hands back the bytes of
//! the reply. This crate says what those bytes are: each call is a type that implements [`Call`],
//! with its kind, its name (for counters), its request and its reply. Numbers are little-endian,
//! byte strings have a 16-bit length before them, and a reply begins with a Linux errno number (0
//! for success). A decoder takes exactly the whole message: too few or too many bytes are an error,
//! and so is a number outside its range.
//!
//! Both sides state [`VERSION`] when they connect and must agree, so a message itself carries no
//! version.
//!
//! * [`memory`]: what P asks of M.
//! * [`storage`]: what P asks of S.
//! * [`recall`]: what S asks of P.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod caller;
mod errno;
pub mod memory;
pub mod pieces;
pub mod recall;
pub mod storage;
#[cfg(test)]
mod tests;
mod wire;
mod xattr;

pub use errno::Errno;
pub use wire::{Reader, Wire, WireError, Writer};

/// The version of the whole message set; raised by each change of a layout.
pub const VERSION: u16 = 8;

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;

/// Bytes of a chunk: the unit in which M lends memory.
///
/// It is what one page-table page maps on x86-64, so a leaf table's pages can all lie in one chunk.
pub const CHUNK_SIZE: u64 = 2 << 20;

/// One past the highest address a program may use: the lower half without its last page, as on
/// Linux.
pub const USER_END: u64 = (1 << 47) - PAGE_SIZE;

/// The size of a message that FIT must carry, in bytes: a path of Linux's longest, and room for who
/// asks and what else a request says.
pub const MESSAGE_SIZE: u32 = 4096 + 512;

/// The longest request or reply, in bytes; FIT's message size minus its header is at least this.
pub const MAX_MESSAGE: usize = MESSAGE_SIZE as usize - 64;

/// The number of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u16);

impl Kind {
    /// One past the highest number in use: the size of a table of counters.
    pub const COUNT: usize = 46;

    /// The call's name, or nothing for a number that no call has.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        memory::name(self)
            .or_else(|| storage::name(self))
            .or_else(|| recall::name(self))
    }
}

/// One call: a request and its reply.
pub trait Call {
    /// Its number.
    const KIND: Kind;
    /// Its name in counters and logs.
    const NAME: &'static str;
    /// Arguments of the call.
    type Request<'a>: Wire<'a>;
    /// Result of the call.
    type Reply<'a>: Wire<'a>;
}

/// Writes the request of call `C` into `into`; returns its length.
///
/// # Errors
///
/// [`WireError::NoRoom`] when it does not fit, [`WireError::StringTooLong`] for a byte string past
/// its bound.
pub fn encode_request<C: Call>(
    request: &C::Request<'_>,
    into: &mut [u8],
) -> Result<usize, WireError> {
    let mut writer = Writer::new(into);
    request.put(&mut writer)?;
    Ok(writer.len())
}

/// Writes the reply of call `C` into `into`; returns its length.
///
/// # Errors
///
/// As [`encode_request`].
pub fn encode_reply<C: Call>(
    reply: &Result<C::Reply<'_>, Errno>,
    into: &mut [u8],
) -> Result<usize, WireError> {
    let mut writer = Writer::new(into);
    match reply {
        Ok(reply) => {
            0i32.put(&mut writer)?;
            reply.put(&mut writer)?;
        }
        Err(errno) => errno.0.put(&mut writer)?,
    }
    Ok(writer.len())
}

/// Reads the reply of call `C`: its value, or the errno that the peer answered.
///
/// # Errors
///
/// See [`WireError`].
pub fn decode_reply<'a, C: Call>(
    bytes: &'a [u8],
) -> Result<Result<C::Reply<'a>, Errno>, WireError> {
    let mut reader = Reader::new(bytes);
    let reply = match i32::take(&mut reader)? {
        0 => Ok(C::Reply::take(&mut reader)?),
        errno @ 1..=4095 => Err(Errno(errno)),
        other => {
            return Err(WireError::BadValue {
                what: "errno",
                value: i64::from(other).cast_unsigned(),
            });
        }
    };
    reader.finish()?;
    Ok(reply)
}
