//! Signals: their actions, those that wait, and what they do when the program has no handler.

use alloc::vec::Vec;

use crate::error::{Result, errno};

/// Bytes of the kernel's `struct sigaction` on x86-64: handler, flags, restorer, mask.
pub(crate) const ACTION_SIZE: usize = 32;
/// Bytes of `siginfo_t`.
pub(crate) const INFO_SIZE: usize = 128;
/// Real-time signals that wait at most, of one process or thread (Linux bounds them a user).
const MAX_QUEUED: usize = 1024;

pub(crate) const SIGHUP: u8 = 1;
pub(crate) const SIGINT: u8 = 2;
pub(crate) const SIGQUIT: u8 = 3;
pub(crate) const SIGILL: u8 = 4;
pub(crate) const SIGTRAP: u8 = 5;
pub(crate) const SIGBUS: u8 = 7;
pub(crate) const SIGFPE: u8 = 8;
pub(crate) const SIGKILL: u8 = 9;
pub(crate) const SIGSEGV: u8 = 11;
pub(crate) const SIGPIPE: u8 = 13;
pub(crate) const SIGALRM: u8 = 14;
pub(crate) const SIGCHLD: u8 = 17;
pub(crate) const SIGCONT: u8 = 18;
pub(crate) const SIGSTOP: u8 = 19;
pub(crate) const SIGTSTP: u8 = 20;
pub(crate) const SIGTTIN: u8 = 21;
pub(crate) const SIGTTOU: u8 = 22;
pub(crate) const SIGXCPU: u8 = 24;
pub(crate) const SIGXFSZ: u8 = 25;
pub(crate) const SIGVTALRM: u8 = 26;
pub(crate) const SIGPROF: u8 = 27;
pub(crate) const SIGWINCH: u8 = 28;
const FIRST_REAL_TIME: u8 = 32;

const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;
/// SIGCHLD, SIGCONT, SIGURG, SIGWINCH.
const IGNORED: u64 = bit(17) | bit(18) | bit(23) | bit(28);
/// SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU.
pub(crate) const STOPS: u64 = bit(SIGSTOP) | bit(SIGTSTP) | bit(SIGTTIN) | bit(SIGTTOU);

/// Flags of an action (Linux `include/uapi/asm-generic/signal-defs.h`).
const SA_NOCLDSTOP: u64 = 1;
pub(crate) const SA_NOCLDWAIT: u64 = 2;
pub(crate) const SA_RESTORER: u64 = 0x0400_0000;
pub(crate) const SA_ONSTACK: u64 = 0x0800_0000;
pub(crate) const SA_RESTART: u64 = 0x1000_0000;
pub(crate) const SA_NODEFER: u64 = 0x4000_0000;
pub(crate) const SA_RESETHAND: u64 = 0x8000_0000;

/// Returns whether sending the signal may stop, continue or wake a stopped process, of which its
/// parent is told.
pub(crate) fn changes_jobs(signal: u8) -> bool {
    (STOPS | bit(SIGCONT) | bit(SIGKILL)) & bit(signal) != 0
}

/// Causes of a signal (`si_code`; Linux `include/uapi/asm-generic/siginfo.h`).
pub(crate) const SI_USER: i32 = 0;
pub(crate) const SI_KERNEL: i32 = 0x80;
pub(crate) const SI_TIMER: i32 = -2;
pub(crate) const SI_MESGQ: i32 = -3;
pub(crate) const SI_TKILL: i32 = -6;
/// The most that an overrun says (`DELAYTIMER_MAX`).
const MAX_OVERRUN: u64 = 0x7fff_ffff;
pub(crate) const SEGV_MAPERR: i32 = 1;
pub(crate) const SEGV_ACCERR: i32 = 2;
pub(crate) const BUS_ADRERR: i32 = 2;
pub(crate) const CLD_EXITED: i32 = 1;
pub(crate) const CLD_KILLED: i32 = 2;
pub(crate) const CLD_STOPPED: i32 = 5;
pub(crate) const CLD_CONTINUED: i32 = 6;

/// Returns the bit of a signal in a set.
pub(crate) const fn bit(signal: u8) -> u64 {
    1 << (signal - 1)
}

/// Signals that can't be blocked, ignored or handled.
const FORCED: u64 = bit(SIGKILL) | bit(SIGSTOP);

/// Returns a mask without the signals that can't be blocked.
pub(crate) const fn blockable(mask: u64) -> u64 {
    mask & !FORCED
}

/// Reads a signal's number.
pub(crate) fn number(raw: u64) -> Result<u8> {
    u8::try_from(raw & 0xffff_ffff)
        .ok()
        .filter(|n| (1..=64).contains(n))
        .ok_or_else(|| errno::EINVAL.into())
}

/// A signal, and what its handler is told of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct SignalInfo {
    pub(crate) signal: u8,
    pub(crate) code: i32,
    /// The bytes 16 to 32 of `siginfo_t`: sender and value, or an address.
    pub(crate) fields: [u64; 2],
}

impl SignalInfo {
    /// Returns what a signal from a process says.
    pub(crate) fn from_process(signal: u8, code: i32, pid: u32) -> Self {
        Self {
            signal,
            code,
            fields: [pid.into(), 0],
        }
    }

    /// Returns what a timer of `timer_create` says.
    pub(crate) fn timer(signal: u8, id: i32, value: u64) -> Self {
        Self {
            signal,
            code: SI_TIMER,
            fields: [id.cast_unsigned().into(), value],
        }
    }

    /// Returns the same, for a timer that expired so many times more than are told of.
    pub(crate) fn with_overrun(self, more: u64) -> Self {
        if self.code != SI_TIMER {
            return self;
        }
        let sum = (self.overrun() + more).min(MAX_OVERRUN);
        let id = self.fields[0] & 0xffff_ffff;
        Self {
            fields: [id | sum << 32, self.fields[1]],
            ..self
        }
    }

    /// Returns the overrun of a timer's signal.
    pub(crate) fn overrun(&self) -> u64 {
        self.fields[0] >> 32
    }

    /// Returns the number of a timer of `timer_create` that sent the signal.
    pub(crate) fn timer_id(&self) -> Option<i32> {
        (self.code == SI_TIMER).then(|| {
            u32::try_from(self.fields[0] & 0xffff_ffff)
                .unwrap_or(0)
                .cast_signed()
        })
    }

    /// Returns what a fault at an address says.
    pub(crate) fn fault(signal: u8, code: i32, addr: u64) -> Self {
        Self {
            signal,
            code,
            fields: [addr, 0],
        }
    }

    /// Reads the bytes of a `siginfo_t`.
    ///
    /// # Errors
    ///
    /// EINVAL if there is no such signal.
    pub(crate) fn decode(bytes: &[u8; INFO_SIZE]) -> Result<Self> {
        let word =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Ok(Self {
            signal: number(word(0))?,
            code: i32::from_le_bytes(bytes[8..12].try_into().expect("four bytes")),
            fields: [word(16), word(24)],
        })
    }

    /// Returns the bytes of `siginfo_t`.
    pub(crate) fn encode(&self) -> [u8; INFO_SIZE] {
        let mut bytes = [0; INFO_SIZE];
        bytes[0..4].copy_from_slice(&u32::from(self.signal).to_le_bytes());
        bytes[8..12].copy_from_slice(&self.code.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.fields[0].to_le_bytes());
        bytes[24..32].copy_from_slice(&self.fields[1].to_le_bytes());
        bytes
    }
}

/// Signals that wait to be taken.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    set: u64,
    infos: Vec<SignalInfo>,
}

impl Pending {
    /// Adds a signal. One below the real-time signals waits once at most.
    pub(crate) fn add(&mut self, info: SignalInfo) {
        if let Some(id) = info.timer_id() {
            // A timer has one signal in the queue, which counts what it stands for.
            let same = |other: &&mut SignalInfo| {
                other.signal == info.signal && other.timer_id() == Some(id)
            };
            if let Some(other) = self.infos.iter_mut().find(same) {
                *other = other.with_overrun(info.overrun() + 1);
                return;
            }
        }
        let there = self.set & bit(info.signal) != 0;
        if there && (info.signal < FIRST_REAL_TIME || self.infos.len() >= MAX_QUEUED) {
            return;
        }
        self.set |= bit(info.signal);
        self.infos.push(info);
    }

    /// Returns the signals that wait.
    pub(crate) fn set(&self) -> u64 {
        self.set
    }

    /// Takes the first signal of `of`: a fault's before others, then the lowest.
    pub(crate) fn take(&mut self, of: u64) -> Option<SignalInfo> {
        const SYNCHRONOUS: u64 =
            bit(SIGSEGV) | bit(SIGBUS) | bit(SIGILL) | bit(SIGTRAP) | bit(SIGFPE);
        let due = self.set & of;
        let first = if due & SYNCHRONOUS != 0 {
            due & SYNCHRONOUS
        } else {
            due
        };
        if first == 0 {
            return None;
        }
        let signal = u8::try_from(first.trailing_zeros() + 1).ok()?;
        let at = self.infos.iter().position(|info| info.signal == signal)?;
        let info = self.infos.remove(at);
        if !self.infos.iter().any(|info| info.signal == signal) {
            self.set &= !bit(signal);
        }
        Some(info)
    }

    /// Forgets the signals of a set.
    pub(crate) fn discard(&mut self, of: u64) {
        self.set &= !of;
        self.infos.retain(|info| of & bit(info.signal) == 0);
    }
}

/// The effect of a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    /// None.
    Ignore,
    /// The process ends.
    End,
    /// The process stops.
    Stop,
    /// A handler runs.
    Handle(Action),
}

/// A program's answer to a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Action {
    pub(crate) handler: u64,
    pub(crate) flags: u64,
    pub(crate) restorer: u64,
    pub(crate) mask: u64,
}

impl Action {
    /// Reads the kernel's `struct sigaction`.
    pub(crate) fn decode(bytes: &[u8; ACTION_SIZE]) -> Self {
        let word =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Self {
            handler: word(0),
            flags: word(8),
            restorer: word(16),
            mask: blockable(word(24)),
        }
    }

    /// Returns the bytes of the kernel's `struct sigaction`.
    pub(crate) fn encode(&self) -> [u8; ACTION_SIZE] {
        let mut bytes = [0; ACTION_SIZE];
        let words = [self.handler, self.flags, self.restorer, self.mask];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// The actions of a process, by signal.
#[derive(Clone, Debug)]
pub(crate) struct Actions([Action; 64]);

impl Default for Actions {
    fn default() -> Self {
        Self([Action::default(); 64])
    }
}

impl Actions {
    fn of(&self, signal: u8) -> &Action {
        &self.0[usize::from(signal) - 1]
    }

    /// Returns the action of a signal, and sets another.
    ///
    /// # Errors
    ///
    /// EINVAL for a new action of SIGKILL or SIGSTOP.
    pub(crate) fn replace(&mut self, signal: u8, new: Option<Action>) -> Result<Action> {
        let before = *self.of(signal);
        if let Some(action) = new {
            if FORCED & bit(signal) != 0 {
                return Err(errno::EINVAL.into());
            }
            self.0[usize::from(signal) - 1] = action;
        }
        Ok(before)
    }

    /// Returns what a signal does now. A handler that asked for it is forgotten.
    pub(crate) fn effect(&mut self, signal: u8) -> Effect {
        let action = *self.of(signal);
        if FORCED & bit(signal) == 0 {
            match action.handler {
                SIG_DFL => {}
                SIG_IGN => return Effect::Ignore,
                _ => {
                    if action.flags & SA_RESETHAND != 0 {
                        self.0[usize::from(signal) - 1].handler = SIG_DFL;
                    }
                    return Effect::Handle(action);
                }
            }
        }
        if IGNORED & bit(signal) != 0 {
            Effect::Ignore
        } else if STOPS & bit(signal) != 0 {
            Effect::Stop
        } else {
            Effect::End
        }
    }

    /// Returns the signals that are ignored by the program's wish, and those with handlers.
    pub(crate) fn ignored_and_caught(&self) -> (u64, u64) {
        let of = |holds: fn(u64) -> bool| {
            let set = (1..=64).filter(|&signal| holds(self.of(signal).handler));
            set.fold(0, |set, signal| set | bit(signal))
        };
        (
            of(|handler| handler == SIG_IGN),
            of(|handler| handler > SIG_IGN),
        )
    }

    /// Returns whether a signal would do nothing.
    pub(crate) fn ignores(&self, signal: u8) -> bool {
        let handler = self.of(signal).handler;
        FORCED & bit(signal) == 0
            && (handler == SIG_IGN || handler == SIG_DFL && IGNORED & bit(signal) != 0)
    }

    /// Returns whether a signal would stop the process.
    pub(crate) fn stops(&self, signal: u8) -> bool {
        STOPS & bit(signal) != 0 && self.of(signal).handler == SIG_DFL
    }

    /// Returns whether the parent is to get signals when children stop and go on.
    pub(crate) fn hears_of_stops(&self) -> bool {
        self.of(SIGCHLD).flags & SA_NOCLDSTOP == 0
    }

    /// Returns whether a handler runs for a signal.
    pub(crate) fn handles(&self, signal: u8) -> bool {
        self.handler_flags(signal).is_some()
    }

    /// Returns the flags of a signal's handler, if there is one.
    pub(crate) fn handler_flags(&self, signal: u8) -> Option<u64> {
        let action = self.of(signal);
        (FORCED & bit(signal) == 0 && action.handler > SIG_IGN).then_some(action.flags)
    }

    /// Returns whether children that end leave nothing to wait for.
    pub(crate) fn forgets_children(&self) -> bool {
        let action = self.of(SIGCHLD);
        action.handler == SIG_IGN || action.flags & SA_NOCLDWAIT != 0
    }

    /// Forgets handlers, for a new program; what was ignored stays ignored.
    pub(crate) fn reset(&mut self) {
        for action in &mut self.0 {
            let ignored = action.handler == SIG_IGN;
            *action = Action {
                handler: if ignored { SIG_IGN } else { SIG_DFL },
                ..Action::default()
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Exit;

    fn info(signal: u8, value: u64) -> SignalInfo {
        SignalInfo {
            signal,
            code: -1,
            fields: [0, value],
        }
    }

    #[test]
    fn real_time_signals_queue_and_others_wait_once() {
        let mut pending = Pending::default();
        for value in 0..3 {
            pending.add(info(10, value));
            pending.add(info(40, value));
        }
        pending.add(info(SIGSEGV, 0));
        let taken: Vec<_> = core::iter::from_fn(|| pending.take(u64::MAX))
            .map(|info| (info.signal, info.fields[1]))
            .collect();
        assert_eq!(taken, [(11, 0), (10, 0), (40, 0), (40, 1), (40, 2)]);
        assert_eq!(pending.set(), 0);
    }

    #[test]
    fn ignored_signals_do_nothing_but_kill_does() {
        let mut actions = Actions::default();
        let ignore = Action {
            handler: SIG_IGN,
            ..Action::default()
        };
        actions.replace(15, Some(ignore)).unwrap();
        assert!(actions.ignores(15) && actions.ignores(SIGCHLD) && !actions.ignores(10));
        assert_eq!(actions.effect(15), Effect::Ignore);
        assert!(actions.replace(SIGKILL, Some(ignore)).is_err());
        assert_eq!(actions.effect(SIGKILL), Effect::End);
        assert_eq!(Exit::Signal(6).status(), 134);
    }

    #[test]
    fn a_new_program_keeps_what_is_ignored_only() {
        let mut actions = Actions::default();
        for (signal, handler) in [(10, 0x40_0000), (12, SIG_IGN)] {
            let action = Action {
                handler,
                flags: SA_RESTART,
                ..Action::default()
            };
            actions.replace(signal, Some(action)).unwrap();
        }
        actions.reset();
        assert_eq!(actions.effect(10), Effect::End);
        assert_eq!(actions.effect(12), Effect::Ignore);
    }
}
