//! Signals: actions, masks, sending, waiting.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Args, int};
use crate::deliver::on_stack;
use crate::error::{Result, errno};
use crate::platform::{Cpu, Platform};
use crate::process::{Node, Process};
use crate::signals::{
    ACTION_SIZE, Action, INFO_SIZE, SI_TKILL, SI_USER, SIGCONT, SIGKILL, STOPS, SignalInfo, bit,
    blockable, number,
};
use crate::thread::Thread;

/// Bytes of a signal mask.
const MASK_SIZE: u64 = 8;
const SS_DISABLE: u64 = 2;
const SS_AUTODISARM: u64 = 1 << 31;
const MIN_STACK: u64 = 2048;
/// The place of the stack pointer among the registers.
const RSP: usize = 15;

impl<N: Node> Thread<N> {
    pub(super) async fn sys_sigaction(&self, [signal, new, old, size, ..]: Args) -> Result<u64> {
        let signal = number(signal)?;
        if size != MASK_SIZE {
            return Err(errno::EINVAL.into());
        }
        let action = if new == 0 {
            None
        } else {
            let mut bytes = [0; ACTION_SIZE];
            self.memory.read(new, &mut bytes).await?;
            Some(Action::decode(&bytes))
        };
        let before = self.actions.lock().replace(signal, action)?;
        if action.is_some() && self.actions.lock().ignores(signal) {
            self.process.pending.lock().discard(bit(signal));
            self.shared.pending.lock().discard(bit(signal));
        }
        if old != 0 {
            self.memory.write(old, &before.encode()).await?;
        }
        Ok(0)
    }

    pub(super) async fn sys_sigprocmask(&self, [how, new, old, size, ..]: Args) -> Result<u64> {
        if size != MASK_SIZE {
            return Err(errno::EINVAL.into());
        }
        let before = self.shared.mask();
        if new != 0 {
            let set = self.memory.read_u64(new).await?;
            self.shared.set_mask(match how {
                0 => before | set,
                1 => before & !set,
                2 => set,
                _ => return Err(errno::EINVAL.into()),
            });
        }
        if old != 0 {
            self.memory.write_words(old, &[before]).await?;
        }
        Ok(0)
    }

    pub(super) async fn sys_sigpending(&self, [into, size, ..]: Args) -> Result<u64> {
        if size > MASK_SIZE {
            return Err(errno::EINVAL.into());
        }
        let pending = self.shared.pending.lock().set() | self.process.pending.lock().set();
        let blocked = pending & self.shared.mask();
        let len = usize::try_from(size).expect("at most eight");
        self.memory
            .write(into, &blocked.to_le_bytes()[..len])
            .await?;
        Ok(0)
    }

    pub(super) async fn sys_sigsuspend(&mut self, [mask, size, ..]: Args) -> Result<u64> {
        if size != MASK_SIZE {
            return Err(errno::EINVAL.into());
        }
        let mask = self.memory.read_u64(mask).await?;
        self.mask_for_wait(mask);
        self.sys_pause().await
    }

    pub(super) async fn sys_pause(&self) -> Result<u64> {
        self.unless_called(core::future::pending::<()>()).await?;
        Ok(0)
    }

    pub(super) async fn sys_sigtimedwait(
        &self,
        [set, info, timeout, size, ..]: Args,
    ) -> Result<u64> {
        if size != MASK_SIZE {
            return Err(errno::EINVAL.into());
        }
        let set = blockable(self.memory.read_u64(set).await?);
        let end = match timeout {
            0 => None,
            addr => Some(self.now() + self.timespec(addr).await?),
        };
        // The signals of the set are blocked; they wake this wait all the same.
        let before = self.shared.mask();
        let found = loop {
            if let Some(found) = self.take_signal(set) {
                break found;
            }
            if end.is_some_and(|end| self.now() >= end) {
                return Err(errno::EAGAIN.into());
            }
            self.shared.await_signals(before & set);
            self.shared.set_mask(before & !set);
            let until = end.unwrap_or(self.now() + Duration::from_secs(3600));
            let slept = self
                .unless_called(self.node.platform().sleep_until(until))
                .await;
            self.shared.set_mask(before);
            self.shared.await_signals(0);
            // A signal of the set is taken here even if it has a handler and is not blocked.
            if slept.is_err() && self.pending() & set == 0 && self.called() {
                return Err(errno::EINTR.into());
            }
        };
        if info != 0 {
            let bytes: [u8; INFO_SIZE] = found.encode();
            self.memory.write(info, &bytes).await?;
        }
        Ok(found.signal.into())
    }

    pub(super) async fn sys_sigaltstack(&mut self, [new, old, ..]: Args) -> Result<u64> {
        let [base, flags, size] = self.alternate;
        let sp = self.cpu.registers()[RSP];
        let active = on_stack(self.alternate, sp);
        if old != 0 {
            let flags = flags | u64::from(active);
            self.memory.write_words(old, &[base, flags, size]).await?;
        }
        if new != 0 {
            let mut words = [0; 3];
            for (index, word) in words.iter_mut().enumerate() {
                *word = self
                    .memory
                    .read_u64(new.saturating_add(index as u64 * 8))
                    .await?;
            }
            // Flags are an int with padding behind.
            words[1] &= 0xffff_ffff;
            if active {
                return Err(errno::EPERM.into());
            }
            // One of nothing, SS_ONSTACK and SS_DISABLE.
            if !matches!(words[1] & !SS_AUTODISARM, 0 | 1 | SS_DISABLE) {
                return Err(errno::EINVAL.into());
            }
            if words[1] & SS_DISABLE != 0 {
                words = [0, SS_DISABLE, 0];
            } else if words[2] < MIN_STACK {
                return Err(errno::ENOMEM.into());
            }
            self.alternate = words;
        }
        Ok(0)
    }

    pub(super) fn sys_kill(&self, [target, signal, ..]: Args) -> Result<u64> {
        let info = self.info(signal, SI_USER)?;
        let group = |group: u32| {
            let tree = self.node.kernel().tree.lock();
            let members = tree.processes.values().filter(|other| other.group == group);
            members.map(|other| other.process.clone()).collect()
        };
        let targets: Vec<_> = match int(target).cast_signed() {
            0 => group(self.node.kernel().relation(self.pid, |own| own.group)?),
            -1 => self
                .node
                .kernel()
                .living()
                .into_iter()
                .filter(|other| other.pid != self.pid && other.pid != crate::kernel::FIRST)
                .collect(),
            one @ 1.. => self
                .node
                .kernel()
                .process(one.cast_unsigned())
                .into_iter()
                .collect(),
            other => group(other.unsigned_abs()),
        };
        if targets.is_empty() {
            return Err(errno::ESRCH.into());
        }
        let creds = self.creds();
        let may =
            |other: &Arc<Process<N>>| other.creds().is_none_or(|other| creds.may_signal(&other));
        let targets: Vec<_> = targets.into_iter().filter(may).collect();
        if targets.is_empty() {
            return Err(errno::EPERM.into());
        }
        if let Some(info) = info {
            targets.iter().for_each(|process| process.send(info));
        }
        Ok(0)
    }

    /// Sends a signal to a thread; `group` is its process, if the caller names it.
    pub(super) fn sys_tgkill(&self, group: Option<u64>, tid: u64, signal: u64) -> Result<u64> {
        let (group, tid) = (group.map(int), int(tid));
        if tid.cast_signed() <= 0 || group.is_some_and(|group| group.cast_signed() <= 0) {
            return Err(errno::EINVAL.into());
        }
        let info = self.info(signal, SI_TKILL)?;
        let process = self.node.kernel().process_of(tid).ok_or(errno::ESRCH)?;
        if group.is_some_and(|group| process.pid != group) {
            return Err(errno::ESRCH.into());
        }
        let thread = process.threads.lock().get(&tid).cloned();
        let thread = thread.ok_or(errno::ESRCH)?;
        if !self.creds().may_signal(&thread.creds()) {
            return Err(errno::EPERM.into());
        }
        match info {
            // These are the whole process's.
            Some(info) if (STOPS | bit(SIGCONT) | bit(SIGKILL)) & bit(info.signal) != 0 => {
                process.send(info)
            }
            Some(info) => process.send_thread(&thread, info),
            None => {}
        }
        Ok(0)
    }

    /// Sends a signal with what the program says of it (`rt_sigqueueinfo`).
    /// With `group` the target is a thread of that process.
    pub(super) async fn sys_sigqueueinfo(
        &self,
        group: Option<u64>,
        [target, signal, info]: [u64; 3],
    ) -> Result<u64> {
        let nothing = int(signal) == 0;
        let signal = if nothing { 0 } else { number(signal)? };
        let mut bytes = [0; INFO_SIZE];
        self.memory.read(info, &mut bytes).await?;
        let word =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let code = i32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
        let pid = int(group.unwrap_or(target));
        let process = self.node.kernel().process(pid).ok_or(errno::ESRCH)?;
        if (code >= 0 || code == SI_TKILL) && process.pid != self.pid {
            return Err(errno::EPERM.into());
        }
        let creds = self.creds();
        if process
            .creds()
            .is_some_and(|other| !creds.may_signal(&other))
        {
            return Err(errno::EPERM.into());
        }
        let info = SignalInfo {
            signal,
            code,
            fields: [word(16), word(24)],
        };
        let thread = match group {
            Some(_) => {
                let thread = process.threads.lock().get(&int(target)).cloned();
                Some(thread.ok_or(errno::ESRCH)?)
            }
            None => None,
        };
        match thread {
            _ if nothing => {}
            Some(thread) => process.send_thread(&thread, info),
            None => process.send(info),
        }
        Ok(0)
    }

    fn info(&self, signal: u64, code: i32) -> Result<Option<SignalInfo>> {
        if signal & 0xffff_ffff == 0 {
            return Ok(None);
        }
        let signal = number(signal)?;
        Ok(Some(SignalInfo::from_process(signal, code, self.pid)))
    }
}
