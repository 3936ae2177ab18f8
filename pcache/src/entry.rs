//! Page-table entries: what the leaf entry of a page says of where the page is.
//!
//! ```text
//!            63  52 51                        12 11   10   9  8     5 4 3 2 1 0
//!  present   NX     frame                        soft obj cow    D A   . U W 1     x86-64 (SDM 3A, table 5-20)
//!  remote    0      slot, inverted               0    obj cow        X W R 1 0
//!  empty     0                                                                 0
//! ```
//!
//! The bits 9 to 11 of a present entry are ignored by the CPU and carry our marks. The slot of a
//! remote entry is stored inverted, so that the address which a CPU may speculatively read for a
//! not-present entry (L1TF; Linux `arch/x86/include/asm/pgtable-invert.h`) lies beyond all memory.

use bitflags::bitflags;

use crate::Slot;

bitflags! {
    /// Rights over a page, by Linux's numbers (`PROT_READ` 1, `PROT_WRITE` 2, `PROT_EXEC` 4).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Rights: u8 {
        /// Loads.
        const READ = 1;
        /// Stores.
        const WRITE = 2;
        /// Instruction fetches.
        const EXEC = 4;
    }
}

/// A kind of access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

impl Rights {
    /// Returns whether the access is allowed; on x86-64 what may be written or executed may be
    /// read.
    #[must_use]
    pub const fn allow(self, access: Access) -> bool {
        match access {
            Access::Read => !self.is_empty(),
            Access::Write => self.contains(Self::WRITE),
            Access::Execute => self.contains(Self::EXEC),
        }
    }
}

/// A leaf entry's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pte(pub u64);

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const COW: u64 = 1 << 9;
const OBJECT: u64 = 1 << 10;
const SOFT_WRITE: u64 = 1 << 11;
const NO_EXECUTE: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const REMOTE: u64 = 1 << 1;
const RIGHTS_SHIFT: u32 = 2;
const RIGHTS_MASK: u64 = 7 << RIGHTS_SHIFT;
const SLOT_SHIFT: u32 = 12;

const READ: u64 = Rights::READ.bits() as u64;
const WRITE: u64 = Rights::WRITE.bits() as u64;
const EXEC: u64 = Rights::EXEC.bits() as u64;

/// Returns bit `from` of `bits` in the place of bit `to`. Without branches: rights are converted
/// twice a miss.
const fn moved(bits: u64, from: u64, to: u64) -> u64 {
    let (low, high) = (from.trailing_zeros(), to.trailing_zeros());
    if low < high {
        (bits & from) << (high - low)
    } else {
        (bits & from) >> (low - high)
    }
}

impl Pte {
    /// The entry of a page that was never touched.
    pub const EMPTY: Self = Self(0);

    /// Returns the entry of a page whose bytes are in `slot`.
    #[must_use]
    pub fn remote(slot: Slot, rights: Rights) -> Self {
        Self(
            !(slot.raw() << SLOT_SHIFT) & FRAME | u64::from(rights.bits()) << RIGHTS_SHIFT | REMOTE,
        )
    }

    /// Returns the entry of a page that lies in the frame at physical address `frame`.
    #[must_use]
    pub fn present(frame: u64, rights: Rights) -> Self {
        Self(frame & FRAME | PRESENT | Self(0).rights_bits(rights))
    }

    /// Returns the entry with the marks (copy-on-write, of an object) of `other`.
    #[must_use]
    pub fn with_marks_of(self, other: Self) -> Self {
        let marked = Self(self.0 | other.0 & (COW | OBJECT));
        if marked.is_present() {
            marked.with_rights(marked.rights())
        } else {
            marked
        }
    }

    /// Returns the entry marked copy-on-write: a store copies the page first.
    #[must_use]
    pub fn with_cow(self) -> Self {
        let marked = Self(self.0 | COW);
        if marked.is_present() {
            Self(marked.0 & !WRITABLE)
        } else {
            marked
        }
    }

    /// Returns the entry without the copy-on-write mark.
    #[must_use]
    pub fn without_cow(self) -> Self {
        let plain = Self(self.0 & !COW);
        if plain.is_present() {
            plain.with_rights(plain.rights())
        } else {
            plain
        }
    }

    /// Returns the entry marked as a page of a shared object, which owns the slot.
    #[must_use]
    pub const fn with_object(self) -> Self {
        Self(self.0 | OBJECT)
    }

    /// Returns the entry with the accessed mark set or cleared.
    #[must_use]
    pub const fn with_accessed(self, accessed: bool) -> Self {
        if accessed {
            Self(self.0 | ACCESSED)
        } else {
            Self(self.0 & !ACCESSED)
        }
    }

    /// Returns a non-empty entry with other rights; marks, frame or slot stay.
    #[must_use]
    pub fn with_rights(self, rights: Rights) -> Self {
        if self.is_present() {
            Self(self.0 & !(USER | WRITABLE | SOFT_WRITE | NO_EXECUTE) | self.rights_bits(rights))
        } else {
            Self(self.0 & !RIGHTS_MASK | u64::from(rights.bits()) << RIGHTS_SHIFT)
        }
    }

    /// Returns the bits of a present entry with these rights and this entry's marks.
    fn rights_bits(self, rights: Rights) -> u64 {
        let bits = u64::from(rights.bits());
        let user = if bits == 0 { 0 } else { USER };
        let writable = moved(bits, WRITE, WRITABLE) & !moved(self.0, COW, WRITABLE);
        user | writable | moved(bits, WRITE, SOFT_WRITE) | moved(!bits, EXEC, NO_EXECUTE)
    }

    /// Returns whether the page was never touched.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns whether a frame is mapped.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// Returns whether the page's bytes are in a slot.
    #[must_use]
    pub const fn is_remote(self) -> bool {
        self.0 & (PRESENT | REMOTE) == REMOTE
    }

    /// Returns the frame of a present entry.
    #[must_use]
    pub const fn frame(self) -> u64 {
        self.0 & FRAME
    }

    /// Returns the slot of a remote entry.
    #[must_use]
    pub const fn slot(self) -> Slot {
        Slot::from_raw((!self.0 & FRAME) >> SLOT_SHIFT)
    }

    /// Returns the rights, as if no copy-on-write mark narrowed them.
    #[must_use]
    pub fn rights(self) -> Rights {
        if !self.is_present() {
            return Rights::from_bits_truncate((self.0 >> RIGHTS_SHIFT).to_le_bytes()[0] & 7);
        }
        let bits = moved(self.0, USER, READ)
            | moved(self.0, SOFT_WRITE, WRITE)
            | moved(!self.0, NO_EXECUTE, EXEC);
        Rights::from_bits_truncate(bits.to_le_bytes()[0])
    }

    /// Returns whether a store copies the page first.
    #[must_use]
    pub const fn is_cow(self) -> bool {
        self.0 & COW != 0
    }

    /// Returns whether a shared object owns the slot.
    #[must_use]
    pub const fn is_object(self) -> bool {
        self.0 & OBJECT != 0
    }

    /// Returns whether the CPU has written through the entry.
    #[must_use]
    pub const fn is_dirty(self) -> bool {
        self.is_present() && self.0 & DIRTY != 0
    }

    /// Returns whether the CPU has used the entry.
    #[must_use]
    pub const fn is_accessed(self) -> bool {
        self.is_present() && self.0 & ACCESSED != 0
    }

    /// Returns whether a present entry lets the CPU do `access` now, copy-on-write considered.
    #[must_use]
    pub fn permits(self, access: Access) -> bool {
        let (of, must) = match access {
            Access::Read => (0, 0),
            Access::Write => (WRITABLE, WRITABLE),
            Access::Execute => (NO_EXECUTE, 0),
        };
        self.0 & (PRESENT | USER | of) == PRESENT | USER | must
    }

    /// Returns whether a program may execute a present entry's page.
    #[must_use]
    pub const fn is_executable(self) -> bool {
        self.0 & NO_EXECUTE == 0
    }

    /// Returns the remote entry that a present one becomes when its line leaves for `slot`.
    #[must_use]
    pub fn to_remote(self, slot: Slot) -> Self {
        Self::remote(slot, self.rights()).with_marks_of(self)
    }

    /// Returns the present entry that a remote one becomes when `frame` holds its bytes.
    #[must_use]
    pub fn to_present(self, frame: u64) -> Self {
        let marks = Self(self.0 & (COW | OBJECT));
        Self(frame & FRAME | PRESENT | marks.0 | marks.rights_bits(self.rights()))
    }
}

/// The place of one leaf entry in a page table.
///
/// The CPU sets accessed and dirty marks at any time, so every change is one atomic step.
pub trait Entry: Copy + Send + Sync {
    /// Loads the entry.
    fn load(self) -> Pte;
    /// Replaces `old` by `new`.
    ///
    /// # Errors
    ///
    /// Returns the value found instead of `old`.
    fn exchange(self, old: Pte, new: Pte) -> Result<(), Pte>;
    /// Returns the entry `distance` pages on, if the same table holds it.
    fn neighbour(self, distance: i64) -> Option<Self>;

    /// Returns the first entry from this one on that is not empty, and how many pages it lies
    /// behind this one; `None` if the `count` entries from this one on, or those to the table's
    /// end, are all empty.
    fn first_used(self, count: usize) -> Option<(usize, Self)> {
        let at = |skipped: usize| self.neighbour(i64::try_from(skipped).ok()?);
        (0..count)
            .map_while(|skipped| Some((skipped, at(skipped)?)))
            .find(|(_, entry)| !entry.load().is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChunkId;
    use proptest::prelude::*;

    #[test]
    fn present_entries_are_those_of_the_cpu() {
        // SDM volume 3A, table 5-20: present, writable, user, and no-execute in bit 63.
        let read = Pte::present(0x1234_5000, Rights::READ);
        assert_eq!(read.0 & !(COW | OBJECT | SOFT_WRITE), 0x8000_0000_1234_5005);
        let all = Pte::present(0x1234_5000, Rights::all());
        assert_eq!(all.0 & !SOFT_WRITE, 0x1234_5007);
        assert_eq!(
            Pte::present(0x1000, Rights::empty()).0,
            0x8000_0000_0000_1001
        );
    }

    #[test]
    fn remote_entries_point_beyond_all_memory() {
        let entry = Pte::remote(Slot::new(ChunkId(3), 7), Rights::READ);
        assert_eq!(entry.0 & 1, 0);
        assert!(entry.0 & FRAME > 1 << 50, "{:#x}", entry.0);
    }

    proptest! {
        #[test]
        fn an_entry_survives_leaving_and_coming_back(
            chunk in 0u32..Slot::MAX_CHUNKS, page in 0u64..512, frame in 0u64..1 << 36,
            bits in 0u8..8, cow: bool, object: bool,
        ) {
            let (slot, rights) = (Slot::new(ChunkId(chunk), page), Rights::from_bits_truncate(bits));
            let mut entry = Pte::present(frame << 12, rights);
            if cow {
                entry = entry.with_cow();
            }
            if object {
                entry = entry.with_object();
            }
            // The CPU can't forbid reading what may be written or executed.
            let seen = if bits == 0 { rights } else { rights | Rights::READ };
            prop_assert_eq!(entry.rights(), seen);
            prop_assert_eq!(entry.permits(Access::Write), seen.contains(Rights::WRITE) && !cow);
            let remote = entry.to_remote(slot);
            prop_assert!(remote.is_remote() && !remote.is_empty() && !remote.is_present());
            prop_assert_eq!(
                (remote.slot(), remote.rights(), remote.is_cow(), remote.is_object()),
                (slot, seen, cow, object)
            );
            prop_assert_eq!(remote.to_present(frame << 12), entry);
            let narrowed = entry.with_rights(Rights::READ);
            prop_assert_eq!(narrowed.to_remote(slot), remote.with_rights(Rights::READ));
        }
    }
}
