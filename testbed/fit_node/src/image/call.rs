//! Calls to each member of a role at a steady pace. Each error is reported, and ends the task's
//! calls if the peer is lost.

use alloc::sync::Arc;
use alloc::vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use fit::{Call, Error, PeerId, PeerName};
use fit_node::options::{Options, Part};
use fit_node::payload::{ECHO, HEADER_LEN, TestRequest};
use hal::Duration;
use node::Core;

use super::micros;

/// Bytes of a request and of a reply.
const REQUEST: usize = 32;
const REPLY: usize = 64;
const _: () = assert!(REQUEST >= HEADER_LEN);
/// Poll interval for the end of all calls.
const LOOK: Duration = Duration::from_millis(20);

/// Calling tasks and their counts.
pub(crate) struct Callers {
    core: Core,
    options: Options,
    made: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Callers {
    pub(crate) fn new(core: Core, options: &Options) -> Self {
        Self {
            core,
            options: *options,
            made: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// Begins to call a member, if it is to be called.
    pub(crate) fn start(self: &Arc<Self>, peer: PeerId, name: PeerName) {
        let is_wanted = self.options.to.is_none_or(|role| role == name.role);
        if self.options.part != Part::Call || !is_wanted {
            return;
        }
        for caller in 0..self.options.callers {
            let callers = self.clone();
            libos::spawn(async move { callers.call(peer, name, caller).await }).detach();
        }
    }

    /// Waits until all calls are made and have ended, and tells how many there were.
    pub(crate) async fn done(&self) {
        let ended = || self.answered.load(Relaxed) + self.failed.load(Relaxed);
        while self
            .options
            .calls
            .is_none_or(|calls| ended() < u64::from(calls))
        {
            libos::sleep(LOOK).await;
        }
        let (at, made) = (micros(), self.made.load(Relaxed));
        let (answered, failed) = (self.answered.load(Relaxed), self.failed.load(Relaxed));
        libos::report("calls", format_args!("{at}\t{made}\t{answered}\t{failed}"));
    }

    /// Returns the number of the next call; `None` if all are made.
    fn next(&self) -> Option<u64> {
        let number = self.made.fetch_add(1, Relaxed);
        let is_more = self.options.calls.is_none_or(|calls| number < calls.into());
        if !is_more {
            self.made.fetch_sub(1, Relaxed);
        }
        is_more.then_some(number)
    }

    async fn call(&self, peer: PeerId, name: PeerName, caller: u16) {
        let (mut is_answered, mut told_late) = (false, false);
        while let Some(number) = self.next() {
            let began = micros();
            let ended = self.call_once(peer, number).await;
            let now = micros();
            match ended {
                Ok(true) => {
                    self.answered.fetch_add(1, Relaxed);
                    if !core::mem::replace(&mut is_answered, true) {
                        libos::report("answered", format_args!("{now}\t{name}\t{caller}"));
                    }
                }
                Ok(false) => {
                    self.failed.fetch_add(1, Relaxed);
                    libos::report("damaged", format_args!("{now}\t{name}\t{caller}\t{number}"));
                }
                Err(error) => {
                    self.failed.fetch_add(1, Relaxed);
                    let is_lost = matches!(error, Error::PeerLost { .. } | Error::NotConnected(_));
                    if is_lost || !core::mem::replace(&mut told_late, true) {
                        let age = now - began;
                        libos::report(
                            "call_failed",
                            format_args!("{now}\t{name}\t{caller}\t{age}\t{error}"),
                        );
                    }
                    if is_lost {
                        return;
                    }
                }
            }
            libos::sleep(Duration::from_millis(self.options.pace_ms)).await;
        }
    }

    /// Calls once; whether the reply is the right one.
    async fn call_once(&self, peer: PeerId, number: u64) -> Result<bool, Error> {
        let ask = TestRequest {
            number,
            reply: u32::try_from(REPLY).expect("short"),
        };
        let mut request = [0; REQUEST];
        ask.write(&mut request);
        let mut reply = vec![0; REPLY];
        let ended = self
            .core
            .call(peer, Call::new(ECHO, &request), &mut reply)
            .await?;
        Ok(ask.is_answered_by(&reply[..ended.len]))
    }
}
