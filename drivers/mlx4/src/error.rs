//! Errors between the driver and the card.

use hal::Duration;
use mlx4_hw::command::{CmdStatus, Opcode};
use verbs::DeviceError;

/// Reasons why a step of the driver failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine could not give memory, BARs or vectors.
    #[error(transparent)]
    Platform(#[from] hal::Error),
    /// Nothing came within the deadline.
    #[error("no answer to {what} within {waited:?}")]
    Timeout {
        /// The awaited event.
        what: &'static str,
        /// Time waited.
        waited: Duration,
    },
    /// A command had no answer within its deadline. The card is not used any more.
    #[error("no answer to {opcode} within {waited:?}")]
    CommandTimeout {
        /// The command.
        opcode: Opcode,
        /// Time waited.
        waited: Duration,
    },
    /// The firmware refused a command.
    #[error("{opcode} was refused: {status}")]
    Refused {
        /// The command.
        opcode: Opcode,
        /// The firmware's answer.
        status: CmdStatus,
    },
    /// Registers read as all ones: the card is gone.
    #[error("the card is gone (seen while {during})")]
    Gone {
        /// The step during which it happened.
        during: &'static str,
    },
    /// The firmware failed: the first dword of its catastrophic error buffer is not 0.
    #[error("the firmware failed: its catastrophic error buffer begins with {0:#x}")]
    Catastrophic(u32),
    /// An earlier failure makes the card unusable until it is started again.
    #[error("the card failed before and is not used any more")]
    Failed,
    /// Another driver owns the card.
    #[error("the card has another owner (ownership reads {0:#x})")]
    Owned(u32),
    /// A number that the card states is outside what this driver can work with.
    #[error("{what} is {value}, which this driver can't use")]
    Unsupported {
        /// The number's name.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A parameter of the caller is outside what the card takes.
    #[error("{what}: {value} is outside what the card takes")]
    OutOfRange {
        /// The parameter.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// The card has no more of a resource.
    #[error("no {resource} left (there are {limit})")]
    Exhausted {
        /// The resource.
        resource: &'static str,
        /// The limit.
        limit: u64,
    },
}

impl From<Error> for DeviceError {
    fn from(error: Error) -> Self {
        let millis = |waited: Duration| u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        match error {
            Error::Platform(hal::Error::NoBar { .. }) => Self::Platform("a BAR is missing"),
            Error::Platform(hal::Error::NoDmaMemory { .. }) => Self::Platform("no DMA memory left"),
            Error::Platform(_) => Self::Platform("too few interrupt vectors"),
            Error::Timeout { what, waited } => Self::Timeout {
                what,
                millis: millis(waited),
            },
            Error::CommandTimeout { opcode, waited } => Self::Timeout {
                what: opcode.name().unwrap_or("a command"),
                millis: millis(waited),
            },
            Error::Refused { opcode, status } => Self::Refused {
                command: opcode.name().unwrap_or("a command"),
                status: status.0,
            },
            Error::Gone { during } => Self::Failed(during),
            Error::Catastrophic(_) => Self::Failed("a catastrophic error of the firmware"),
            Error::Failed => Self::Failed("an earlier failure"),
            Error::Owned(_) => Self::Failed("another driver owns the card"),
            Error::Unsupported { what, value } | Error::OutOfRange { what, value } => {
                Self::OutOfRange { what, value }
            }
            Error::Exhausted { resource, limit } => Self::Exhausted { resource, limit },
        }
    }
}
