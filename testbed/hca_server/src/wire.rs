//! vfio-user messages as bytes: a client's requests are parsed before anything acts on them.
//!
//! The protocol is VFIO's ioctls as messages over a Unix socket, all numbers in the host's byte
//! order (little endian here). Sources: QEMU `docs/interop/vfio-user.rst`, QEMU
//! `hw/vfio-user/protocol.h`, Linux `include/uapi/linux/vfio.h`.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Error;

/// Largest payload of one region or DMA access that we offer.
pub const MAX_DATA: u32 = 1 << 20;
/// Largest message we read: the largest data and its headers, rounded up.
pub const MAX_MESSAGE: u32 = MAX_DATA + 4096;
/// Most file descriptors in one message.
pub const MAX_FDS: usize = 16;
/// Length of [`Header`].
pub const HEADER_LEN: usize = size_of::<Header>();

/// A command number. Foreign, so any value may occur.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command(pub u16);

#[expect(missing_docs, reason = "the names are the specification's")]
impl Command {
    pub const VERSION: Self = Self(1);
    pub const DMA_MAP: Self = Self(2);
    pub const DMA_UNMAP: Self = Self(3);
    pub const GET_INFO: Self = Self(4);
    pub const GET_REGION_INFO: Self = Self(5);
    pub const GET_IRQ_INFO: Self = Self(7);
    pub const SET_IRQS: Self = Self(8);
    pub const REGION_READ: Self = Self(9);
    pub const REGION_WRITE: Self = Self(10);
    pub const RESET: Self = Self(13);
    pub const WRITE_MULTI: Self = Self(15);
}

/// Header of each message.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Chosen by the sender of a command; the reply repeats it.
    pub id: U16,
    /// See [`Command`].
    pub command: U16,
    /// Length of the message in bytes, this header included.
    pub size: U32,
    /// `FLAG_` bits.
    pub flags: U32,
    /// Errno of a reply that has [`FLAG_ERROR`].
    pub error: U32,
}
const _: () = assert!(HEADER_LEN == 16);

/// Low four bits of the flags: 0 is a command, 1 a reply.
pub const FLAG_TYPE: u32 = 0xf;
/// The type of a reply.
pub const FLAG_REPLY: u32 = 1;
/// The sender wants no reply: a posted write.
pub const FLAG_NO_REPLY: u32 = 1 << 4;
/// The reply carries an errno.
pub const FLAG_ERROR: u32 = 1 << 5;

impl Header {
    /// Returns the command's number.
    #[must_use]
    pub fn command(&self) -> Command {
        Command(self.command.get())
    }

    /// Returns the length of the body that follows the header.
    ///
    /// # Errors
    /// [`Error::MessageSize`] if the size is less than a header's or beyond [`MAX_MESSAGE`]: the
    /// stream can't be followed any further.
    pub fn body_len(&self) -> Result<usize, Error> {
        let size = self.size.get();
        let body = usize::try_from(size)
            .ok()
            .and_then(|size| size.checked_sub(HEADER_LEN));
        match body {
            Some(body) if size <= MAX_MESSAGE => Ok(body),
            _ => Err(Error::MessageSize { size }),
        }
    }
}

/// Body of DMA_MAP, and with `offset` left out of DMA_UNMAP.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DmaMap {
    /// Length the client has room for.
    pub argsz: U32,
    /// Bit 0: readable by the device. Bit 1: writable.
    pub flags: U32,
    /// Offset of the memory in the descriptor's file.
    pub offset: U64,
    /// The device's address of it.
    pub address: U64,
    /// Its length.
    pub size: U64,
}
const _: () = assert!(size_of::<DmaMap>() == 32);

/// Body of DMA_UNMAP.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DmaUnmap {
    /// Length the client has room for.
    pub argsz: U32,
    /// Bit 1: everything, whatever the address and size.
    pub flags: U32,
    /// The device's address of the mapping.
    pub address: U64,
    /// Its length.
    pub size: U64,
}
const _: () = assert!(size_of::<DmaUnmap>() == 24);

/// Bit of [`DmaUnmap::flags`]: all mappings (`VFIO_DMA_UNMAP_FLAG_ALL`).
pub const UNMAP_ALL: u32 = 1 << 1;

/// Body of GET_INFO, both ways.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeviceInfo {
    /// Length the client has room for.
    pub argsz: U32,
    /// Bit 0: can be reset. Bit 1: a PCI device.
    pub flags: U32,
    /// Number of regions.
    pub num_regions: U32,
    /// Number of interrupt kinds.
    pub num_irqs: U32,
}

/// Body of GET_REGION_INFO, both ways.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegionInfo {
    /// Length the client has room for.
    pub argsz: U32,
    /// Bit 0: readable. Bit 1: writable.
    pub flags: U32,
    /// Number of the region; see [`Region`].
    pub index: U32,
    /// Offset of the first capability; unused without the capability flag.
    pub cap_offset: U32,
    /// Length of the region; 0 if there is none.
    pub size: U64,
    /// Offset of the region in a descriptor; unused as no region can be mapped.
    pub offset: U64,
}
const _: () = assert!(size_of::<RegionInfo>() == 32);

/// Body of GET_IRQ_INFO, both ways.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IrqInfo {
    /// Length the client has room for.
    pub argsz: U32,
    /// Bit 0: by eventfd. Bits 1 and 2: maskable, masks itself. Bit 3: the set can't grow while in
    /// use.
    pub flags: U32,
    /// Kind of interrupt; see [`Irq`].
    pub index: U32,
    /// Number of vectors of that kind.
    pub count: U32,
}

/// Body of SET_IRQS before its data.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SetIrqs {
    /// Length of the message.
    pub argsz: U32,
    /// One `IRQ_DATA_` and one `IRQ_ACTION_` bit.
    pub flags: U32,
    /// Kind of interrupt; see [`Irq`].
    pub index: U32,
    /// The first vector.
    pub start: U32,
    /// Number of vectors.
    pub count: U32,
}
const _: () = assert!(size_of::<SetIrqs>() == 20);

/// Bits of [`SetIrqs::flags`] (Linux `VFIO_IRQ_SET_*`).
pub const IRQ_DATA_NONE: u32 = 1;
/// See [`IRQ_DATA_NONE`].
pub const IRQ_DATA_EVENTFD: u32 = 1 << 2;
/// See [`IRQ_DATA_NONE`].
pub const IRQ_ACTION_MASK: u32 = 1 << 3;
/// See [`IRQ_DATA_NONE`].
pub const IRQ_ACTION_UNMASK: u32 = 1 << 4;
/// See [`IRQ_DATA_NONE`].
pub const IRQ_ACTION_TRIGGER: u32 = 1 << 5;
/// All bits that say what the data is.
pub const IRQ_DATA: u32 = 7;
/// All bits that say what to do.
pub const IRQ_ACTION: u32 = IRQ_ACTION_MASK | IRQ_ACTION_UNMASK | IRQ_ACTION_TRIGGER;

/// Body of REGION_READ and REGION_WRITE before the data.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegionAccess {
    /// Offset in the region.
    pub offset: U64,
    /// Number of the region; see [`Region`].
    pub region: U32,
    /// Number of bytes.
    pub count: U32,
}
const _: () = assert!(size_of::<RegionAccess>() == 16);

/// One write of WRITE_MULTI, of at most 8 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MultiWrite {
    /// Place of the write.
    pub access: RegionAccess,
    /// The first `access.count` of these.
    pub data: [u8; 8],
}
const _: () = assert!(size_of::<MultiWrite>() == 24);

/// A PCI device's regions (Linux `VFIO_PCI_*_REGION_INDEX`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Region {
    /// A base address register's memory: 0 to 5.
    Bar(u8),
    /// Configuration space.
    Config,
    /// Expansion ROM, VGA, or a number VFIO does not know: there is none here.
    None(u32),
}

impl Region {
    /// Number of region numbers that the device answers for.
    pub const COUNT: u32 = 9;

    /// Returns the region of that number.
    #[must_use]
    pub fn from_index(index: u32) -> Self {
        match (index, u8::try_from(index)) {
            (0..=5, Ok(bar)) => Self::Bar(bar),
            (7, _) => Self::Config,
            _ => Self::None(index),
        }
    }
}

/// Kinds of interrupt (Linux `VFIO_PCI_*_IRQ_INDEX`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Irq {
    /// The INTx pin.
    Intx,
    /// MSI-X.
    Msix,
    /// The notice of an unrecoverable error. QEMU warns about a device without it.
    Error,
    /// MSI, the device-request notice, or a number VFIO does not know: there is none here.
    None(u32),
}

impl Irq {
    /// Number of interrupt kinds that the device answers for.
    pub const COUNT: u32 = 5;

    /// Returns the kind of that number.
    #[must_use]
    pub fn from_index(index: u32) -> Self {
        match index {
            0 => Self::Intx,
            2 => Self::Msix,
            3 => Self::Error,
            _ => Self::None(index),
        }
    }
}

/// Command of a client.
#[derive(Debug)]
pub enum Request<'a> {
    /// The first message: which version of the protocol.
    Version {
        /// Major version; ours is 0.
        major: u16,
    },
    /// Lends guest memory; a descriptor may come with it.
    DmaMap(DmaMap),
    /// Takes memory back.
    DmaUnmap(DmaUnmap),
    /// Asks for the device's kind and its numbers of regions and interrupts.
    Info(DeviceInfo),
    /// Asks for a region's size and rights.
    RegionInfo(RegionInfo),
    /// Asks for the number of interrupts of a kind.
    IrqInfo(IrqInfo),
    /// Connects interrupts to eventfds.
    SetIrqs(SetIrqs),
    /// Reads a region.
    Read(RegionAccess),
    /// Writes a region; exactly `count` bytes.
    Write(RegionAccess, &'a [u8]),
    /// Several small writes, in order.
    WriteMulti(&'a [MultiWrite]),
    /// Resets the device.
    Reset,
    /// A command we do not know.
    Unknown(Command),
}

impl<'a> Request<'a> {
    /// Parses the body of a command.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the body is too short for its command or its inner counts exceed it.
    pub fn parse(command: Command, body: &'a [u8]) -> Result<Self, Error> {
        Ok(match command {
            Command::VERSION => {
                let (version, _json) = prefix::<[U16; 2]>(command, body)?;
                Self::Version {
                    major: version[0].get(),
                }
            }
            Command::DMA_MAP => Self::DmaMap(prefix(command, body)?.0),
            Command::DMA_UNMAP => Self::DmaUnmap(prefix(command, body)?.0),
            Command::GET_INFO => Self::Info(prefix(command, body)?.0),
            Command::GET_REGION_INFO => Self::RegionInfo(prefix(command, body)?.0),
            Command::GET_IRQ_INFO => Self::IrqInfo(prefix(command, body)?.0),
            Command::SET_IRQS => Self::SetIrqs(prefix(command, body)?.0),
            Command::REGION_READ => Self::Read(prefix(command, body)?.0),
            Command::REGION_WRITE => {
                let (access, data) = prefix::<RegionAccess>(command, body)?;
                let data = usize::try_from(access.count.get())
                    .ok()
                    .and_then(|count| data.get(..count));
                Self::Write(access, data.ok_or_else(|| malformed(command, body))?)
            }
            Command::WRITE_MULTI => {
                let (count, writes) = prefix::<U64>(command, body)?;
                let count = usize::try_from(count.get()).map_err(|_| malformed(command, body))?;
                let (writes, _) = <[MultiWrite]>::ref_from_prefix_with_elems(writes, count)
                    .map_err(|_| malformed(command, body))?;
                if writes.iter().any(|write| write.access.count.get() > 8) {
                    return Err(malformed(command, body));
                }
                Self::WriteMulti(writes)
            }
            Command::RESET => Self::Reset,
            unknown => Self::Unknown(unknown),
        })
    }
}

fn malformed(command: Command, body: &[u8]) -> Error {
    Error::Malformed {
        command: command.0,
        len: body.len(),
    }
}

fn prefix<T: FromBytes>(command: Command, body: &[u8]) -> Result<(T, &[u8]), Error> {
    T::read_from_prefix(body).map_err(|_| malformed(command, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `struct vfio_irq_set` and the message header, bytes as QEMU 11 sent them when a guest
    /// enabled two vectors.
    #[test]
    fn set_irqs_is_little_endian() {
        let body = [
            20, 0, 0, 0, 0x24, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0,
        ];
        let Ok(Request::SetIrqs(set)) = Request::parse(Command::SET_IRQS, &body) else {
            panic!("not SET_IRQS")
        };
        assert_eq!(set.flags.get(), IRQ_DATA_EVENTFD | IRQ_ACTION_TRIGGER);
        assert_eq!(
            (
                Irq::from_index(set.index.get()),
                set.start.get(),
                set.count.get()
            ),
            (Irq::Msix, 0, 2)
        );
    }

    #[test]
    fn a_write_longer_than_its_message_is_refused() {
        let access = RegionAccess {
            offset: U64::new(0),
            region: U32::new(0),
            count: U32::new(5),
        };
        let mut body = access.as_bytes().to_vec();
        body.extend([1, 2, 3, 4]);
        assert!(matches!(
            Request::parse(Command::REGION_WRITE, &body),
            Err(Error::Malformed {
                command: 10,
                len: 20
            })
        ));
    }

    #[test]
    fn a_multi_write_of_more_than_it_carries_is_refused() {
        for count in [1, 2, u64::MAX / 24, u64::MAX] {
            let mut body = count.to_le_bytes().to_vec();
            body.extend([0; 23]);
            assert!(
                Request::parse(Command::WRITE_MULTI, &body).is_err(),
                "{count}"
            );
        }
    }

    #[test]
    fn sizes_that_lose_the_stream_are_errors() {
        for (size, body) in [
            (0, None),
            (15, None),
            (16, Some(0)),
            (MAX_MESSAGE, Some(0x10_0ff0)),
            (MAX_MESSAGE + 1, None),
        ] {
            let header = Header {
                id: U16::new(1),
                command: U16::new(1),
                size: U32::new(size),
                flags: U32::new(0),
                error: U32::new(0),
            };
            assert_eq!(header.body_len().ok(), body, "{size}");
        }
    }

    proptest! {
        #[test]
        fn no_body_panics(command in 0u16..20, body in prop::collection::vec(any::<u8>(), 0..128)) {
            if let Ok(Request::Write(access, data)) = Request::parse(Command(command), &body) {
                prop_assert_eq!(access.count.get() as usize, data.len());
            }
        }
    }
}
