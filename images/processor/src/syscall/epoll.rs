//! epoll.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

use super::{Args, int};
use crate::epoll::Epoll;
use crate::error::{Result, errno};
use crate::files::{Kind, OpenFile};
use crate::object::Object;
use crate::platform::Platform;
use crate::process::Node;
use crate::thread::Thread;

const EPOLL_CLOEXEC: u64 = 0o2_000_000;
const ADD: u64 = 1;
const DEL: u64 = 2;
const MOD: u64 = 3;
/// Bytes of `struct epoll_event`, which is packed on x86-64.
const EVENT: usize = 12;
/// Events that one call gives at most.
const MAX_EVENTS: usize = 4096;

impl<N: Node> Thread<N> {
    pub(super) fn sys_epoll_create(&self, flags: u64) -> Result<u64> {
        if flags & !EPOLL_CLOEXEC != 0 {
            return Err(errno::EINVAL.into());
        }
        self.add_object(Arc::new(Epoll::default()), 2, flags & EPOLL_CLOEXEC != 0)
    }

    pub(super) async fn sys_epoll_ctl(&self, [set, op, fd, event, ..]: Args) -> Result<u64> {
        let (set, file) = (self.file(set)?, self.file(fd)?);
        let number = int(fd).cast_signed();
        let Kind::Object(object) = &set.kind else {
            return Err(errno::EINVAL.into());
        };
        let epoll = object.as_epoll().ok_or(errno::EINVAL)?;
        match &file.kind {
            Kind::Object(inner) => {
                if inner
                    .as_epoll()
                    .is_some_and(|inner| epoll.is_within(inner, 0))
                {
                    return Err(if Arc::ptr_eq(&set, &file) {
                        errno::EINVAL
                    } else {
                        errno::ELOOP
                    }
                    .into());
                }
            }
            _ => return Err(errno::EPERM.into()),
        }
        if op == DEL {
            epoll.remove(number, &file)?;
            return Ok(0);
        }
        let mut bytes = [0; EVENT];
        self.memory.read(event, &mut bytes).await?;
        let events = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
        let data = u64::from_le_bytes(bytes[4..].try_into().expect("eight bytes"));
        match op {
            ADD => epoll.add(number, &file, events, data)?,
            MOD => epoll.modify(number, &file, events, data)?,
            _ => return Err(errno::EINVAL.into()),
        }
        Ok(0)
    }

    pub(super) async fn sys_epoll_wait(&self, [set, into, most, timeout, ..]: Args) -> Result<u64> {
        let timeout = int(timeout).cast_signed();
        let wait = u64::try_from(timeout).ok().map(Duration::from_millis);
        self.epoll_wait(set, into, most, wait).await
    }

    pub(super) async fn sys_epoll_pwait(
        &mut self,
        [set, into, most, timeout, mask, _]: Args,
    ) -> Result<u64> {
        let timeout = int(timeout).cast_signed();
        let wait = u64::try_from(timeout).ok().map(Duration::from_millis);
        self.mask_from(mask).await?;
        let done = self.epoll_wait(set, into, most, wait).await;
        self.unmask(done)
    }

    pub(super) async fn sys_epoll_pwait2(
        &mut self,
        [set, into, most, timeout, mask, _]: Args,
    ) -> Result<u64> {
        let wait = match timeout {
            0 => None,
            addr => Some(self.timespec(addr).await?),
        };
        self.mask_from(mask).await?;
        let done = self.epoll_wait(set, into, most, wait).await;
        self.unmask(done)
    }

    async fn epoll_wait(
        &self,
        set: u64,
        into: u64,
        most: u64,
        wait: Option<Duration>,
    ) -> Result<u64> {
        let set = self.file(set)?;
        let Kind::Object(object) = &set.kind else {
            return Err(errno::EINVAL.into());
        };
        let epoll = object.as_epoll().ok_or(errno::EINVAL)?;
        let most = usize::try_from(int(most).cast_signed()).map_err(|_| errno::EINVAL)?;
        if most == 0 {
            return Err(errno::EINVAL.into());
        }
        let end = wait.map(|wait| self.now() + wait);
        let found = loop {
            let looked = self
                .unless_called(self.epoll_once(epoll, most.min(MAX_EVENTS), end))
                .await;
            let found = looked.map_err(|_| errno::ERESTARTNOHAND)?;
            if !found.is_empty() || end.is_some_and(|end| self.now() >= end) {
                break found;
            }
        };
        let mut bytes = Vec::new();
        for (events, data) in &found {
            bytes.extend_from_slice(&events.to_le_bytes());
            bytes.extend_from_slice(&data.to_le_bytes());
        }
        self.memory.write(into, &bytes).await?;
        Ok(found.len() as u64)
    }

    /// Waits for a file of a set until `until`; returns those that are ready.
    async fn epoll_once(
        &self,
        epoll: &Epoll,
        most: usize,
        until: Option<hal::Instant>,
    ) -> Vec<(u32, u64)> {
        let ready = |file: &OpenFile| self.ready_bits(file);
        let any = poll_fn(|context| {
            epoll.register(context.waker());
            let found = epoll.take_ready(most, ready);
            if found.is_empty() {
                Poll::Pending
            } else {
                Poll::Ready(found)
            }
        });
        let Some(until) = until else {
            return any.await;
        };
        let (mut any, mut late) = (pin!(any), pin!(self.node.platform().sleep_until(until)));
        poll_fn(|context| {
            if let Poll::Ready(found) = any.as_mut().poll(context) {
                return Poll::Ready(found);
            }
            late.as_mut().poll(context).map(|()| Vec::new())
        })
        .await
    }
}
