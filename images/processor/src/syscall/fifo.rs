//! Opening named pipes, and the size of pipes.

use alloc::sync::Arc;

use messages::storage::Stat;

use super::int;
use crate::creds::{CAP_SYS_ADMIN, CAP_SYS_RESOURCE};
use crate::error::{Result, errno};
use crate::files::{Kind, O_NONBLOCK, OpenFile};
use crate::object::Object;
use crate::pipe::{Pipe, PipeEnd, PipeUser};
use crate::process::Node;
use crate::thread::Thread;

impl<N: Node> Thread<N> {
    /// Opens an end of a named pipe, of whose inode this is the status: one end alone waits for the
    /// other.
    pub(super) async fn open_fifo(
        &self,
        pipe: &Arc<Pipe>,
        stat: &Stat,
        flags: u64,
    ) -> Result<Kind> {
        let waits = flags & u64::from(O_NONBLOCK) == 0;
        let end = match flags & 3 {
            0 => PipeEnd::open(pipe, true, false),
            1 if waits => PipeEnd::open(pipe, false, true),
            1 => PipeEnd::open_to_write(pipe)?,
            2 => PipeEnd::open(pipe, true, true),
            _ => return Err(errno::EINVAL.into()),
        };
        let end = end.named(stat);
        if waits {
            let met = || end.met().then_some(());
            self.unless_called(end.queue().until(met)).await?;
        }
        Ok(Kind::Object(Arc::new(end)))
    }

    /// Returns the user who pays for what the thread does to pipes.
    pub(super) fn pipe_payer(&self) -> PipeUser {
        let creds = self.creds();
        PipeUser {
            pages: self.node.kernel().pipe_pages.clone(),
            user: creds.user.real,
            bounded: !creds.can(CAP_SYS_RESOURCE) && !creds.can(CAP_SYS_ADMIN),
        }
    }

    /// Returns a pipe's size, after changing it if `asked` says to.
    pub(super) fn pipe_size(&self, file: &OpenFile, asked: Option<u64>) -> Result<u64> {
        let Kind::Object(object) = &file.kind else {
            return Err(errno::EBADF.into());
        };
        let end = object.as_pipe().ok_or(errno::EBADF)?;
        let size = match asked {
            Some(asked) => end.set_capacity(int(asked), self.pipe_payer())?,
            None => end.capacity(),
        };
        Ok(size as u64)
    }
}
