//! Pseudo-terminals: `/dev/ptmx` gives a master, whose terminal is `/dev/pts/N`.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::{Name, Side, Terminal, Terminals};
use crate::error::{Result, errno};
use crate::object::{Object, POLL_HUP, POLL_IN, POLL_OUT, POLL_RDNORM, POLL_WRNORM};
use crate::wait::WaitQueue;

/// Pseudo-terminals at most (Linux allows 4,096, and this many by default in a container).
const MAX_PTYS: u32 = 1024;
/// The number of `/dev/ptmx`: 5:2.
pub(crate) const PTMX: u64 = 0x502;

/// The master of a pseudo-terminal.
#[derive(Debug)]
pub(crate) struct Master {
    terminal: Arc<Terminal>,
    number: u32,
}

impl Master {
    /// Makes a pseudo-terminal, locked.
    ///
    /// # Errors
    ///
    /// ENOSPC if there are too many.
    pub(crate) fn new(terminals: &Arc<Terminals>) -> Result<Self> {
        let mut ptys = terminals.ptys.lock();
        let number = (0..MAX_PTYS)
            .find(|number| !ptys.contains_key(number))
            .ok_or(errno::ENOSPC)?;
        let terminal = Arc::new(Terminal::new(terminals.clone(), Name::Pty(number)));
        terminal.state.lock().locked = true;
        ptys.insert(number, Arc::downgrade(&terminal));
        Ok(Self { terminal, number })
    }
}

impl Terminal {
    /// Locks a pty, or lets it be opened.
    pub(crate) fn lock(&self, locked: bool) {
        self.state.lock().locked = locked;
    }

    pub(crate) fn is_locked(&self) -> bool {
        self.state.lock().locked
    }

    /// Returns whether all that had it open have closed it.
    fn is_left(&self) -> bool {
        self.state.lock().was_used && self.users.load(Ordering::Acquire) == 0
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.terminal.terminals.ptys.lock().remove(&self.number);
        self.terminal.hang_up();
    }
}

impl Object for Master {
    fn read(&self, into: &mut [u8]) -> Result<usize> {
        let mut bytes = Vec::new();
        let count = self.terminal.take_output(&mut bytes, into.len());
        if count == 0 && !into.is_empty() {
            // As on Linux, where there is no end of file.
            let error = if self.terminal.is_left() {
                errno::EIO
            } else {
                errno::EAGAIN
            };
            return Err(error.into());
        }
        into[..count].copy_from_slice(&bytes);
        Ok(count)
    }
    fn write(&self, from: &[u8]) -> Result<usize> {
        match self.terminal.type_bytes(from) {
            0 if !from.is_empty() => Err(errno::EAGAIN.into()),
            count => Ok(count),
        }
    }
    fn ready(&self) -> u16 {
        let left = self.terminal.is_left();
        let state = self.terminal.state.lock();
        let output = !state.output.is_empty() && !state.discipline.stopped();
        let input = if output { POLL_IN | POLL_RDNORM } else { 0 };
        let room = if state.discipline.has_room() {
            POLL_OUT | POLL_WRNORM
        } else {
            0
        };
        input | room | if left { POLL_HUP } else { 0 }
    }
    fn queue(&self) -> &WaitQueue {
        &self.terminal.other_end
    }
    fn mode(&self) -> u32 {
        0o020_666
    }
    fn readable(&self) -> usize {
        self.terminal.unshown()
    }
    fn device(&self) -> u64 {
        PTMX
    }
    fn as_terminal(&self) -> Option<(&Arc<Terminal>, Side)> {
        Some((&self.terminal, Side::Master))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::Tty;

    #[test]
    fn a_master_types_and_shows_until_all_have_left() {
        let terminals = Arc::<Terminals>::default();
        let master = Master::new(&terminals).unwrap();
        let second = Master::new(&terminals).unwrap();
        assert_eq!((master.number, second.number), (0, 1));
        let terminal = terminals.pty(0).unwrap();
        assert!(Tty::open(&terminal).is_err(), "locked");
        terminal.lock(false);
        let mut into = [0; 100];
        assert_eq!(
            master.read(&mut into),
            Err(errno::EAGAIN.into()),
            "nobody came yet"
        );
        let tty = Tty::open(&terminal).unwrap();
        assert_eq!(master.write(b"hi\n"), Ok(3));
        assert_eq!((tty.read(&mut into), &into[..3]), (Ok(3), &b"hi\n"[..]));
        assert_eq!(tty.write(b"out"), Ok(3));
        drop(tty);
        assert_eq!(
            (master.read(&mut into), &into[..7]),
            (Ok(7), &b"hi\r\nout"[..])
        );
        assert_eq!(master.read(&mut into), Err(errno::EIO.into()));
        assert_eq!(master.ready() & POLL_HUP, POLL_HUP);
        let tty = Tty::open(&terminal).unwrap();
        drop(master);
        assert_eq!(tty.read(&mut into), Ok(0));
        assert!(terminals.pty(0).is_none() && terminals.pty(1).is_some());
    }
}
