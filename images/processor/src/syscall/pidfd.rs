//! Processes as files: opening, signals, `CLONE_PIDFD`.

use alloc::sync::Arc;

use super::{Args, int};
use crate::error::{Result, errno};
use crate::files::{Kind, O_NONBLOCK, OpenFile};
use crate::pidfd::PidFd;
use crate::process::{Node, Process};
use crate::signals::{INFO_SIZE, SI_USER, SignalInfo, number};
use crate::thread::Thread;

fn pidfd(file: &OpenFile) -> Result<&PidFd> {
    let found = match &file.kind {
        Kind::Object(object) => object.as_pidfd(),
        _ => None,
    };
    found.ok_or_else(|| errno::EBADF.into())
}

/// Returns the process that a signal can be sent to: also that of an open `/proc/PID` (Linux
/// `kernel/signal.c`, `pidfd_to_pid`).
fn addressee(file: &OpenFile) -> Result<&PidFd> {
    match &file.kind {
        Kind::Listing(listing) => listing.process.as_ref().ok_or_else(|| errno::EBADF.into()),
        _ => pidfd(file),
    }
}

impl<N: Node> Thread<N> {
    /// Returns the process whose folder in `/proc` has this path, for its open file.
    pub(super) fn pidfd_of_folder(&self, path: &[u8]) -> Option<PidFd> {
        let number = core::str::from_utf8(path.strip_prefix(b"/proc/")?).ok()?;
        let pid = number.trim_end_matches('/').parse().ok()?;
        let process = self.node.kernel().process(pid)?;
        let object = PidFd::default();
        object.name(pid, &process.lifetime);
        Some(object)
    }

    pub(super) fn sys_pidfd_open(&self, [pid, flags, ..]: Args) -> Result<u64> {
        let (pid, flags) = (int(pid), int(flags));
        if flags & !O_NONBLOCK != 0 || pid.cast_signed() <= 0 {
            return Err(errno::EINVAL.into());
        }
        let kernel = self.node.kernel();
        let Some(process) = kernel.process(pid) else {
            // A thread that is not its process's first.
            let thread = kernel.process_of(pid).is_some();
            return Err(if thread { errno::EINVAL } else { errno::ESRCH }.into());
        };
        let object = PidFd::default();
        object.name(pid, &process.lifetime);
        self.add_object(Arc::new(object), flags | 2, true)
    }

    /// Makes a number for a process that is still to be made.
    pub(super) fn reserve_pidfd(&self) -> Result<(u64, Arc<PidFd>)> {
        let object = Arc::new(PidFd::default());
        let fd = self.add_object(object.clone(), 2, true)?;
        Ok((fd, object))
    }

    /// Returns the process that a file is, if nobody has waited for it.
    fn process_of_file(&self, file: &PidFd) -> Result<Arc<Process<N>>> {
        let (pid, lifetime) = file.of().ok_or(errno::ESRCH)?;
        let process = self.node.kernel().process(*pid).ok_or(errno::ESRCH)?;
        if !Arc::ptr_eq(&process.lifetime, lifetime) {
            return Err(errno::ESRCH.into());
        }
        Ok(process)
    }

    /// Returns the number of the child that a file is, for `waitid`, and whether the call is to
    /// wait.
    pub(super) fn child_at(&self, fd: u32) -> Result<(u32, bool)> {
        let file = self.file(fd.into())?;
        let process = self
            .process_of_file(pidfd(&file)?)
            .map_err(|_| errno::ECHILD)?;
        Ok((process.pid, !file.nonblocking()))
    }

    pub(super) async fn sys_pidfd_send_signal(
        &self,
        [fd, signal, info, flags, ..]: Args,
    ) -> Result<u64> {
        if flags != 0 {
            return Err(errno::EINVAL.into());
        }
        let file = self.file(fd)?;
        let to = addressee(&file)?;
        let info = match (int(signal), info) {
            (0, _) => None,
            (_, 0) => Some(SignalInfo::from_process(number(signal)?, SI_USER, self.pid)),
            (_, at) => {
                let mut bytes = [0; INFO_SIZE];
                self.memory.read(at, &mut bytes).await?;
                Some(SignalInfo::decode(&bytes)?)
            }
        };
        if info.is_some_and(|info| u32::from(info.signal) != int(signal)) {
            return Err(errno::EINVAL.into());
        }
        let process = self.process_of_file(to)?;
        if let Some(info) = info {
            let creds = self.creds();
            if process
                .creds()
                .is_some_and(|other| !creds.may_signal(&other))
            {
                return Err(errno::EPERM.into());
            }
            if info.code >= 0 && info.code != SI_USER && process.pid != self.pid {
                return Err(errno::EPERM.into());
            }
            process.send(info);
        }
        Ok(0)
    }
}
