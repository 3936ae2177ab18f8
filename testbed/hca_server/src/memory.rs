//! A guest's memory, as the client lends it: mapped here, read and written on the device's behalf.
//!
//! Each access looks its address up under a lock, since firmware and guest remap at boot; no
//! pointer outlives the lock. Other processes (the guest's cores) touch the same bytes at the same
//! time, so all accesses are atomic ones of up to eight bytes: an aligned word is never torn, and a
//! copy is a row of words with no order promised within.
//!
//! A file is mapped once, whole, for all its ranges: an IOMMU of the guest's has memory mapped page
//! by page, which would be more mappings than Linux grants a process (`vm.max_map_count`, 65,530).
//!
//! A client that shrinks the file behind a mapping ends this process by SIGBUS; QEMU's
//! `memory-backend-memfd` seals its file against that.

// UNSAFETY: maps descriptors that a client lends, and reads and writes the mapped bytes.
#![expect(
    unsafe_code,
    reason = "guest memory is mapped into this process and shared with another"
)]

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Granule of mappings.
pub const PAGE: u64 = 4096;

/// An access that the memory map does not allow: `len` bytes at `address`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no memory lent for {len} bytes at {address:#x}")]
pub struct NotMapped {
    /// The first address that could not be reached.
    pub address: u64,
    /// Bytes of the access that remained.
    pub len: usize,
}

/// Memory lent by the client, by device address.
///
/// The lock is a leaf: nothing else is taken under it.
#[derive(Debug, Default)]
pub struct Memory {
    map: RwLock<Map>,
}

#[derive(Debug, Default)]
struct Map {
    /// By device address.
    mappings: BTreeMap<u64, Mapping>,
    /// Files that are mapped whole, by device, inode and whether they may be written.
    files: BTreeMap<(u64, u64, bool), Weak<Window>>,
}

/// One range. Without a window it is one the client named but gave no descriptor for (ROM, another
/// device's BAR).
#[derive(Debug)]
struct Mapping {
    size: u64,
    writable: bool,
    window: Option<View>,
}

/// The part of a window from `start` on that a mapping shows.
#[derive(Debug)]
struct View {
    window: Arc<Window>,
    start: usize,
}

/// A range of a descriptor, mapped for as long as this lives.
#[derive(Debug)]
struct Window {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a window is memory shared with other processes anyway; it is reached by atomic accesses
// alone.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Memory {
    /// Adds the range `[address, address + size)`, backed by `fd` from `offset` on.
    ///
    /// # Errors
    /// `EINVAL` for what is not page-aligned, empty, overflowing, or beyond the file's end;
    /// `EEXIST` for what overlaps a mapping; or `mmap`'s error.
    pub fn map(
        &self,
        address: u64,
        size: u64,
        writable: bool,
        fd: Option<(OwnedFd, u64)>,
    ) -> Result<(), Errno> {
        let end = address.checked_add(size).ok_or(Errno::INVAL)?;
        if size == 0 || !address.is_multiple_of(PAGE) || !size.is_multiple_of(PAGE) {
            return Err(Errno::INVAL);
        }
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((&start, last)) = map.mappings.range(..end).next_back()
            && start + last.size > address
        {
            return Err(Errno::EXIST);
        }
        let window = fd
            .map(|(fd, offset)| map.view(&fd, offset, size, writable))
            .transpose()?;
        map.mappings.insert(
            address,
            Mapping {
                size,
                writable,
                window,
            },
        );
        Ok(())
    }

    /// Removes all mappings within a range. A guest's IOMMU has a range unmapped at once that was
    /// mapped page by page, or not at all, as the kernel's VFIO takes it (Linux
    /// `drivers/vfio/vfio_iommu_type1.c`, `vfio_dma_do_unmap`).
    ///
    /// # Errors
    /// `EINVAL` for an empty or overflowing range, or one that would cut a mapping.
    pub fn unmap(&self, address: u64, size: u64) -> Result<(), Errno> {
        let end = address.checked_add(size).ok_or(Errno::INVAL)?;
        if size == 0 {
            return Err(Errno::INVAL);
        }
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let mappings = &mut map.mappings;
        let cut_at = |at: u64| {
            let before = mappings.range(..at).next_back();
            before.is_some_and(|(&start, mapping)| start + mapping.size > at)
        };
        if cut_at(address) || cut_at(end) {
            return Err(Errno::INVAL);
        }
        let within: Vec<u64> = mappings.range(address..end).map(|(&at, _)| at).collect();
        for at in within {
            mappings.remove(&at);
        }
        Ok(())
    }

    /// Removes all.
    pub fn clear(&self) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        *map = Map::default();
    }

    /// Reads guest memory; what was written before the last word read is seen by later accesses.
    ///
    /// # Errors
    /// [`NotMapped`]; what came before the gap has been read.
    ///
    /// A device waits for an answer before it acts on it, so the fence keeps later reads behind
    /// this one: an owner bit that was right vouches for what is read next.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), NotMapped> {
        let result = self.walk(address, into.len(), false, |window, offset, range| {
            window.read(offset, &mut into[range]);
        });
        fence(Ordering::Acquire);
        result
    }

    /// Writes guest memory, after all that was written before.
    ///
    /// # Errors
    /// [`NotMapped`]; what comes before the gap has been written.
    ///
    /// Posted writes reach memory in the order in which a device sends them (PCI Express Base
    /// specification 3.0, section 2.4.1), which is what lets drivers trust an owner bit that was
    /// written last.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), NotMapped> {
        fence(Ordering::Release);
        self.walk(address, from.len(), true, |window, offset, range| {
            window.write(offset, &from[range])
        })
    }

    /// Calls `each` with the windows that hold a range, the offset in each, and the part of the
    /// caller's buffer.
    fn walk(
        &self,
        address: u64,
        len: usize,
        write: bool,
        mut each: impl FnMut(&Window, usize, std::ops::Range<usize>),
    ) -> Result<(), NotMapped> {
        // Held for the copy, so that an unmap waits for it: the client frees the memory once that
        // is answered.
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < len {
            let gap = NotMapped {
                address: address.wrapping_add(done as u64),
                len: len - done,
            };
            let here = address.checked_add(done as u64).ok_or(gap)?;
            let (&start, mapping) = map.mappings.range(..=here).next_back().ok_or(gap)?;
            let left = mapping.size.saturating_sub(here - start);
            let view = mapping.window.as_ref().filter(|_| left > 0).ok_or(gap)?;
            if write && !mapping.writable {
                return Err(gap);
            }
            let offset = usize::try_from(here - start).map_err(|_| gap)?;
            let part = usize::try_from(left).map_or(len - done, |left| left.min(len - done));
            each(&view.window, view.start + offset, done..done + part);
            done += part;
        }
        Ok(())
    }
}

impl Map {
    /// Returns a range of a descriptor's file, which is mapped whole if it is not yet.
    fn view(
        &mut self,
        fd: &OwnedFd,
        offset: u64,
        size: u64,
        writable: bool,
    ) -> Result<View, Errno> {
        let stat = fstat(fd)?;
        let file = u64::try_from(stat.st_size).map_err(|_| Errno::INVAL)?;
        let end = offset.checked_add(size).filter(|&end| end <= file);
        let end = end.ok_or(Errno::INVAL)?;
        if !offset.is_multiple_of(PAGE) {
            return Err(Errno::INVAL);
        }
        // The inode's number stays the file's for as long as the window lives, which keeps it.
        let key = (stat.st_dev, stat.st_ino, writable);
        let known = self.files.get(&key).and_then(Weak::upgrade);
        let reaches = |window: &Arc<Window>| window.len as u64 >= end;
        if let Some(window) = known.filter(reaches) {
            let start = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
            return Ok(View { window, start });
        }
        let whole = file - file % PAGE;
        match Window::new(fd, 0, whole, writable) {
            Ok(window) => {
                let window = Arc::new(window);
                self.files.retain(|_, window| window.strong_count() > 0);
                self.files.insert(key, Arc::downgrade(&window));
                let start = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
                Ok(View { window, start })
            }
            // A file may be larger than what can be mapped of it.
            Err(_) => Ok(View {
                window: Arc::new(Window::new(fd, offset, size, writable)?),
                start: 0,
            }),
        }
    }
}

impl Window {
    /// Maps a range that is the file's.
    fn new(fd: &OwnedFd, offset: u64, size: u64, writable: bool) -> Result<Self, Errno> {
        let len = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        let rights = if writable {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other memory.
        let base = unsafe { mmap(ptr::null_mut(), len, rights, MapFlags::SHARED, fd, offset) }?;
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, len })
    }

    fn read(&self, mut offset: usize, mut into: &mut [u8]) {
        while !into.is_empty() {
            let (part, rest) = into.split_at_mut(step(offset, into.len()));
            match part.len() {
                8 => {
                    part.copy_from_slice(&self.word64(offset).load(Ordering::Relaxed).to_ne_bytes())
                }
                4 => {
                    part.copy_from_slice(&self.word32(offset).load(Ordering::Relaxed).to_ne_bytes())
                }
                _ => part[0] = self.byte(offset).load(Ordering::Relaxed),
            }
            offset += part.len();
            into = rest;
        }
    }

    fn write(&self, mut offset: usize, mut from: &[u8]) {
        while !from.is_empty() {
            let (part, rest) = from.split_at(step(offset, from.len()));
            if let Ok(word) = part.try_into() {
                self.word64(offset)
                    .store(u64::from_ne_bytes(word), Ordering::Relaxed);
            } else if let Ok(word) = part.try_into() {
                self.word32(offset)
                    .store(u32::from_ne_bytes(word), Ordering::Relaxed);
            } else {
                self.byte(offset).store(part[0], Ordering::Relaxed);
            }
            offset += part.len();
            from = rest;
        }
    }

    fn word64(&self, offset: usize) -> &AtomicU64 {
        let word = self.at(offset, 8);
        // SAFETY: `at` gave eight aligned bytes of the mapping, which only atomics reach and which
        // outlives `self`.
        unsafe { AtomicU64::from_ptr(word.cast()) }
    }

    fn word32(&self, offset: usize) -> &AtomicU32 {
        let word = self.at(offset, 4);
        // SAFETY: `at` gave four aligned bytes of the mapping, which only atomics reach and which
        // outlives `self`.
        unsafe { AtomicU32::from_ptr(word.cast()) }
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        let byte = self.at(offset, 1);
        // SAFETY: `at` gave a byte of the mapping, which only atomics reach and which outlives
        // `self`.
        unsafe { AtomicU8::from_ptr(byte) }
    }

    /// Returns the address of the `len` bytes at `offset`: within the mapping and aligned to `len`.
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let within = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(
            within && offset.is_multiple_of(len),
            "an access beyond its window"
        );
        // SAFETY: the assertion keeps the result within the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }
}

/// Returns the length of the next atomic access of a copy: the widest that the offset is aligned
/// for. Mappings are page-aligned.
fn step(offset: usize, len: usize) -> usize {
    [8, 4]
        .into_iter()
        .find(|&word| len >= word && offset.is_multiple_of(word))
        .unwrap_or(1)
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the range is what `mmap` gave, and no reference into it outlives a method of
        // `self`.
        let result = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        if let Err(error) = result {
            log::warn!("munmap of {} bytes: {error}", self.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    fn file(pages: u64) -> OwnedFd {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&fd, pages * PAGE).expect("ftruncate");
        fd
    }

    fn two_ranges() -> Memory {
        let memory = Memory::default();
        let fd = file(4);
        memory
            .map(0, 2 * PAGE, true, Some((fd.try_clone().expect("dup"), 0)))
            .expect("map");
        memory
            .map(2 * PAGE, 2 * PAGE, true, Some((fd, 2 * PAGE)))
            .expect("map");
        memory
    }

    #[test]
    fn a_copy_may_cross_from_one_mapping_to_the_next() {
        let memory = two_ranges();
        let text: Vec<u8> = (0..=255).collect();
        memory.write(2 * PAGE - 101, &text).expect("write");
        let mut back = vec![0; 256];
        memory.read(2 * PAGE - 101, &mut back).expect("read");
        assert_eq!(back, text);
    }

    #[test]
    fn an_access_past_the_end_names_where_it_stopped() {
        let memory = two_ranges();
        let gap = memory.write(4 * PAGE - 3, &[1; 8]);
        assert_eq!(
            gap,
            Err(NotMapped {
                address: 4 * PAGE,
                len: 5
            })
        );
        assert!(memory.read(u64::MAX - 3, &mut [0; 8]).is_err());
        assert!(memory.read(1 << 40, &mut [0; 1]).is_err());
    }

    #[test]
    fn ranges_that_overlap_or_exceed_their_file_are_refused() {
        let memory = two_ranges();
        assert_eq!(
            memory.map(PAGE, PAGE, true, Some((file(1), 0))),
            Err(Errno::EXIST)
        );
        assert_eq!(
            memory.map(8 * PAGE, 2 * PAGE, true, Some((file(1), 0))),
            Err(Errno::INVAL)
        );
        assert_eq!(
            memory.map(8 * PAGE, PAGE, true, Some((file(1), 8))),
            Err(Errno::INVAL)
        );
        assert_eq!(
            memory.map(8 * PAGE, PAGE, true, Some((file(1), u64::MAX - 4095))),
            Err(Errno::INVAL)
        );
        assert_eq!(
            memory.map(u64::MAX - 4095, 2 * PAGE, true, None),
            Err(Errno::INVAL)
        );
        assert_eq!(
            memory.map(8 * PAGE + 8, PAGE, true, None),
            Err(Errno::INVAL)
        );
    }

    #[test]
    fn unmapped_and_read_only_memory_is_out_of_reach() {
        let memory = two_ranges();
        for (address, size) in [(0, PAGE), (PAGE, 2 * PAGE), (0, 0), (PAGE, u64::MAX)] {
            assert_eq!(memory.unmap(address, size), Err(Errno::INVAL));
        }
        memory.unmap(0, 2 * PAGE).expect("unmap");
        assert!(memory.read(0, &mut [0; 4]).is_err());
        memory.map(0, PAGE, false, Some((file(1), 0))).expect("map");
        assert!(memory.read(0, &mut [0; 4]).is_ok());
        assert!(memory.write(0, &[0; 4]).is_err());
    }

    /// A guest's IOMMU maps memory so: in no order, page by page, more pages than a process may
    /// have mappings.
    #[test]
    fn a_file_is_mapped_once_for_all_its_pages() {
        const PAGES: u64 = 80_000;
        let (memory, fd) = (Memory::default(), file(PAGES));
        for page in 0..PAGES {
            let other = fd.try_clone().expect("dup");
            // The device's addresses go the other way than the file's.
            let address = (PAGES - 1 - page) * PAGE;
            memory
                .map(address, PAGE, true, Some((other, page * PAGE)))
                .expect("map");
        }
        memory.write(0, b"last").expect("write");
        let mut bytes = [0; 4];
        rustix::io::pread(&fd, &mut bytes, (PAGES - 1) * PAGE).expect("pread");
        assert_eq!(&bytes, b"last");
        memory.unmap(0, PAGES * PAGE).expect("unmap");
        assert!(
            memory
                .map
                .read()
                .expect("no panic")
                .files
                .values()
                .all(|file| file.strong_count() == 0)
        );
        // A file that has grown is mapped anew.
        memory
            .map(0, PAGE, true, Some((fd.try_clone().expect("dup"), 0)))
            .expect("map");
        ftruncate(&fd, (PAGES + 1) * PAGE).expect("ftruncate");
        memory
            .map(PAGE, PAGE, true, Some((fd, PAGES * PAGE)))
            .expect("map");
        memory.write(PAGE - 2, b"both").expect("write");
    }

    /// A guest's IOMMU does this when the guest drops a whole page table.
    #[test]
    fn a_range_is_unmapped_with_all_mappings_in_it() {
        let memory = two_ranges();
        memory.unmap(0, 1 << 30).expect("unmap");
        let mut byte = [0];
        for address in [0, 2 * PAGE] {
            assert!(memory.read(address, &mut byte).is_err());
        }
        memory.unmap(0, 1 << 30).expect("nothing is there");
        memory.map(0, 4 * PAGE, true, None).expect("map");
    }

    #[test]
    fn memory_named_without_a_descriptor_can_be_unmapped_but_not_reached() {
        let memory = Memory::default();
        memory.map(0, PAGE, true, None).expect("map");
        assert!(memory.read(0, &mut [0; 4]).is_err());
        memory.unmap(0, PAGE).expect("unmap");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(at in 0..2 * PAGE, text in prop::collection::vec(any::<u8>(), 0..64)) {
            let memory = two_ranges();
            memory.write(at, &text).unwrap();
            let mut back = vec![0; text.len()];
            memory.read(at, &mut back).unwrap();
            prop_assert_eq!(back, text);
        }
    }
}
