//! Shared by the tests: a disk in memory that can lose power, an executor, e2fsprogs, and a
//! reference of files.

#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod check;
pub(crate) mod disk;
pub(crate) mod model;
pub(crate) mod mounted;
pub(crate) mod tools;
pub(crate) mod work;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use ext4::Time;

/// A small generator of numbers (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("fits")
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Polls a future to its end; one that stays pending for long is a hang.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..100_000_000_u64 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("the future never ends");
}

/// Polls a future some times, then drops it; returns its value if it ended.
pub(crate) fn give_up<F: Future>(future: F, polls: u64) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    (0..polls).find_map(|_| match future.as_mut().poll(&mut context) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    })
}

/// A time that grows by steps.
pub(crate) fn at(step: u64) -> Time {
    Time {
        seconds: 1_700_000_000 + i64::try_from(step).expect("a small number"),
        nanos: 5,
    }
}
