//! Answers one request of a client: checks it, calls the function, and forms the answer.
//!
//! Sources of what a client wants to see: QEMU 11 `hw/vfio-user/{device,proxy,container}.c`; what
//! QEMU does with it was tried out.

use std::os::fd::OwnedFd;

use log::{debug, info};
use rustix::io::Errno;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::Function;
use crate::irq::Vectors;
use crate::layout::Layout;
use crate::memory::Memory;
use crate::wire::{
    self, DeviceInfo, DmaMap, DmaUnmap, Irq, IrqInfo, MAX_DATA, Region, RegionAccess, RegionInfo,
    Request, SetIrqs,
};

/// Our side of VERSION: version 0.0 (QEMU 11 refuses a minor version above its own), and what we
/// can take.
const CAPABILITIES: &str = concat!(
    r#"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535,"#,
    r#""pgsizes":4096,"write_multiple":true}}"#,
    "\0"
);

/// One client's device: the function and what the client lent it.
pub struct Session<'a> {
    function: &'a dyn Function,
    layout: Layout,
    memory: &'a Memory,
    vectors: &'a Vectors,
}

impl<'a> Session<'a> {
    /// Begins with no memory lent and no vector connected.
    pub fn new(function: &'a dyn Function, memory: &'a Memory, vectors: &'a Vectors) -> Self {
        Self {
            function,
            layout: function.layout(),
            memory,
            vectors,
        }
    }

    /// Carries out one request and gives the body of its reply.
    ///
    /// # Errors
    /// The errno to reply. The connection goes on.
    pub fn answer(&self, request: &Request<'_>, fds: Vec<OwnedFd>) -> Result<Vec<u8>, Errno> {
        match request {
            Request::Version { major: 0 } => {
                let mut body = [U16::new(0); 2].as_bytes().to_vec();
                body.extend(CAPABILITIES.as_bytes());
                Ok(body)
            }
            Request::Version { major } => {
                info!("the client speaks version {major}, not 0");
                Err(Errno::NOTSUP)
            }
            Request::DmaMap(map) => self.dma_map(map, fds),
            Request::DmaUnmap(unmap) => self.dma_unmap(unmap),
            Request::Info(info) => Ok(device_info(info)),
            Request::RegionInfo(info) => self.region_info(info),
            Request::IrqInfo(info) => self.irq_info(info),
            Request::SetIrqs(set) => self.set_irqs(set, fds),
            Request::Read(access) => self.read(access),
            Request::Write(access, data) => self.write(access, data),
            Request::WriteMulti(writes) => {
                for write in *writes {
                    let count =
                        usize::try_from(write.access.count.get()).map_err(|_| Errno::INVAL)?;
                    self.write(&write.access, write.data.get(..count).ok_or(Errno::INVAL)?)?;
                }
                Ok(U64::new(writes.len() as u64).as_bytes().to_vec())
            }
            Request::Reset => {
                self.function.reset();
                Ok(Vec::new())
            }
            Request::Unknown(command) => {
                debug!("command {} is not served", command.0);
                Err(Errno::NOSYS)
            }
        }
    }

    fn dma_map(&self, map: &DmaMap, fds: Vec<OwnedFd>) -> Result<Vec<u8>, Errno> {
        let writable = map.flags.get() & 2 != 0;
        let fd = fds.into_iter().next().map(|fd| (fd, map.offset.get()));
        debug!(
            "map {:#x}+{:#x} fd {} writable {writable}",
            map.address,
            map.size,
            fd.is_some()
        );
        self.memory
            .map(map.address.get(), map.size.get(), writable, fd)?;
        Ok(Vec::new())
    }

    fn dma_unmap(&self, unmap: &DmaUnmap) -> Result<Vec<u8>, Errno> {
        debug!(
            "unmap {:#x}+{:#x} flags {:#x}",
            unmap.address, unmap.size, unmap.flags
        );
        match unmap.flags.get() {
            0 => self.memory.unmap(unmap.address.get(), unmap.size.get())?,
            wire::UNMAP_ALL => self.memory.clear(),
            _ => return Err(Errno::INVAL),
        }
        Ok(unmap.as_bytes().to_vec())
    }

    fn region_info(&self, info: &RegionInfo) -> Result<Vec<u8>, Errno> {
        let index = info.index.get();
        if index >= Region::COUNT {
            return Err(Errno::INVAL);
        }
        let size = self.region_size(Region::from_index(index));
        let flags = if size == 0 { 0 } else { 3 };
        let answer = RegionInfo {
            argsz: len32::<RegionInfo>(),
            flags: U32::new(flags),
            index: info.index,
            cap_offset: U32::new(0),
            size: U64::new(size),
            offset: U64::new(0),
        };
        Ok(answer.as_bytes().to_vec())
    }

    fn irq_info(&self, info: &IrqInfo) -> Result<Vec<u8>, Errno> {
        let index = info.index.get();
        if index >= Irq::COUNT {
            return Err(Errno::INVAL);
        }
        let irq = Irq::from_index(index);
        // By eventfd; INTx is maskable and masks itself; MSI-X does not grow while in use.
        let flags = match irq {
            Irq::Intx => 0b0111,
            Irq::Msix => 0b1001,
            Irq::Error => 0b0001,
            Irq::None(_) => 0,
        };
        let answer = IrqInfo {
            argsz: len32::<IrqInfo>(),
            flags: U32::new(flags),
            index: info.index,
            count: U32::new(self.irq_count(irq)),
        };
        Ok(answer.as_bytes().to_vec())
    }

    /// Carries out SET_IRQS. The error notice is accepted and ignored: nothing raises it.
    fn set_irqs(&self, set: &SetIrqs, fds: Vec<OwnedFd>) -> Result<Vec<u8>, Errno> {
        let irq = Irq::from_index(set.index.get());
        let (start, count) = (set.start.get(), set.count.get());
        if start
            .checked_add(count)
            .is_none_or(|end| end > self.irq_count(irq))
        {
            return Err(Errno::INVAL);
        }
        let to_usize = |number: u32| usize::try_from(number).map_err(|_| Errno::INVAL);
        let (start, count) = (to_usize(start)?, to_usize(count)?);
        let known = match irq {
            Irq::Msix => self.set_vectors(set.flags.get(), start, count, fds),
            Irq::Intx => self.set_pin(set.flags.get(), count, fds)?,
            Irq::Error | Irq::None(_) => true,
        };
        if known {
            Ok(Vec::new())
        } else {
            Err(Errno::INVAL)
        }
    }

    fn set_vectors(&self, flags: u32, start: usize, count: usize, fds: Vec<OwnedFd>) -> bool {
        const NONE: u32 = wire::IRQ_DATA_NONE | wire::IRQ_ACTION_TRIGGER;
        const EVENTFD: u32 = wire::IRQ_DATA_EVENTFD | wire::IRQ_ACTION_TRIGGER;
        match flags {
            NONE if count == 0 => {
                self.vectors.clear();
                true
            }
            NONE => {
                (start..start + count)
                    .filter_map(|n| u16::try_from(n).ok())
                    .for_each(|n| self.vectors.raise(n));
                true
            }
            EVENTFD if fds.is_empty() => self.vectors.disconnect(start, count),
            EVENTFD if fds.len() == count => self.vectors.connect(start, fds),
            _ => false,
        }
    }

    /// Sets the pin's eventfds. A trigger without data disconnects the client if it names no
    /// interrupt, and is not served otherwise.
    fn set_pin(&self, flags: u32, count: usize, fds: Vec<OwnedFd>) -> Result<bool, Errno> {
        let (data, action) = (flags & wire::IRQ_DATA, flags & wire::IRQ_ACTION);
        let pin = &self.vectors.pin;
        let fd = fds.into_iter().next();
        match (data, action) {
            (wire::IRQ_DATA_NONE, wire::IRQ_ACTION_TRIGGER) if count == 0 => {
                pin.unmask_by(None)?;
                pin.connect(None);
            }
            (wire::IRQ_DATA_EVENTFD, wire::IRQ_ACTION_TRIGGER) => pin.connect(fd),
            (wire::IRQ_DATA_NONE, wire::IRQ_ACTION_MASK) => pin.mask(true),
            (wire::IRQ_DATA_NONE, wire::IRQ_ACTION_UNMASK) => pin.mask(false),
            (wire::IRQ_DATA_EVENTFD, wire::IRQ_ACTION_UNMASK) => pin.unmask_by(fd)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read(&self, access: &RegionAccess) -> Result<Vec<u8>, Errno> {
        let (region, offset) = self.check(access)?;
        let count = usize::try_from(access.count.get()).map_err(|_| Errno::INVAL)?;
        let mut body = access.as_bytes().to_vec();
        let header = body.len();
        body.resize(header + count, 0);
        // A read is answered before any later request is looked at, and writes without a reply are
        // taken in the order of the stream: the order that a PCI bus gives to one core's accesses.
        match region {
            Region::Bar(bar) => self.function.bar_read(bar, offset, &mut body[header..]),
            Region::Config => {
                let offset = u16::try_from(offset).map_err(|_| Errno::INVAL)?;
                self.function.config_read(offset, &mut body[header..]);
            }
            Region::None(_) => return Err(Errno::INVAL),
        }
        Ok(body)
    }

    fn write(&self, access: &RegionAccess, data: &[u8]) -> Result<Vec<u8>, Errno> {
        let (region, offset) = self.check(access)?;
        match region {
            Region::Bar(bar) => self.function.bar_write(bar, offset, data),
            Region::Config => {
                let offset = u16::try_from(offset).map_err(|_| Errno::INVAL)?;
                self.function.config_write(offset, data);
            }
            Region::None(_) => return Err(Errno::INVAL),
        }
        Ok(access.as_bytes().to_vec())
    }

    /// Returns the region and offset of an access, if it lies within its region.
    fn check(&self, access: &RegionAccess) -> Result<(Region, u64), Errno> {
        let region = Region::from_index(access.region.get());
        let (offset, count) = (access.offset.get(), access.count.get());
        let within = offset
            .checked_add(count.into())
            .is_some_and(|end| end <= self.region_size(region));
        if within && count <= MAX_DATA {
            Ok((region, offset))
        } else {
            Err(Errno::INVAL)
        }
    }

    fn region_size(&self, region: Region) -> u64 {
        match region {
            Region::Bar(bar) => self.layout.bars.get(usize::from(bar)).copied().unwrap_or(0),
            Region::Config => self.layout.config.into(),
            Region::None(_) => 0,
        }
    }

    fn irq_count(&self, irq: Irq) -> u32 {
        match irq {
            Irq::Msix => self.layout.vectors.into(),
            Irq::Intx | Irq::Error => 1,
            Irq::None(_) => 0,
        }
    }
}

fn device_info(_: &DeviceInfo) -> Vec<u8> {
    let answer = DeviceInfo {
        argsz: len32::<DeviceInfo>(),
        flags: U32::new(3),
        num_regions: U32::new(Region::COUNT),
        num_irqs: U32::new(Irq::COUNT),
    };
    answer.as_bytes().to_vec()
}

fn len32<T>() -> U32 {
    U32::new(u32::try_from(size_of::<T>()).expect("a message body's size"))
}
