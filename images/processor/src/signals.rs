//! What a process keeps of signals: actions, mask, alternate stack. Handlers are not called yet.

use crate::error::{Error, Exit, Result, errno};

/// Bytes of the kernel's `struct sigaction` on x86-64: handler, flags, restorer, mask.
pub(crate) const ACTION_SIZE: usize = 32;

const SIG_IGN: u64 = 1;
const SIGKILL: u8 = 9;
const SIGSTOP: u8 = 19;
/// SIGCHLD, SIGCONT, the stops of a terminal (there is none to continue from), SIGURG, SIGWINCH.
const IGNORED: [u8; 8] = [17, 18, 19, 20, 21, 22, 23, 28];

const fn bit(signal: u8) -> u64 {
    1 << (signal - 1)
}

/// A process's signals.
#[derive(Debug)]
pub(crate) struct Signals {
    actions: [[u8; ACTION_SIZE]; 64],
    pub(crate) mask: u64,
    pub(crate) pending: u64,
    /// `stack_t` as given; disabled at first (`SS_DISABLE` is 2).
    pub(crate) alternate: [u64; 3],
}

impl Signals {
    pub(crate) fn new() -> Self {
        Self {
            actions: [[0; ACTION_SIZE]; 64],
            mask: 0,
            pending: 0,
            alternate: [0, 2, 0],
        }
    }

    /// A signal's number as the table knows it.
    pub(crate) fn number(raw: u64) -> Result<u8> {
        u8::try_from(raw)
            .ok()
            .filter(|n| (1..=64).contains(n))
            .ok_or_else(|| errno::EINVAL.into())
    }

    /// The action of `signal`.
    pub(crate) fn action(&mut self, signal: u8) -> &mut [u8; ACTION_SIZE] {
        &mut self.actions[usize::from(signal) - 1]
    }

    /// Whether a program may change what `signal` does.
    pub(crate) fn changeable(signal: u8) -> bool {
        signal != SIGKILL && signal != SIGSTOP
    }

    /// Changes the mask; SIGKILL and SIGSTOP cannot be blocked. Signals that waited for it come now.
    pub(crate) fn set_mask(&mut self, mask: u64) -> Result<()> {
        self.mask = mask & !bit(SIGKILL) & !bit(SIGSTOP);
        let due = self.pending & !self.mask;
        self.pending &= self.mask;
        for signal in (1..=64).filter(|&n| due & bit(n) != 0) {
            self.send(signal)?;
        }
        Ok(())
    }

    /// The program gets `signal`, with its default effect unless it is ignored or blocked.
    pub(crate) fn send(&mut self, signal: u8) -> Result<()> {
        let blocked = self.mask & bit(signal) != 0;
        let action = self.action(signal);
        let handler = u64::from_le_bytes(*action.first_chunk().expect("eight of 32 bytes"));
        if blocked {
            self.pending |= bit(signal);
            return Ok(());
        }
        if (Self::changeable(signal) && handler == SIG_IGN) || IGNORED.contains(&signal) {
            return Ok(());
        }
        if handler > SIG_IGN {
            log::warn!("signal {signal} has a handler, which is not called yet: it ends the program");
        }
        Err(Error::Ended(Exit::Signal(signal)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_signal_waits_for_its_unblocking() {
        let mut signals = Signals::new();
        signals.set_mask(u64::MAX).unwrap();
        signals.send(6).unwrap();
        assert_eq!(signals.set_mask(0), Err(Error::Ended(Exit::Signal(6))));
        assert_eq!(Exit::Signal(6).status(), 134);
    }

    #[test]
    fn ignored_signals_do_nothing_but_kill_does() {
        let mut signals = Signals::new();
        signals.action(15)[0] = 1;
        assert_eq!(signals.send(15), Ok(()));
        assert_eq!(signals.send(17), Ok(()));
        signals.set_mask(u64::MAX).unwrap();
        assert_eq!(signals.send(9), Err(Error::Ended(Exit::Signal(9))));
    }
}
