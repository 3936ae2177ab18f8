//! What P asks of M: processes, their address spaces, and the windows that back them.
//!
//! M keeps the VMAs, chooses addresses and commits memory strictly: what a program may touch is backed by a chunk before
//! the reply leaves, or the call fails with ENOMEM. A mapping without any right commits nothing until a
//! [`Protect`] gives it one. `brk` is P's own affair: it grows by [`Map`] with
//! [`MapFlags::FIXED_NOREPLACE`] and shrinks by [`Unmap`].
//!
//! Contents are zero only where the program never wrote: a chunk is zeroed when it comes back to the pool, but a
//! range mapped again inside a window that stayed backed may hold old bytes. P fills a page never written back
//! with zeroes itself, so it never sees them.

use verbs::RemoteAddr;

use crate::wire::{calls, wire_flags, wire_handle, wire_struct};
use crate::{Reader, WINDOW_SIZE, Wire, WireError, Writer};

/// The most windows in one reply; more are fetched by [`Windows`].
pub const MAX_WINDOWS: usize = 128;

/// M's handle of a process. Only the peer that made it can use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(pub u64);
wire_handle!(ProcessId);

bitflags::bitflags! {
    /// Rights of a mapping, by Linux's numbers (`PROT_READ` 1, `PROT_WRITE` 2, `PROT_EXEC` 4).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Prot: u8 {
        /// Loads.
        const READ = 1;
        /// Stores.
        const WRITE = 2;
        /// Instruction fetches.
        const EXEC = 4;
    }

    /// How a mapping is placed.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct MapFlags: u8 {
        /// Exactly at the hint; what is there is unmapped first.
        const FIXED = 1;
        /// Exactly at the hint, or EEXIST if anything is there.
        const FIXED_NOREPLACE = 2;
    }
}

wire_flags!(Prot, "the rights of a mapping");
wire_flags!(MapFlags, "the flags of a mapping");

wire_struct! {
    /// Makes a process.
    ProcessCreateRequest {
        /// The process's number at P, for logs.
        pid: u32,
    }
}

wire_struct! {
    /// Maps anonymous memory.
    MapRequest {
        /// Whose.
        process: ProcessId,
        /// Where, page aligned; 0 for no wish. Without a FIXED flag it is only a wish.
        hint: u64,
        /// Bytes; rounded up to pages.
        len: u64,
        /// The rights.
        prot: Prot,
        /// The placement.
        flags: MapFlags,
    }
}

wire_struct! {
    /// A range of a process's addresses.
    RangeRequest {
        /// Whose.
        process: ProcessId,
        /// The first byte, page aligned.
        address: u64,
        /// Bytes; rounded up to pages.
        len: u64,
    }
}

wire_struct! {
    /// Changes the rights of mapped memory.
    ProtectRequest {
        /// Whose.
        process: ProcessId,
        /// The first byte, page aligned.
        address: u64,
        /// Bytes; rounded up to pages.
        len: u64,
        /// The new rights.
        prot: Prot,
    }
}

wire_struct! {
    /// Asks for the backed windows of a range of windows.
    WindowsRequest {
        /// Whose.
        process: ProcessId,
        /// The first window's index.
        first: u32,
        /// How many windows the range has.
        count: u32,
    }
}

wire_struct! {
    /// Names a process.
    ProcessRequest {
        /// Which.
        process: ProcessId,
    }
}

wire_struct! {
    /// One backed window.
    Window {
        /// Its place in the address space: address / [`WINDOW_SIZE`].
        index: u32,
        /// The chunk: offset *o* of the window is at `chunk.addr + o`.
        chunk: RemoteAddr,
    }
}

impl Window {
    /// The first address of the window.
    #[must_use]
    pub fn base(&self) -> u64 {
        u64::from(self.index) * WINDOW_SIZE
    }
}

wire_struct! {
    /// A run of windows.
    WindowRun {
        /// The first window's index.
        first: u32,
        /// How many.
        count: u32,
    }
}

/// Backed windows, in rising order of index.
///
/// As a reply it holds at most [`MAX_WINDOWS`]; `more` says that the rest must be fetched by [`Windows`].
#[derive(Clone, PartialEq, Eq)]
pub struct WindowList {
    windows: [Window; MAX_WINDOWS],
    len: usize,
    /// Whether the reply had no room for all.
    pub more: bool,
}

impl core::fmt::Debug for WindowList {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("WindowList")
            .field("windows", &self.as_slice())
            .field("more", &self.more)
            .finish()
    }
}

impl Default for WindowList {
    fn default() -> Self {
        let none = Window {
            index: 0,
            chunk: RemoteAddr::default(),
        };
        Self {
            windows: [none; MAX_WINDOWS],
            len: 0,
            more: false,
        }
    }
}

impl WindowList {
    /// The windows.
    #[must_use]
    pub fn as_slice(&self) -> &[Window] {
        &self.windows[..self.len]
    }

    /// Appends a window; if the list is full it sets `more` instead.
    pub fn push(&mut self, window: Window) {
        match self.windows.get_mut(self.len) {
            Some(place) => {
                *place = window;
                self.len += 1;
            }
            None => self.more = true,
        }
    }
}

impl Wire<'_> for WindowList {
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
        self.more.put(to)?;
        u16::try_from(self.len).expect("at most MAX_WINDOWS").put(to)?;
        self.as_slice().iter().try_for_each(|window| window.put(to))
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let more = bool::take(from)?;
        let len = usize::from(u16::take(from)?);
        if len > MAX_WINDOWS {
            return Err(WireError::StringTooLong {
                len,
                limit: MAX_WINDOWS,
            });
        }
        let mut list = Self::default();
        for _ in 0..len {
            list.push(Window::take(from)?);
        }
        list.more = more;
        Ok(list)
    }
}

/// Where a mapping went, and what now backs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// The first byte.
    pub address: u64,
    /// The windows that this call newly backed.
    pub windows: WindowList,
}

impl Wire<'_> for Mapped {
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
        self.address.put(to)?;
        self.windows.put(to)
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            address: u64::take(from)?,
            windows: WindowList::take(from)?,
        })
    }
}

calls! {
    /// A request to M.
    MemoryRequest:
    /// Makes a process with an empty address space.
    ProcessCreate = 1, "p2m_process_create": ProcessCreateRequest => ProcessId;
    /// Maps memory; the reply names the windows that this call newly backed.
    Map = 2, "p2m_mmap": MapRequest => Mapped;
    /// Unmaps a range; all windows of the reply's run are without a chunk now. P has dropped its lines of the
    /// range, and their write-backs have ended, before it asks.
    Unmap = 3, "p2m_munmap": RangeRequest => WindowRun;
    /// Changes rights; the reply names the windows that this call newly backed.
    Protect = 4, "p2m_mprotect": ProtectRequest => WindowList;
    /// Ends a process and takes all its memory back.
    ProcessEnd = 5, "p2m_process_end": ProcessRequest => ();
    /// Lists the backed windows of a range, when a reply had no room for all.
    Windows = 6, "p2m_windows": WindowsRequest => WindowList;
}
