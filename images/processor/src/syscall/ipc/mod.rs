//! The calls of interprocess communication.
//!
//! * [`shared`]: segments. * [`semaphore`]: sets of semaphores. * [`message`]: queues of messages.
//! * [`posix`]: POSIX message queues.

mod message;
mod posix;
mod semaphore;
mod shared;

use linux_raw_sys::general as nr;

use super::{Args, int};
use crate::error::Result;
use crate::ipc::{Ipc, PERM_SIZE};
use crate::platform::Platform;
use crate::process::Node;
use crate::thread::Thread;

/// Commands that all three kinds know (Linux `include/uapi/linux/ipc.h`).
const IPC_RMID: u32 = 0;
const IPC_SET: u32 = 1;
const IPC_STAT: u32 = 2;
const IPC_INFO: u32 = 3;

impl<N: Node> Thread<N> {
    /// Serves the calls of this family; `None` for all others.
    pub(super) async fn ipc_call(&self, number: u32, a: Args) -> Option<Result<u64>> {
        Some(match number {
            nr::__NR_shmget => self.sys_shmget(a).await,
            nr::__NR_shmat => self.sys_shmat(a).await,
            nr::__NR_shmdt => self.sys_shmdt(a).await,
            nr::__NR_shmctl => self.sys_shmctl(a).await,
            nr::__NR_semget => self.sys_semget(a),
            nr::__NR_semop => self.sys_semtimedop([a[0], a[1], a[2], 0, 0, 0]).await,
            nr::__NR_semtimedop => self.sys_semtimedop(a).await,
            nr::__NR_semctl => self.sys_semctl(a).await,
            nr::__NR_msgget => self.sys_msgget(a),
            nr::__NR_msgsnd => self.sys_msgsnd(a).await,
            nr::__NR_msgrcv => self.sys_msgrcv(a).await,
            nr::__NR_msgctl => self.sys_msgctl(a).await,
            nr::__NR_mq_open => self.sys_mq_open(a).await,
            nr::__NR_mq_unlink => self.sys_mq_unlink(a).await,
            nr::__NR_mq_timedsend => self.sys_mq_timedsend(a).await,
            nr::__NR_mq_timedreceive => self.sys_mq_timedreceive(a).await,
            nr::__NR_mq_notify => self.sys_mq_notify(a).await,
            nr::__NR_mq_getsetattr => self.sys_mq_getsetattr(a).await,
            _ => return None,
        })
    }

    fn ipc(&self) -> &'static Ipc {
        &self.node.kernel().ipc
    }

    /// Returns the seconds since 1970.
    fn seconds(&self) -> u64 {
        self.node.platform().wall_clock().as_secs()
    }

    /// Reads owner and rights, with which the structures of all kinds begin.
    async fn read_perm(&self, addr: u64) -> Result<[u8; PERM_SIZE]> {
        let mut bytes = [0; PERM_SIZE];
        self.memory.read(addr, &mut bytes).await?;
        Ok(bytes)
    }
}
