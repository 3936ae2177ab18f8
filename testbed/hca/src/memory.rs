//! Host memory as the card reaches it: by bus address, through ICM, through MTTs, and through
//! memory keys.

use std::cell::Cell;
use std::sync::Arc;

use mlx4_hw::bits::QueueBuffer;
use mlx4_hw::mpt::{HwKey, MPT_STATUS_FREE, MPT_STATUS_SOFTWARE, Mpt};
use mlx4_hw::mtt::{ENTRY_LEN, MttEntry};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::icm::IcmMap;
use crate::pin::Pin;
use crate::trace::{Direction, Event, Purpose, Tracer};
use crate::{DmaError, Host};

/// The key that reaches bus addresses directly, for queue pairs that may use it (the value
/// QUERY_DEV_CAP answers).
pub(crate) const RESERVED_LKEY: u32 = 0x700;

/// Reason for which an access through a memory key fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("no region has key {0:#x}")]
    Key(u32),
    #[error("the region of key {0:#x} is of another protection domain")]
    Domain(u32),
    #[error("{len} bytes at {addr:#x} leave the region")]
    Bounds { addr: u64, len: u64 },
    #[error("the region does not allow this access")]
    Right,
    #[error("no page behind {0:#x}")]
    Page(u64),
    #[error(transparent)]
    Dma(#[from] DmaError),
}

/// Right that an access needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    LocalRead,
    LocalWrite,
    RemoteRead,
    RemoteWrite,
    RemoteAtomic,
}

/// Places of the MTT and MPT in ICM (from INIT_HCA).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tables {
    pub(crate) mtt: u64,
    pub(crate) mpt: u64,
    pub(crate) log_mpts: u8,
}

/// A queue's buffer: MTT entries and where in the first page it begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RingMemory {
    pub(crate) buffer: QueueBuffer,
    pub(crate) offset: u64,
}

/// A memory region that an access was checked against.
pub(crate) struct Checked {
    mpt: Mpt,
    addr: u64,
}

/// The node's memory and the ways to it.
pub(crate) struct Memory {
    host: Option<Arc<dyn Host>>,
    pub(crate) icm: IcmMap,
    pub(crate) tables: Tables,
    pub(crate) tracer: Tracer,
    pub(crate) pin: Pin,
    /// Whether the card may reach the host at all.
    pub(crate) masters_bus: Cell<bool>,
    reads: Cell<u64>,
    writes: Cell<u64>,
}

impl Memory {
    pub(crate) fn new(host: Option<Arc<dyn Host>>, tracer: Tracer) -> Self {
        Self {
            host,
            icm: IcmMap::default(),
            tables: Tables::default(),
            tracer,
            pin: Pin::default(),
            masters_bus: Cell::new(true),
            reads: Cell::new(0),
            writes: Cell::new(0),
        }
    }

    pub(crate) fn set_host(&mut self, host: Option<Arc<dyn Host>>) {
        self.host = host;
    }

    /// Forgets what a reset forgets.
    pub(crate) fn reset(&mut self) {
        self.icm = IcmMap::default();
        self.tables = Tables::default();
        self.set_pin(self.pin.set_pending(false));
    }

    /// Returns the numbers of DMA reads and writes so far.
    pub(crate) fn accesses(&self) -> (u64, u64) {
        (self.reads.get(), self.writes.get())
    }

    /// Interrupts the node: by a message, or by the pin while MSI-X is off.
    pub(crate) fn raise(&self, vector: u16) {
        if !self.pin.has_messages() {
            self.set_pin(self.pin.set_pending(true));
            return;
        }
        // A message is a write to memory like any other: without bus mastering it can't leave the
        // card.
        if !self.masters_bus.get() {
            return;
        }
        self.tracer.record(|| Event::Interrupt { vector });
        if let Some(host) = &self.host {
            host.raise(vector);
        }
    }

    /// Tells the node of the pin's new level, if there is one.
    pub(crate) fn set_pin(&self, changed: Option<bool>) {
        let Some(asserted) = changed else { return };
        self.tracer.record(|| Event::Pin { asserted });
        if let Some(host) = &self.host {
            host.set_pin(asserted);
        }
    }

    pub(crate) fn read(
        &self,
        purpose: Purpose,
        addr: u64,
        into: &mut [u8],
    ) -> Result<(), DmaError> {
        self.reads.set(self.reads.get() + 1);
        let result = match &self.host {
            Some(host) if self.masters_bus.get() => host.dma_read(addr, into),
            _ => Err(DmaError {
                addr,
                len: into.len(),
            }),
        };
        self.tracer.record(|| Event::Dma {
            direction: Direction::Read,
            purpose,
            addr,
            bytes: into,
            done: result.is_ok(),
        });
        result
    }

    pub(crate) fn write(&self, purpose: Purpose, addr: u64, from: &[u8]) -> Result<(), DmaError> {
        self.writes.set(self.writes.get() + 1);
        let result = match &self.host {
            Some(host) if self.masters_bus.get() => host.dma_write(addr, from),
            _ => Err(DmaError {
                addr,
                len: from.len(),
            }),
        };
        self.tracer.record(|| Event::Dma {
            direction: Direction::Write,
            purpose,
            addr,
            bytes: from,
            done: result.is_ok(),
        });
        result
    }

    /// Reads a structure at a bus address.
    pub(crate) fn read_as<T: FromBytes + IntoBytes>(
        &self,
        purpose: Purpose,
        addr: u64,
    ) -> Result<T, DmaError> {
        let mut value = T::new_zeroed();
        self.read(purpose, addr, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Reads ICM, page by page: neighbours there need not be neighbours in host memory.
    pub(crate) fn icm_read(
        &self,
        purpose: Purpose,
        mut icm: u64,
        mut into: &mut [u8],
    ) -> Result<(), AccessError> {
        while !into.is_empty() {
            let (bus, run) = self.icm.translate(icm).ok_or(AccessError::Page(icm))?;
            let len = into.len().min(usize::try_from(run).unwrap_or(usize::MAX));
            let (now, rest) = into.split_at_mut(len);
            self.read(purpose, bus, now)?;
            icm += len as u64;
            into = rest;
        }
        Ok(())
    }

    pub(crate) fn icm_write(
        &self,
        purpose: Purpose,
        mut icm: u64,
        mut from: &[u8],
    ) -> Result<(), AccessError> {
        while !from.is_empty() {
            let (bus, run) = self.icm.translate(icm).ok_or(AccessError::Page(icm))?;
            let len = from.len().min(usize::try_from(run).unwrap_or(usize::MAX));
            let (now, rest) = from.split_at(len);
            self.write(purpose, bus, now)?;
            icm += len as u64;
            from = rest;
        }
        Ok(())
    }

    /// Returns whether every page of an ICM range is mapped.
    pub(crate) fn icm_is_mapped(&self, icm: u64, len: u64) -> bool {
        let mut at = icm;
        let end = icm.saturating_add(len);
        while at < end {
            match self.icm.translate(at) {
                Some((_, run)) => at = at.saturating_add(run),
                None => return false,
            }
        }
        true
    }

    /// Runs `access` over the bus ranges behind `len` bytes at `at` of a run of MTT entries: each
    /// with its bus address and its place in the range.
    fn over_pages(
        &self,
        mtt_offset: u64,
        log_page: u32,
        mut at: u64,
        len: usize,
        mut access: impl FnMut(u64, core::ops::Range<usize>) -> Result<(), DmaError>,
    ) -> Result<(), AccessError> {
        let page = 1_u64
            .checked_shl(log_page)
            .filter(|page| *page >= 512)
            .ok_or(AccessError::Page(at))?;
        let mut done = 0;
        while done < len {
            let within = at % page;
            let run = usize::try_from(page - within)
                .unwrap_or(usize::MAX)
                .min(len - done);
            let entry = (at / page)
                .checked_mul(ENTRY_LEN)
                .and_then(|entry| entry.checked_add(mtt_offset))
                .and_then(|entry| entry.checked_add(self.tables.mtt))
                .ok_or(AccessError::Page(at))?;
            // Read at each use. A card caches entries, and a driver that changes one under a valid
            // object would not be found out here; ours changes none that an object names.
            let mut raw = [0; 8];
            self.icm_read(Purpose::Mtt, entry, &mut raw)?;
            let base = MttEntry::read_from_bytes(&raw)
                .ok()
                .and_then(MttEntry::addr)
                .ok_or(AccessError::Page(at))?;
            access((base & !(page - 1)).wrapping_add(within), done..done + run)?;
            done += run;
            at = at.wrapping_add(run as u64);
        }
        Ok(())
    }

    /// Reads from a queue's buffer.
    pub(crate) fn ring_read(
        &self,
        purpose: Purpose,
        ring: RingMemory,
        at: u64,
        into: &mut [u8],
    ) -> Result<(), AccessError> {
        let (mtt, log_page) = (ring.buffer.mtt_offset(), u32::from(ring.buffer.log_page()));
        let len = into.len();
        self.over_pages(mtt, log_page, ring.offset + at, len, |bus, range| {
            self.read(purpose, bus, &mut into[range])
        })
    }

    /// Reads from a queue's buffer what may never be used; the counters leave it out.
    pub(crate) fn read_ahead(
        &self,
        ring: RingMemory,
        at: u64,
        into: &mut [u8],
    ) -> Result<(), AccessError> {
        let counted = self.reads.get();
        let result = self.ring_read(Purpose::ReadAhead, ring, at, into);
        self.reads.set(counted);
        result
    }

    /// Writes to a queue's buffer.
    pub(crate) fn ring_write(
        &self,
        purpose: Purpose,
        ring: RingMemory,
        at: u64,
        from: &[u8],
    ) -> Result<(), AccessError> {
        let (mtt, log_page) = (ring.buffer.mtt_offset(), u32::from(ring.buffer.log_page()));
        self.over_pages(mtt, log_page, ring.offset + at, from.len(), |bus, range| {
            self.write(purpose, bus, &from[range])
        })
    }

    /// Returns the ICM address of a key's MPT entry.
    pub(crate) fn mpt_place(&self, index: u32) -> u64 {
        let mask = 1_u64
            .checked_shl(u32::from(self.tables.log_mpts))
            .unwrap_or(0)
            .wrapping_sub(1);
        self.tables
            .mpt
            .wrapping_add((u64::from(index) & mask).wrapping_mul(size_of::<Mpt>() as u64))
    }

    /// Returns the entry of a key, if it is valid and the key is its own.
    pub(crate) fn mpt(&self, key: u32) -> Result<Mpt, AccessError> {
        let wanted = HwKey::from_key(key);
        let mut mpt = Mpt::new_zeroed();
        self.icm_read(
            Purpose::Mpt,
            self.mpt_place(wanted.index()),
            mpt.as_mut_bytes(),
        )?;
        let dead = matches!(mpt.flags.status(), MPT_STATUS_SOFTWARE | MPT_STATUS_FREE);
        if dead || mpt.key != wanted {
            return Err(AccessError::Key(key));
        }
        Ok(mpt)
    }

    /// Checks an access of `len` bytes at `addr` by a queue pair of protection domain `pd`.
    pub(crate) fn check(
        &self,
        key: u32,
        pd: u32,
        addr: u64,
        len: u64,
        right: Right,
    ) -> Result<Checked, AccessError> {
        let mpt = self.mpt(key)?;
        // The order of checks decides only which error the log names: the peer gets one and the
        // same NAK.
        if mpt.pd.pd() != pd {
            return Err(AccessError::Domain(key));
        }
        let allowed = match right {
            Right::LocalRead => mpt.flags.local_read(),
            Right::LocalWrite => mpt.flags.local_write(),
            Right::RemoteRead => mpt.flags.remote_read(),
            Right::RemoteWrite => mpt.flags.remote_write(),
            Right::RemoteAtomic => mpt.flags.atomic(),
        };
        if !allowed {
            return Err(AccessError::Right);
        }
        let everything = mpt.mtt_flags.len_64();
        let inside = addr
            .checked_sub(mpt.start.get())
            .and_then(|from| from.checked_add(len))
            .is_some_and(|end| everything || end <= mpt.len.get());
        if !inside {
            return Err(AccessError::Bounds { addr, len });
        }
        Ok(Checked { mpt, addr })
    }

    /// Reads from a region.
    pub(crate) fn region_read(&self, region: &Checked, into: &mut [u8]) -> Result<(), AccessError> {
        let len = into.len();
        self.over_region(region, len, |bus, range| {
            self.read(Purpose::Payload, bus, &mut into[range])
        })
    }

    /// Writes to a region.
    pub(crate) fn region_write(&self, region: &Checked, from: &[u8]) -> Result<(), AccessError> {
        self.over_region(region, from.len(), |bus, range| {
            self.write(Purpose::Payload, bus, &from[range])
        })
    }

    /// Runs `access` over the bus ranges behind `len` bytes of a checked region.
    fn over_region(
        &self,
        region: &Checked,
        len: usize,
        mut access: impl FnMut(u64, core::ops::Range<usize>) -> Result<(), DmaError>,
    ) -> Result<(), AccessError> {
        let mpt = &region.mpt;
        if mpt.flags.physical() {
            return Ok(access(region.addr, 0..len)?);
        }
        let log_page = mpt.log_page.get();
        let page = 1_u64
            .checked_shl(log_page)
            .ok_or(AccessError::Page(region.addr))?;
        // The first page holds the start at the start's own offset, unless another one is given.
        let first = if mpt.mtt_flags.first_byte_enable() {
            u64::from(mpt.first_byte_offset.get())
        } else {
            mpt.start.get() % page
        };
        let at = (region.addr - mpt.start.get())
            .checked_add(first)
            .ok_or(AccessError::Page(region.addr))?;
        self.over_pages(mpt.mtt_offset.get(), log_page, at, len, access)
    }
}
