//! Accesses that were started with a tag: the tag is the operation's number.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Mutex, PoisonError};
use std::task::{Poll, Waker};

use fit::AccessEnd;

use crate::machine::Machine;
use crate::sabotage::Sabotage;

enum End {
    Awaited(Option<Waker>),
    Come(bool),
}

/// Results of one-sided accesses by tag, or the waiters for them.
#[derive(Default)]
pub(super) struct Ends(Mutex<BTreeMap<u64, End>>);

impl Ends {
    /// Notes that an access was started with this tag.
    pub(super) fn expect(&self, tag: u64) {
        self.with(|ends| ends.insert(tag, End::Awaited(None)));
    }

    /// Forgets a tag: its access was not started.
    pub(super) fn give_up(&self, tag: u64) {
        self.with(|ends| ends.remove(&tag));
    }

    fn with<T>(&self, action: impl FnOnce(&mut BTreeMap<u64, End>) -> T) -> T {
        action(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the end of an access from FIT.
    pub(super) fn end(&self, machine: &Machine, ended: AccessEnd) {
        let ok = ended.result.is_ok();
        machine.living(|world| {
            world.close(ended.tag, ok);
            if world.sabotaged(Sabotage::DoubleEnd) {
                world.close(ended.tag, ok);
            }
        });
        let before = self.with(|ends| ends.insert(ended.tag, End::Come(ok)));
        if let Some(End::Awaited(Some(waker))) = before {
            waker.wake();
        }
    }

    /// Waits for an end: whether it is a good one.
    pub(super) async fn wait(&self, tag: u64) -> bool {
        poll_fn(|context| {
            self.with(|ends| match ends.remove(&tag) {
                Some(End::Come(ok)) => Poll::Ready(ok),
                _ => {
                    ends.insert(tag, End::Awaited(Some(context.waker().clone())));
                    Poll::Pending
                }
            })
        })
        .await
    }
}
