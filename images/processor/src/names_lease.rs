//! The lease of all names: what S said of paths holds while this node has it.
//!
//! S takes it back before another node changes a name or an attribute, or may gather writes. It is
//! asked for when a path is, at most once in [`leases::TERM`] or so, and keeps its generation while
//! nothing is taken back.

use hal::{Duration, Instant};
use leases::{Ask, Holder, Kind};
use messages::storage::FileId;
use spin::Mutex;

use crate::error::{Error, Result};
use crate::platform::Files;

/// The inode that stands for all names.
const NAMES: u64 = FileId::NAMES.0;
/// Time after a refusal in which the lease is not asked for.
const REFUSED: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct State {
    holder: Holder,
    /// S has refused the lease until then.
    refused: Instant,
}

/// The lease, as the node holds it.
#[derive(Debug)]
pub(crate) struct NamesLease(Mutex<State>);

/// A request for the lease, under way until this is dropped.
struct Asking<'a> {
    lease: &'a NamesLease,
    ask: Option<Ask>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(ask) = self.ask.take() {
            self.lease.0.lock().holder.abandoned(ask);
        }
    }
}

impl NamesLease {
    /// Returns a lease that is not held.
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(State {
            holder: Holder::new(),
            refused: Instant::from_nanos(0),
        }))
    }

    /// Returns the lease's generation, if it is held now.
    pub(crate) fn held(&self, now: Instant) -> Option<u64> {
        let held = self.0.lock().holder.valid(NAMES, now)?;
        Some(held.generation)
    }

    /// Returns the lease's generation, and asks S for the lease if need be; `None` if it can't be
    /// had.
    ///
    /// # Errors
    ///
    /// When S is lost.
    pub(crate) async fn get(
        &self,
        files: &impl Files,
        clock: impl Fn() -> Instant,
    ) -> Result<Option<u64>> {
        let now = clock();
        let asking = {
            let mut state = self.0.lock();
            if let Some(held) = state.holder.valid(NAMES, now) {
                return Ok(Some(held.generation));
            }
            if now < state.refused || !state.holder.may_ask(NAMES, now) {
                return Ok(None);
            }
            let ask = Some(state.holder.ask(now));
            Asking { lease: self, ask }
        };
        match files.lease(FileId::NAMES).await {
            Ok(leased) => Ok(asking.answered(leased.lease, now)),
            Err(Error::Errno(_)) => Ok(asking.answered(0, now)),
            Err(error) => Err(error),
        }
    }

    /// Gives the lease up.
    pub(crate) fn recalled(&self, generation: u64, now: Instant) {
        self.0.lock().holder.recalled(NAMES, generation, now);
    }
}

impl Asking<'_> {
    /// Takes over what S has granted; 0 is a refusal.
    fn answered(mut self, lease: u64, now: Instant) -> Option<u64> {
        let ask = self.ask.take()?;
        let mut state = self.lease.0.lock();
        if lease == 0 {
            state.refused = now + REFUSED;
        }
        let granted = (lease != 0).then_some((lease, Kind::Read));
        let held = state.holder.answered(ask, NAMES, granted)?;
        Some(held.generation)
    }
}
