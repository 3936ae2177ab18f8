//! Errors between the driver and the card.

use core::fmt;

use hal::Duration;
use mlx4_hw::command::{CmdStatus, Opcode};
use verbs::{Failure, Operation, Parameter, Resource};

/// Reasons why a step of the driver failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine could not give memory, BARs or vectors.
    #[error(transparent)]
    Platform(#[from] hal::Error),
    /// Nothing came within the deadline.
    #[error("no answer to {event} within {waited:?}")]
    Timeout {
        /// The awaited event.
        event: Awaited,
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
        during: Step,
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
        what: CardNumber,
        /// Its value.
        value: u64,
    },
    /// A parameter of the caller is outside what the card takes.
    #[error("{parameter}: {value} is outside what the card takes")]
    OutOfRange {
        /// The parameter.
        parameter: Parameter,
        /// Its value.
        value: u64,
    },
    /// The card has no more of a resource.
    #[error("no {resource} left (there are {limit})")]
    Exhausted {
        /// The resource.
        resource: Resource,
        /// The limit.
        limit: u64,
    },
}

/// Events other than a command's end that the driver waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Awaited {
    /// The end of another change of the multicast table.
    MulticastTable,
    /// The card's first answer after its reset.
    Reset,
    /// The semaphore that guards the reset.
    Semaphore,
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MulticastTable => "another change of the multicast table",
            Self::Reset => "the card's return from reset",
            Self::Semaphore => "the card's semaphore",
        })
    }
}

/// Reads of a register that show that the card is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The vendor and device in config space.
    PciId,
    /// The register that tells the owner.
    Ownership,
    /// The semaphore that guards the reset.
    Semaphore,
    /// The catastrophic error buffer.
    Health,
    /// The command register.
    CommandRegister,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PciId => "reading its PCI id",
            Self::Ownership => "taking ownership",
            Self::Semaphore => "taking its semaphore",
            Self::Health => "looking at its firmware's health",
            Self::CommandRegister => "looking at the command register",
        })
    }
}

/// Numbers that a card states and its driver depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CardNumber {
    /// Revision of the firmware's command interface.
    CommandRevision,
    /// Logarithm of the smallest page that it maps.
    LogMinPage,
    /// Port that can't speak InfiniBand.
    PortWithoutInfiniband,
    /// Attribute about which the agent's answer could not be read.
    Attribute,
    /// Bytes of an MTT entry.
    MttEntryLen,
    /// Bytes of the context memory.
    MaxIcm,
    /// Pages of the auxiliary area.
    AuxPages,
}

impl fmt::Display for CardNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CommandRevision => "the command interface revision",
            Self::LogMinPage => "log2 of the smallest page",
            Self::PortWithoutInfiniband => "a port without InfiniBand",
            Self::Attribute => "the agent's answer about attribute",
            Self::MttEntryLen => "the size of an MTT entry",
            Self::MaxIcm => "the card's context memory",
            Self::AuxPages => "the auxiliary area in pages",
        })
    }
}

/// The operation that a command belongs to.
fn operation(opcode: Opcode) -> Operation {
    match opcode {
        Opcode::SW2HW_CQ => Operation::CreateQueues,
        Opcode::HW2SW_CQ => Operation::DestroyQueues,
        Opcode::RST2INIT_QP => Operation::InitQp,
        Opcode::INIT2RTR_QP => Operation::ReadyToReceive,
        Opcode::RTR2RTS_QP => Operation::ReadyToSend,
        Opcode::QP_2ERR => Operation::FailQp,
        Opcode::QP_2RST => Operation::ResetQp,
        Opcode::SW2HW_MPT => Operation::Register,
        Opcode::HW2SW_MPT => Operation::Deregister,
        Opcode::READ_MCG | Opcode::WRITE_MCG | Opcode::MGID_HASH => Operation::Multicast,
        Opcode::MAD_IFC | Opcode::QUERY_PORT => Operation::QueryPort,
        Opcode::MAP_ICM | Opcode::UNMAP_ICM => Operation::MapMemory,
        _ => Operation::Start,
    }
}

impl From<Error> for verbs::Error {
    fn from(error: Error) -> Self {
        let timeout = |operation, waited: Duration| Self::Timeout {
            operation,
            millis: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
        };
        match error {
            Error::Platform(error) => machine(error),
            Error::Timeout {
                event: Awaited::MulticastTable,
                waited,
            } => timeout(Operation::Multicast, waited),
            Error::Timeout { waited, .. } => timeout(Operation::Start, waited),
            Error::CommandTimeout { opcode, waited } => timeout(operation(opcode), waited),
            Error::Refused { opcode, status } => Self::Refused {
                operation: operation(opcode),
                status: status.0,
            },
            Error::Gone { .. } => Self::Failed(Failure::Gone),
            Error::Catastrophic(_) => Self::Failed(Failure::Firmware),
            Error::Failed => Self::Failed(Failure::Earlier),
            Error::Owned(_) => Self::Failed(Failure::Owned),
            Error::Unsupported { .. } => Self::Failed(Failure::Unsupported),
            Error::OutOfRange { parameter, value } => Self::OutOfRange { parameter, value },
            Error::Exhausted { resource, limit } => Self::Exhausted { resource, limit },
        }
    }
}

fn machine(error: hal::Error) -> verbs::Error {
    match error {
        hal::Error::NoBar { index } => verbs::Error::NoBar { index },
        hal::Error::NoDmaMemory { len } => verbs::Error::NoMemory { bytes: len as u64 },
        hal::Error::TooFewVectors { wanted, have } => verbs::Error::TooFewVectors { wanted, have },
        _ => verbs::Error::Failed(Failure::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_learn_operation_and_cause() {
        let refused = |opcode| {
            let status = CmdStatus(3);
            verbs::Error::from(Error::Refused { opcode, status })
        };
        for (opcode, operation) in [
            (Opcode::INIT2RTR_QP, Operation::ReadyToReceive),
            (Opcode::QP_2RST, Operation::ResetQp),
            (Opcode::SW2HW_MPT, Operation::Register),
            (Opcode::QUERY_FW, Operation::Start),
        ] {
            let status = 3;
            let told = verbs::Error::Refused { operation, status };
            assert_eq!(refused(opcode), told);
        }
        let gone = Error::Gone {
            during: Step::Health,
        };
        assert_eq!(
            verbs::Error::from(gone),
            verbs::Error::Failed(Failure::Gone)
        );
        let error = hal::Error::NoDmaMemory { len: 9 };
        let bytes = 9;
        assert_eq!(
            verbs::Error::from(Error::Platform(error)),
            verbs::Error::NoMemory { bytes }
        );
    }
}
