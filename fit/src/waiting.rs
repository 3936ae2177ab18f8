//! The report to a waiter whose peer is lost: the awaited operation, its age, and the reason of the
//! loss.

use core::fmt;

use hal::{Duration, Instant, Platform};
use verbs::Device;

use crate::{Core, Error, LinkState, Operation, PeerId};

/// An operation that was waited for when its peer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The operation.
    pub operation: Operation,
    /// Age of the operation.
    pub age: Duration,
    /// The connection's state when the waiter was told.
    pub state: LinkState,
}

impl Waiting {
    /// The end of a sentence that says that a peer is lost.
    pub(crate) fn clause(waiting: &Option<Self>) -> impl fmt::Display {
        fmt::from_fn(move |f| match waiting {
            Some(Self {
                operation,
                age,
                state,
            }) => {
                write!(
                    f,
                    "; no end of {operation} after {age:?} (connection {state:?})"
                )
            }
            None => Ok(()),
        })
    }
}

impl Error {
    /// Says what was waited for, if the error is that the peer is lost.
    pub(crate) fn while_waiting(self, waited: Waiting) -> Self {
        match self {
            Self::PeerLost {
                peer,
                cause,
                waiting: None,
            } => Self::PeerLost {
                peer,
                cause,
                waiting: Some(waited),
            },
            other => other,
        }
    }
}

impl<D: Device, P: Platform> Core<D, P> {
    /// The error of something that was under way: if the peer is lost, it says what this was.
    pub(crate) fn cut_short(
        &self,
        peer: PeerId,
        (operation, began): (Operation, Instant),
        error: Error,
    ) -> Error {
        let state = self.engine().state(peer).unwrap_or(LinkState::Down);
        let age = self.inner.platform.now().since(began);
        error.while_waiting(Waiting {
            operation,
            age,
            state,
        })
    }
}
