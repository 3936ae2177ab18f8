//! A disk with a cache that power takes: what was written and not flushed is lost in part, by a
//! seed.
//!
//! [`LossyDisk`] serves an image to one QEMU by the Network Block Device protocol (the NBD
//! project's `doc/proto.md`: fixed newstyle negotiation, simple replies) at a Unix socket, as
//! `xtask run --disk` takes one. When QEMU hangs up, however it ended, the power is lost: of each
//! block of [`BLOCK`] bytes that was written since the last flush, the writes up to a random one
//! count. So writes are lost, reordered against those of other blocks, and torn between blocks; a
//! block is never torn itself, as `ext4` relies on.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

/// Bytes that a loss of power keeps or loses as one.
pub const BLOCK: usize = 4096;
/// The longest request that is taken.
const MAX_REQUEST: usize = 32 << 20;
const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// Fixed newstyle, without zeroes behind the export's flags.
const HANDSHAKE_FLAGS: u16 = 3;
/// Flags are told; flushes are served.
const EXPORT_FLAGS: u16 = 1 | 4;
const OPTION_ABORT: u32 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 0x8000_0001;
const EINVAL: u32 = 22;

/// The losses of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Losses {
    /// Blocks written since the last flush.
    pub unflushed: usize,
    /// Those of them that do not hold what was written last.
    pub lost: usize,
    /// Writes that came.
    pub writes: usize,
    /// Flushes that came.
    pub flushes: usize,
}

/// A disk in memory with a cache.
#[derive(Debug, Default)]
pub struct Cache {
    /// Content as it reads.
    current: Vec<u8>,
    /// For each block written since the last flush: its contents in order, the flushed one first.
    versions: BTreeMap<usize, Vec<Vec<u8>>>,
    writes: usize,
    flushes: usize,
}

impl Cache {
    /// Returns a disk that holds `image` durably.
    #[must_use]
    pub fn new(image: Vec<u8>) -> Self {
        Self {
            current: image,
            versions: BTreeMap::new(),
            writes: 0,
            flushes: 0,
        }
    }

    fn range(&self, offset: u64, len: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(len)?;
        (end <= self.current.len()).then_some(start..end)
    }

    fn block(&self, block: usize) -> Vec<u8> {
        let end = self.current.len().min((block + 1) * BLOCK);
        self.current[block * BLOCK..end].to_vec()
    }

    /// Reads; `None` beyond the end.
    #[must_use]
    pub fn read(&self, offset: u64, len: usize) -> Option<&[u8]> {
        Some(&self.current[self.range(offset, len)?])
    }

    /// Writes into the cache; false beyond the end.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> bool {
        let Some(range) = self.range(offset, bytes.len()) else {
            return false;
        };
        self.writes += 1;
        let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK);
        for block in blocks.clone() {
            if !self.versions.contains_key(&block) {
                self.versions.insert(block, vec![self.block(block)]);
            }
        }
        self.current[range].copy_from_slice(bytes);
        for block in blocks {
            let content = self.block(block);
            self.versions.entry(block).or_default().push(content);
        }
        true
    }

    /// Makes everything durable.
    pub fn flush(&mut self) {
        self.flushes += 1;
        self.versions.clear();
    }

    /// Loses power: gives what the disk holds then, and what was lost.
    #[must_use]
    pub fn lose_power(mut self, seed: u64) -> (Vec<u8>, Losses) {
        let mut losses = Losses {
            unflushed: self.versions.len(),
            lost: 0,
            writes: self.writes,
            flushes: self.flushes,
        };
        let mut state = seed;
        let mut random = move |end: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).expect("31 bits") % end
        };
        // From a disk that keeps nearly all to one that keeps nearly nothing.
        let keeps = random(11);
        for (block, versions) in self.versions {
            let last = versions.len() - 1;
            let kept = if random(10) < keeps {
                last
            } else {
                random(last + 1)
            };
            losses.lost += usize::from(kept < last);
            let start = block * BLOCK;
            self.current[start..start + versions[kept].len()].copy_from_slice(&versions[kept]);
        }
        (self.current, losses)
    }
}

/// A disk at a Unix socket, for one QEMU.
#[derive(Debug)]
pub struct LossyDisk {
    socket: PathBuf,
    server: JoinHandle<io::Result<Losses>>,
}

impl LossyDisk {
    /// Serves the image at `image` at `socket`. At the end the image holds what a loss of power by
    /// `seed` leaves.
    ///
    /// # Errors
    ///
    /// If the image can't be read or the socket not be made.
    pub fn serve(image: &Path, socket: &Path, seed: u64) -> io::Result<Self> {
        let cache = Cache::new(fs::read(image)?);
        let _ = fs::remove_file(socket);
        let listener = UnixListener::bind(socket)?;
        let image = image.to_owned();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept()?;
            let cache = answer(&mut stream, cache)?;
            let (bytes, losses) = cache.lose_power(seed);
            fs::write(image, bytes)?;
            Ok(losses)
        });
        Ok(Self {
            socket: socket.to_owned(),
            server,
        })
    }

    /// Waits until QEMU has gone and the image is written.
    ///
    /// # Errors
    ///
    /// If the two did not understand each other.
    ///
    /// # Panics
    ///
    /// If the server did.
    pub fn finish(self) -> io::Result<Losses> {
        let losses = self.server.join().expect("the disk's server");
        fs::remove_file(self.socket)?;
        losses
    }
}

fn take<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).map(|()| bytes)
}

fn take_bytes(stream: &mut UnixStream, len: u32) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len > MAX_REQUEST {
        return Err(io::Error::other(format!("{len} bytes in one request")));
    }
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).map(|()| bytes)
}

/// Serves until the other side is gone; a request that it did not send whole never was.
fn answer(stream: &mut UnixStream, mut cache: Cache) -> io::Result<Cache> {
    if !negotiate(stream, cache.current.len() as u64)? {
        return Ok(cache);
    }
    while request(stream, &mut cache).unwrap_or(false) {}
    Ok(cache)
}

/// Agrees on the only export; false if the other side does not want it.
fn negotiate(stream: &mut UnixStream, size: u64) -> io::Result<bool> {
    let hello = [
        &NBD_MAGIC.to_be_bytes()[..],
        &OPTION_MAGIC.to_be_bytes(),
        &HANDSHAKE_FLAGS.to_be_bytes(),
    ];
    stream.write_all(&hello.concat())?;
    take::<4>(stream)?;
    loop {
        if u64::from_be_bytes(take(stream)?) != OPTION_MAGIC {
            return Err(io::Error::other("no option of NBD"));
        }
        let option = u32::from_be_bytes(take(stream)?);
        let len = u32::from_be_bytes(take(stream)?);
        take_bytes(stream, len)?;
        let reply = |kind: u32, data: &[u8]| {
            let len = u32::try_from(data.len()).expect("some bytes");
            let head = [option, kind, len].map(u32::to_be_bytes);
            [&OPTION_REPLY_MAGIC.to_be_bytes(), head.as_flattened(), data].concat()
        };
        match option {
            OPTION_GO => {
                let export = [
                    &[0, 0][..],
                    &size.to_be_bytes(),
                    &EXPORT_FLAGS.to_be_bytes(),
                ]
                .concat();
                stream.write_all(&reply(REPLY_INFO, &export))?;
                stream.write_all(&reply(REPLY_ACK, &[]))?;
                return Ok(true);
            }
            OPTION_ABORT => return Ok(false),
            _ => stream.write_all(&reply(REPLY_UNSUPPORTED, &[]))?,
        }
    }
}

/// Serves one request; false if it ends the session.
fn request(stream: &mut UnixStream, cache: &mut Cache) -> io::Result<bool> {
    if u32::from_be_bytes(take(stream)?) != REQUEST_MAGIC {
        return Err(io::Error::other("no request of NBD"));
    }
    let _flags: [u8; 2] = take(stream)?;
    let kind = u16::from_be_bytes(take(stream)?);
    let cookie: [u8; 8] = take(stream)?;
    let offset = u64::from_be_bytes(take(stream)?);
    let len = u32::from_be_bytes(take(stream)?);
    let mut data = Vec::new();
    let good = match kind {
        0 => cache
            .read(offset, usize::try_from(len).unwrap_or(usize::MAX))
            .map(|bytes| data = bytes.to_vec())
            .is_some(),
        1 => {
            let bytes = take_bytes(stream, len)?;
            cache.write(offset, &bytes)
        }
        2 => return Ok(false),
        3 => {
            cache.flush();
            true
        }
        _ => false,
    };
    let error = if good { 0 } else { EINVAL };
    let head = [REPLY_MAGIC.to_be_bytes(), error.to_be_bytes()];
    stream.write_all(&[head.as_flattened(), &cookie, &data].concat())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_stays_and_the_rest_is_lost_in_part() {
        let (mut lost, mut kept, mut between) = (0, 0, 0);
        for seed in 0..200 {
            let mut cache = Cache::new(vec![0; 10 * BLOCK]);
            assert!(cache.write(0, &[1; BLOCK]));
            cache.flush();
            for version in 2..5 {
                assert!(cache.write(BLOCK as u64 / 2, &[version; 2 * BLOCK]));
            }
            assert!(!cache.write(10 * BLOCK as u64, &[1]) && cache.read(u64::MAX, 1).is_none());
            assert_eq!(cache.read(BLOCK as u64, 2), Some(&[4, 4][..]));
            let (image, losses) = cache.lose_power(seed);
            assert!(
                image[..BLOCK / 2].iter().all(|&byte| byte == 1),
                "it was flushed"
            );
            assert_eq!(losses.unflushed, 3);
            for block in 0..3 {
                let at = block * BLOCK + BLOCK / 4 + if block == 0 { BLOCK / 2 } else { 0 };
                match image[at] {
                    4 => kept += 1,
                    2 | 3 => between += 1,
                    _ => lost += 1,
                }
            }
        }
        assert!(
            lost > 50 && kept > 50 && between > 50,
            "{lost} {kept} {between}"
        );
    }
}
