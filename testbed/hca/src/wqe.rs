//! Send work queue entries: parser and checks.

use fabric::AtomicOp;
use mlx4_hw::qp::Service;
use mlx4_hw::wqe::{
    AtomicSegment, BASIC_BLOCK_LEN, COMPLETION_WANTED, ControlSegment, DataSegment,
    DatagramSegment, INLINE_HEADER_LEN, InlineHeader, MlxControlSegment, RemoteAddressSegment,
    SEGMENT_UNIT, WqeOpcode,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::memory::{AccessError, Checked, Memory, RESERVED_LKEY, Right};

/// The longest message (QUERY_DEV_CAP: log max message 0x1e).
pub(crate) const LONGEST_MESSAGE: u64 = 1 << 30;

/// A piece of a message's bytes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    /// Data in memory.
    Memory(DataSegment),
    /// Data in the entry itself.
    Inline(Vec<u8>),
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Memory(segment) => u64::from(segment.len.get()),
            Self::Inline(bytes) => bytes.len() as u64,
        }
    }
}

/// Operation of a work queue entry.
#[derive(Debug, Clone)]
pub(crate) enum Task {
    Nop,
    Send {
        imm: Option<u32>,
        invalidate: Option<u32>,
    },
    Write {
        addr: u64,
        rkey: u32,
        imm: Option<u32>,
    },
    Read {
        addr: u64,
        rkey: u32,
    },
    Atomic {
        addr: u64,
        rkey: u32,
        op: AtomicOp,
    },
    Datagram {
        to: Box<DatagramSegment>,
        imm: Option<u32>,
    },
    Mlx {
        control: MlxControlSegment,
    },
    LocalInvalidate {
        key: u32,
    },
    FastRegister(Box<FastRegisterSegment>),
}

use crate::trace::Purpose;
use mlx4_hw::extended::{FastRegisterSegment, LocalInvalidateSegment, MaskedAtomicSegment};

/// One send.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    /// Index of its first slot.
    pub(crate) counter: u16,
    pub(crate) opcode: WqeOpcode,
    pub(crate) signalled: bool,
    pub(crate) solicited: bool,
    pub(crate) fence: bool,
    /// The peer's SRQ, of an XRC queue pair.
    pub(crate) srqn: Option<u32>,
    pub(crate) task: Task,
    pub(crate) pieces: Vec<Piece>,
    /// Bytes of all pieces.
    pub(crate) len: u32,
}

/// An entry that can't be carried out: its syndrome is "local QP operation error" or, if too long,
/// "local length error".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malformed {
    Operation,
    Length,
}

/// Takes the bytes of an entry apart (without those of slots behind its size).
pub(crate) fn parse(service: Service, counter: u16, bytes: &[u8]) -> Result<Work, Malformed> {
    let (control, rest) =
        ControlSegment::read_from_prefix(bytes).map_err(|_| Malformed::Operation)?;
    let opcode = control.owner.opcode();
    let mut reader = Reader {
        bytes,
        at: bytes.len() - rest.len(),
    };
    let task = match service {
        Service::RC | Service::XRC => connected(&mut reader, &control, true)?,
        Service::UC => connected(&mut reader, &control, false)?,
        Service::UD => match opcode {
            WqeOpcode::NOP => Task::Nop,
            WqeOpcode::SEND | WqeOpcode::SEND_IMM => Task::Datagram {
                to: Box::new(reader.take()?),
                imm: (opcode == WqeOpcode::SEND_IMM).then(|| control.immediate.get()),
            },
            _ => return Err(Malformed::Operation),
        },
        Service::MLX => match opcode {
            WqeOpcode::NOP => Task::Nop,
            WqeOpcode::SEND => Task::Mlx {
                control: MlxControlSegment::read_from_prefix(bytes)
                    .map_err(|_| Malformed::Operation)?
                    .0,
            },
            _ => return Err(Malformed::Operation),
        },
        _ => return Err(Malformed::Operation),
    };
    let pieces = match task {
        Task::Nop | Task::LocalInvalidate { .. } | Task::FastRegister(_) => Vec::new(),
        _ => reader.pieces()?,
    };
    let len: u64 = pieces.iter().map(Piece::len).sum();
    let len = u32::try_from(len)
        .ok()
        .filter(|len| u64::from(*len) <= LONGEST_MESSAGE)
        .ok_or(Malformed::Length)?;
    if matches!(task, Task::Atomic { .. }) && len != 8 {
        return Err(Malformed::Length);
    }
    let inline_read = matches!(task, Task::Read { .. } | Task::Atomic { .. })
        && pieces
            .iter()
            .any(|piece| matches!(piece, Piece::Inline(bytes) if !bytes.is_empty()));
    if inline_read {
        return Err(Malformed::Operation);
    }
    Ok(Work {
        counter,
        opcode,
        signalled: control.flags.completion() == COMPLETION_WANTED,
        solicited: control.flags.solicited(),
        fence: control.size.fence(),
        srqn: (service == Service::XRC).then(|| control.flags.xrc_srqn()),
        task,
        pieces,
        len,
    })
}

fn connected(
    reader: &mut Reader<'_>,
    control: &ControlSegment,
    reliable: bool,
) -> Result<Task, Malformed> {
    let imm = control.immediate.get();
    Ok(match control.owner.opcode() {
        WqeOpcode::NOP => Task::Nop,
        WqeOpcode::SEND => Task::Send {
            imm: None,
            invalidate: None,
        },
        WqeOpcode::SEND_IMM => Task::Send {
            imm: Some(imm),
            invalidate: None,
        },
        WqeOpcode::SEND_INVAL if reliable => Task::Send {
            imm: None,
            invalidate: Some(imm),
        },
        opcode @ (WqeOpcode::RDMA_WRITE | WqeOpcode::RDMA_WRITE_IMM) => {
            let remote: RemoteAddressSegment = reader.take()?;
            Task::Write {
                addr: remote.addr.get(),
                rkey: remote.rkey.get(),
                imm: (opcode == WqeOpcode::RDMA_WRITE_IMM).then_some(imm),
            }
        }
        WqeOpcode::RDMA_READ if reliable => {
            let remote: RemoteAddressSegment = reader.take()?;
            Task::Read {
                addr: remote.addr.get(),
                rkey: remote.rkey.get(),
            }
        }
        opcode if reliable && is_atomic(opcode) => {
            let remote: RemoteAddressSegment = reader.take()?;
            Task::Atomic {
                addr: remote.addr.get(),
                rkey: remote.rkey.get(),
                op: atomic(reader, opcode)?,
            }
        }
        WqeOpcode::LOCAL_INVALIDATE => Task::LocalInvalidate {
            key: reader.take::<LocalInvalidateSegment>()?.key.get(),
        },
        WqeOpcode::FAST_REGISTER => Task::FastRegister(Box::new(reader.take()?)),
        _ => return Err(Malformed::Operation),
    })
}

fn is_atomic(opcode: WqeOpcode) -> bool {
    matches!(
        opcode,
        WqeOpcode::ATOMIC_CS
            | WqeOpcode::ATOMIC_FA
            | WqeOpcode::MASKED_ATOMIC_CS
            | WqeOpcode::MASKED_ATOMIC_FA
    )
}

fn atomic(reader: &mut Reader<'_>, opcode: WqeOpcode) -> Result<AtomicOp, Malformed> {
    if opcode == WqeOpcode::MASKED_ATOMIC_CS {
        let segment: MaskedAtomicSegment = reader.take()?;
        return Ok(AtomicOp::CompareSwap {
            compare: segment.compare.get(),
            swap: segment.swap_add.get(),
            compare_mask: segment.compare_mask.get(),
            swap_mask: segment.swap_add_mask.get(),
        });
    }
    let segment: AtomicSegment = reader.take()?;
    let (first, second) = (segment.swap_add.get(), segment.compare.get());
    Ok(match opcode {
        WqeOpcode::ATOMIC_CS => AtomicOp::CompareSwap {
            compare: second,
            swap: first,
            compare_mask: u64::MAX,
            swap_mask: u64::MAX,
        },
        WqeOpcode::MASKED_ATOMIC_FA => AtomicOp::FetchAdd {
            add: first,
            boundary: second,
        },
        _ => AtomicOp::FetchAdd {
            add: first,
            boundary: 0,
        },
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<T: FromBytes>(&mut self) -> Result<T, Malformed> {
        let rest = self.bytes.get(self.at..).ok_or(Malformed::Operation)?;
        let bytes = rest.get(..size_of::<T>()).ok_or(Malformed::Operation)?;
        self.at += size_of::<T>();
        T::read_from_bytes(bytes).map_err(|_| Malformed::Operation)
    }

    /// Returns the data segments up to the entry's end.
    fn pieces(&mut self) -> Result<Vec<Piece>, Malformed> {
        let mut pieces = Vec::new();
        while self.at < self.bytes.len() {
            let header = self
                .bytes
                .get(self.at..self.at + INLINE_HEADER_LEN)
                .ok_or(Malformed::Operation)?;
            let header = InlineHeader::read_from_bytes(header).map_err(|_| Malformed::Operation)?;
            if header.inline() {
                pieces.push(self.inline(header)?);
            } else {
                pieces.push(Piece::Memory(self.take()?));
            }
        }
        Ok(pieces)
    }

    fn inline(&mut self, header: InlineHeader) -> Result<Piece, Malformed> {
        let from = self.at + INLINE_HEADER_LEN;
        let len = usize::try_from(header.bytes()).map_err(|_| Malformed::Length)?;
        if len > BASIC_BLOCK_LEN - from % BASIC_BLOCK_LEN {
            return Err(Malformed::Length);
        }
        let bytes = self.bytes.get(from..from + len).ok_or(Malformed::Length)?;
        self.at = (from + len).next_multiple_of(SEGMENT_UNIT);
        Ok(Piece::Inline(bytes.to_vec()))
    }
}

/// Identity of an access: the protection domain, and whether it may use the reserved key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accessor {
    pub(crate) pd: u32,
    pub(crate) reserved_lkey: bool,
}

/// Memory by a data segment: a region, or bus addresses by the reserved key.
enum Target {
    Region(Checked),
    Bus(u64),
}

/// Finds the memory of a data segment, and checks that the queue pair may reach it so.
fn target(
    memory: &Memory,
    who: Accessor,
    segment: &DataSegment,
    right: Right,
) -> Result<Target, AccessError> {
    let (key, addr, len) = (
        segment.lkey.get(),
        segment.addr.get(),
        u64::from(segment.len.get()),
    );
    if key == RESERVED_LKEY && who.reserved_lkey {
        return Ok(Target::Bus(addr));
    }
    memory
        .check(key, who.pd, addr, len, right)
        .map(Target::Region)
}

/// Reads `len` bytes from `offset` on of a message's pieces.
pub(crate) fn gather(
    memory: &Memory,
    who: Accessor,
    pieces: &[Piece],
    offset: u32,
    len: u32,
) -> Result<Vec<u8>, AccessError> {
    let mut out = vec![0; len as usize];
    let mut done = 0;
    for (piece, range) in overlaps(pieces, u64::from(offset), u64::from(len)) {
        let count = usize::try_from(range.end - range.start).unwrap_or(0);
        let into = &mut out[done..done + count];
        match piece {
            Piece::Inline(bytes) => {
                let from = usize::try_from(range.start).unwrap_or(0);
                into.copy_from_slice(&bytes[from..from + count]);
            }
            Piece::Memory(segment) => {
                match target(memory, who, &part(segment, &range), Right::LocalRead)? {
                    Target::Region(region) => memory.region_read(&region, into)?,
                    Target::Bus(addr) => memory.read(Purpose::Payload, addr, into)?,
                }
            }
        }
        done += count;
    }
    Ok(out)
}

/// Writes bytes into a message's pieces from `offset` on. What does not fit is an access out of
/// bounds.
pub(crate) fn scatter(
    memory: &Memory,
    who: Accessor,
    pieces: &[Piece],
    offset: u32,
    bytes: &[u8],
) -> Result<(), AccessError> {
    let mut done = 0;
    for (piece, range) in overlaps(pieces, u64::from(offset), bytes.len() as u64) {
        let count = usize::try_from(range.end - range.start).unwrap_or(0);
        let Piece::Memory(segment) = piece else {
            return Err(AccessError::Right);
        };
        let from = &bytes[done..done + count];
        match target(memory, who, &part(segment, &range), Right::LocalWrite)? {
            Target::Region(region) => memory.region_write(&region, from)?,
            Target::Bus(addr) => memory.write(Purpose::Payload, addr, from)?,
        }
        done += count;
    }
    if done < bytes.len() {
        return Err(AccessError::Bounds {
            addr: u64::from(offset),
            len: bytes.len() as u64,
        });
    }
    Ok(())
}

/// Returns the pieces that a range of the message touches, each with the touched part.
fn overlaps(
    pieces: &[Piece],
    offset: u64,
    len: u64,
) -> impl Iterator<Item = (&Piece, std::ops::Range<u64>)> {
    let end = offset + len;
    let mut start = 0;
    pieces.iter().filter_map(move |piece| {
        let first = start;
        start += piece.len();
        let from = offset.max(first);
        let to = end.min(start);
        (from < to).then(|| (piece, from - first..to - first))
    })
}

fn part(segment: &DataSegment, range: &std::ops::Range<u64>) -> DataSegment {
    let len = u32::try_from(range.end - range.start).unwrap_or(u32::MAX);
    DataSegment::new(
        segment.addr.get().wrapping_add(range.start),
        len,
        segment.lkey.get(),
    )
}

/// Takes a receive entry apart: its pieces up to the one that ends the list.
pub(crate) fn receive_pieces(bytes: &[u8]) -> Vec<Piece> {
    bytes
        .chunks_exact(size_of::<DataSegment>())
        .filter_map(|chunk| DataSegment::read_from_bytes(chunk).ok())
        .take_while(|segment| segment.as_bytes()[..8] != DataSegment::end().as_bytes()[..8])
        .filter(|segment| segment.len.get() != 0 && segment.len.get() < 1 << 31)
        .map(Piece::Memory)
        .collect()
}

/// Bytes that a list of pieces holds.
pub(crate) fn capacity(pieces: &[Piece]) -> u64 {
    pieces.iter().map(Piece::len).sum()
}
