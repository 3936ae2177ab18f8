//! Job control: processes that stop and go on, what their parents hear, and orphaned groups.
//!
//! The sender of a stop signal stops the process: its threads leave user mode and wait, and
//! those that wait in the kernel are frozen there, so that no call is interrupted by a stop.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::error::Exit;
use crate::kernel::{FIRST, Kernel, Relations, Tree};
use crate::process::{Node, Process};
use crate::signals::{
    CLD_CONTINUED, CLD_EXITED, CLD_KILLED, CLD_STOPPED, SI_KERNEL, SIGCHLD, SIGCONT, SIGHUP,
    SIGSTOP, SignalInfo,
};
use crate::terminal::To;

/// A stop or continuation of a child that was not reported to its parent yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChildChange {
    /// It was stopped by a signal.
    Stopped(u8),
    /// It goes on.
    Continued,
}

impl<N: Node> Process<N> {
    /// Does what a stop signal's default is: stops the process, unless its group is orphaned or it
    /// is the first, which nobody could let go on.
    pub(crate) fn stop(&self, signal: u8) {
        let kernel = self.node.kernel();
        let orphaned = signal != SIGSTOP && kernel.is_orphaned(self.pid);
        if self.pid == FIRST || orphaned || !self.set_stopped(true) {
            return;
        }
        self.tell_parent(ChildChange::Stopped(signal));
        self.call_all();
    }

    /// Continues a stopped process; with `tell` its parent is notified.
    pub(crate) fn resume(&self, tell: bool) {
        if !self.set_stopped(false) {
            return;
        }
        if tell {
            self.tell_parent(ChildChange::Continued);
        }
        self.call_all();
    }

    fn tell_parent(&self, news: ChildChange) {
        let parent = {
            let mut tree = self.node.kernel().tree.lock();
            let Some(own) = tree.processes.get_mut(&self.pid) else {
                return;
            };
            own.news = Some(news);
            let parent = own.process.parent();
            let Some(parent) = tree.processes.get(&parent) else {
                return;
            };
            let parent = parent.process.clone();
            // Pending before the parent can wait for the news.
            if parent.hears_of_stops() {
                parent.send(news_info(self.pid, news));
            }
            parent
        };
        parent.children_changed.wake();
    }

    /// Returns whether the process wants signals when children stop.
    fn hears_of_stops(&self) -> bool {
        let threads = self.threads.lock();
        threads
            .values()
            .next()
            .is_some_and(|thread| thread.hears_of_stops())
    }
}

/// Returns the `siginfo` of a child's end, for its parent.
pub(crate) fn child_info(signal: u8, pid: u32, exit: Exit) -> SignalInfo {
    let (code, status) = match exit {
        Exit::Code(code) => (CLD_EXITED, code),
        Exit::Signal(signal) => (CLD_KILLED, signal),
    };
    SignalInfo {
        signal,
        code,
        fields: [pid.into(), status.into()],
    }
}

/// Returns the `siginfo` of a child's stop or continuation, for its parent.
pub(crate) fn news_info(pid: u32, news: ChildChange) -> SignalInfo {
    let (code, status) = match news {
        ChildChange::Stopped(signal) => (CLD_STOPPED, signal),
        ChildChange::Continued => (CLD_CONTINUED, SIGCONT),
    };
    SignalInfo {
        signal: SIGCHLD,
        code,
        fields: [pid.into(), status.into()],
    }
}

impl<N: Node> Tree<N> {
    /// Returns whether no process of a group has a parent in another group of the same session, who
    /// could let it go on.
    pub(crate) fn is_orphaned(&self, group: u32) -> bool {
        let has_keeper = |member: &Relations<N>| {
            let parent = self.processes.get(&member.process.parent());
            parent.is_some_and(|parent| {
                let keeps = parent.session == member.session && parent.group != member.group;
                parent.ended.is_none() && keeps
            })
        };
        let mut members = self
            .processes
            .values()
            .filter(|member| member.group == group);
        !members.any(|member| member.ended.is_none() && has_keeper(member))
    }

    /// Returns the members of a group that have not ended.
    pub(crate) fn members(&self, group: u32) -> Vec<Arc<Process<N>>> {
        let members = self
            .processes
            .values()
            .filter(|other| other.group == group && other.ended.is_none());
        members.map(|member| member.process.clone()).collect()
    }

    /// Returns the groups that hold stopped processes and are orphaned.
    pub(crate) fn stuck_groups(&self, candidates: &[u32]) -> Vec<u32> {
        let stuck = |&&group: &&u32| {
            let mut members = self
                .processes
                .values()
                .filter(|member| member.group == group);
            members.any(|member| member.process.is_stopped()) && self.is_orphaned(group)
        };
        candidates.iter().filter(stuck).copied().collect()
    }
}

impl<N: Node> Kernel<N> {
    /// Returns whether the group of a process is orphaned.
    pub(crate) fn is_orphaned(&self, pid: u32) -> bool {
        let tree = self.tree.lock();
        let group = tree.processes.get(&pid).map(|own| own.group);
        group.is_none_or(|group| tree.is_orphaned(group))
    }

    /// Sends a signal of the kernel's own to a group.
    pub(crate) fn signal_group(&self, group: u32, signal: u8) {
        let members = self.tree.lock().members(group);
        let info = SignalInfo::from_process(signal, SI_KERNEL, 0);
        members.iter().for_each(|member| member.send(info));
    }

    /// Sends the signals that terminals have caused.
    pub fn send_terminals_signals(&self) {
        if !self.terminals.due() {
            return;
        }
        for (to, signal) in self.terminals.take_signals() {
            match to {
                To::Group(group) => self.signal_group(group, signal),
                To::Process(pid) => {
                    if let Some(process) = self.process(pid) {
                        process.send(SignalInfo::from_process(signal, SI_KERNEL, 0));
                    }
                }
            }
        }
    }

    /// Does what the end of a process means for others: stopped members of groups that it leaves
    /// without a keeper hear of it and go on, and its session, if it led one, loses its terminal.
    pub(crate) fn leave_jobs(&self, pid: u32, session: u32, groups: &[u32]) {
        if pid == session {
            self.terminals.leave_session(session);
        }
        let stuck = self.tree.lock().stuck_groups(groups);
        for group in stuck {
            for signal in [SIGHUP, SIGCONT] {
                self.signal_group(group, signal);
            }
        }
        self.send_terminals_signals();
    }
}
