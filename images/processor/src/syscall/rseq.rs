//! `rseq`: a thread's area of restartable sequences, registered and given up.

use messages::USER_END;

use super::{Args, int};
use crate::error::{Result, errno};
use crate::process::Node;
use crate::rseq::{ALIGN, Registration};
use crate::thread::Thread;

/// `RSEQ_FLAG_UNREGISTER`.
const UNREGISTER: u32 = 1;

impl<N: Node> Thread<N> {
    pub(super) async fn sys_rseq(
        &mut self,
        [addr, len, flags, signature, ..]: Args,
    ) -> Result<u64> {
        let asked = Registration {
            addr,
            len: int(len),
            signature: int(signature),
        };
        match int(flags) {
            0 => self.register_rseq(asked),
            UNREGISTER => self.unregister_rseq(asked).await,
            _ => Err(errno::EINVAL.into()),
        }
    }

    fn register_rseq(&mut self, asked: Registration) -> Result<u64> {
        if let Some(known) = self.rseq {
            return Err(match known {
                _ if (known.addr, known.len) != (asked.addr, asked.len) => errno::EINVAL,
                _ if known.signature != asked.signature => errno::EPERM,
                _ => errno::EBUSY,
            }
            .into());
        }
        // A longer area is one of a later version, with more features than are kept here.
        if u64::from(asked.len) < ALIGN || !asked.addr.is_multiple_of(ALIGN) {
            return Err(errno::EINVAL.into());
        }
        let end = asked.addr.checked_add(asked.len.into());
        if end.is_none_or(|end| end > USER_END) {
            return Err(errno::EFAULT.into());
        }
        self.set_rseq(Some(asked));
        Ok(0)
    }

    async fn unregister_rseq(&mut self, asked: Registration) -> Result<u64> {
        let known = self.rseq.ok_or(errno::EINVAL)?;
        if (known.addr, known.len) != (asked.addr, asked.len) {
            return Err(errno::EINVAL.into());
        }
        if known.signature != asked.signature {
            return Err(errno::EPERM.into());
        }
        self.reset_area(asked.addr).await?;
        self.set_rseq(None);
        Ok(0)
    }

    /// Sets the thread's area, which is written before the program goes on.
    pub(crate) fn set_rseq(&mut self, registration: Option<Registration>) {
        self.rseq = registration;
        self.shared.set_has_rseq(registration.is_some());
        self.shared.note_turn_of_other();
    }
}
