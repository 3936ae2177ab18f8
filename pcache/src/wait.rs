//! Waiting for a line, as futures. The wakers lie in slots made with the cache; nothing is allocated.

use core::future::poll_fn;
use core::task::{Poll, Waker};

use hal::Instant;

use crate::set::State;
use crate::{Access, Cache, Error, Load, Machine, Page, Pinned, SpaceId};

/// Tasks that can wait for one set at a time without disturbing each other.
const SLOTS: usize = 8;

/// Who waits for a set to change.
#[derive(Default, Debug)]
pub(crate) struct WaitList(heapless::Vec<Waker, SLOTS>);

impl WaitList {
    /// Adds `waker`. If there is no slot left another one is woken early: it will look, and come back.
    fn add(&mut self, waker: &Waker) {
        if self.0.iter().any(|w| w.will_wake(waker)) {
            return;
        }
        if self.0.is_full() {
            self.0.remove(0).wake();
        }
        if self.0.push(waker.clone()).is_err() {
            waker.wake_by_ref();
        }
    }

    /// Wakes all.
    pub(crate) fn wake(self) {
        for waker in self.0 {
            waker.wake();
        }
    }
}

/// What [`Cache::get`] got.
pub enum Got<'a, M: Machine> {
    /// The page, pinned in its line.
    Ready(Pinned<'a, M>),
    /// The page's line, for the caller to load.
    Load(Load<'a, M>),
}

impl<M: Machine> Cache<M> {
    /// Waits until `page` is in a line, or has a line that the caller has to load. Ends when the transfers it waits for
    /// end: it is the store that must bound those.
    ///
    /// # Errors
    ///
    /// As for [`Cache::access`].
    pub async fn get(&self, page: Page, clock: impl Fn() -> Instant) -> Result<Got<'_, M>, Error> {
        let mut first = true;
        self.until(self.geometry().set_of(page), || {
            let access = if first {
                self.access(page, clock())
            } else {
                self.access_again(page, clock())
            };
            first = false;
            match access {
                Ok(Access::Ready(pinned)) => Some(Ok(Got::Ready(pinned))),
                Ok(Access::Load(load)) => Some(Ok(Got::Load(load))),
                Ok(Access::Wait) => None,
                Err(error) => Some(Err(error)),
            }
        })
        .await
    }

    /// Takes the mapping of `page` away but keeps its bytes, as [`Cache::revoke`] does, and returns when no core can use
    /// the mapping any more.
    pub async fn revoked(&self, page: Page) {
        self.until(self.geometry().set_of(page), || self.revoke(page).then_some(()))
            .await;
    }

    /// Waits until no page of `space` that was given up is in use by a transfer or a copy any more. Only then may its
    /// remote memory be given back.
    pub async fn quiesce(&self, space: SpaceId) {
        for index in 0..self.geometry().sets() {
            let quiet = || {
                let set = self.set(index);
                let busy = set
                    .lines
                    .iter()
                    .any(|l| l.state != State::Free && l.doomed && l.page.space == space);
                (!busy).then_some(())
            };
            self.until(index, quiet).await;
        }
    }

    /// Waits until `attempt` gives something; tries it after each change of the set.
    async fn until<T>(&self, index: u32, mut attempt: impl FnMut() -> Option<T>) -> T {
        poll_fn(|context| {
            if let Some(value) = attempt() {
                return Poll::Ready(value);
            }
            self.waits(index).lock().add(context.waker());
            // What changed before the waker was in its slot has woken no one.
            attempt().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}
