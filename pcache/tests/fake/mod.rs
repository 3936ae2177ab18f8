//! A machine for the cache, stricter than a real one: transfers end only when told to, and every rule of the traits is asserted.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test uses a part of it"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use pcache::{
    Backing, LINE_SIZE, LineId, Lines, MapFailed, Mapper, Page, RemoteAddr, RemoteStore, Source, Token,
    Unmapped,
};

#[derive(Clone, Copy)]
pub struct Pte {
    pub line: LineId,
    pub writable: bool,
    pub dirty: bool,
    pub accessed: bool,
}

#[derive(Clone)]
pub enum Transfer {
    Read {
        token: Token,
        from: RemoteAddr,
    },
    Write {
        token: Token,
        to: RemoteAddr,
        early: Vec<u8>,
    },
}

impl Transfer {
    pub fn token(&self) -> Token {
        match self {
            Self::Read { token, .. } | Self::Write { token, .. } => *token,
        }
    }
}

pub type Bytes = Vec<u8>;

#[derive(Default)]
pub struct State {
    pub tables: BTreeMap<Page, Pte>,
    pub lines: Vec<Bytes>,
    pub remote: BTreeMap<(u64, u64), Bytes>,
    pub exists: BTreeSet<Page>,
    pub transfers: Vec<Transfer>,
    pub most_transfers: usize,
}

/// Pages from this one on are a file's: their first bytes come from the caller.
pub const FILE: u64 = 1 << 20;

pub struct Fake(pub Mutex<State>);

impl Fake {
    pub fn new(lines: u32) -> Self {
        // What a line held before must never be seen.
        let lines = (0..lines).map(|_| vec![0xee; LINE_SIZE]).collect();
        Self(Mutex::new(State {
            lines,
            ..State::default()
        }))
    }

    pub fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The program reads or writes through its mapping; none if that faults.
    pub fn touch(&self, page: Page, offset: usize, write: Option<u64>) -> Option<u64> {
        let mut state = self.state();
        let State { tables, lines, .. } = &mut *state;
        let pte = tables.get_mut(&page)?;
        pte.accessed = true;
        let at = &mut lines[pte.line.0 as usize][offset..offset + 8];
        if let Some(value) = write {
            if !pte.writable {
                return None;
            }
            pte.dirty = true;
            at.copy_from_slice(&value.to_le_bytes());
        }
        Some(u64::from_le_bytes((&*at).try_into().unwrap()))
    }

    /// Carries out transfer `index`. A write takes the line's bytes as they were at its start if `early`, as they are now otherwise.
    pub fn carry_out(&self, index: usize, early: bool) -> Token {
        let mut state = self.state();
        let transfer = state.transfers.swap_remove(index);
        let token = transfer.token();
        let line = token.line().0 as usize;
        match transfer {
            Transfer::Read { from, .. } => {
                state.lines[line] = state.remote[&(from.key, from.addr)].clone();
            }
            Transfer::Write { to, early: bytes, .. } => {
                let bytes = if early { bytes } else { state.lines[line].clone() };
                state.remote.insert((to.key, to.addr), bytes);
            }
        }
        token
    }

    /// The owner of the layout gave the page's address to something new.
    pub fn forget(&self, page: Page) {
        self.state().exists.remove(&page);
    }
}

fn place(page: Page) -> RemoteAddr {
    RemoteAddr {
        addr: page.vpn.0,
        key: page.space.0,
    }
}

impl Backing for Fake {
    fn source(&self, page: Page) -> Source {
        if self.state().exists.contains(&page) {
            Source::Remote(place(page))
        } else if page.vpn.0 >= FILE {
            Source::Caller
        } else {
            Source::Zero
        }
    }
    fn place(&self, page: Page) -> Option<RemoteAddr> {
        Some(place(page))
    }
    fn written_back(&self, page: Page) {
        self.state().exists.insert(page);
    }
}

impl Mapper for Fake {
    /// Writable or not.
    type Rights = bool;
    fn map(&self, page: Page, line: LineId, writable: bool) -> Result<(), MapFailed> {
        let mut state = self.state();
        for (other, pte) in &state.tables {
            assert!(
                pte.line != line || *other == page,
                "{line:?} serves {other} and {page}"
            );
        }
        let old = state.tables.get(&page).copied();
        let dirty = old.is_some_and(|p| p.dirty);
        assert!(old.is_none_or(|p| p.line == line), "{page} is in two lines");
        state.tables.insert(
            page,
            Pte {
                line,
                writable,
                dirty,
                accessed: true,
            },
        );
        Ok(())
    }
    fn unmap(&self, page: Page) -> Unmapped {
        let pte = self
            .state()
            .tables
            .remove(&page)
            .expect("unmaps only what is mapped");
        Unmapped { dirty: pte.dirty }
    }
    fn take_accessed(&self, page: Page) -> bool {
        self.state()
            .tables
            .get_mut(&page)
            .is_some_and(|pte| std::mem::take(&mut pte.accessed))
    }
}

impl RemoteStore for Fake {
    fn start_read(&self, token: Token, line: LineId, from: RemoteAddr) {
        let mut state = self.state();
        assert!(
            state.remote.contains_key(&(from.key, from.addr)),
            "reads what was never written back"
        );
        state.start(line, Transfer::Read { token, from });
    }
    fn start_write(&self, token: Token, line: LineId, to: RemoteAddr) {
        let mut state = self.state();
        let early = state.lines[line.0 as usize].clone();
        for other in &state.transfers {
            if let Transfer::Write { to: busy, .. } = other {
                assert_ne!(*busy, to, "two writes to one place may land in any order");
            }
        }
        state.start(line, Transfer::Write { token, to, early });
    }
}

impl State {
    fn start(&mut self, line: LineId, transfer: Transfer) {
        assert!(
            self.transfers.iter().all(|t| t.token().line() != line),
            "two transfers of {line:?}"
        );
        self.transfers.push(transfer);
        self.most_transfers = self.most_transfers.max(self.transfers.len());
    }
}

impl Lines for Fake {
    fn read(&self, line: LineId, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.state().lines[line.0 as usize][offset..offset + into.len()]);
    }
    fn write(&self, line: LineId, offset: usize, from: &[u8]) {
        self.state().lines[line.0 as usize][offset..offset + from.len()].copy_from_slice(from);
    }
    fn zero(&self, line: LineId) {
        self.state().lines[line.0 as usize].fill(0);
    }
}
