//! Errors of a disk and of its bring-up.

use core::fmt;

use hal::Duration;
use nvme_hw::identify::Unusable;
use nvme_hw::{Opcode, Status};

/// A request as errors name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub(crate) opcode: Opcode,
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            opcode,
            offset,
            len,
        } = self;
        match *opcode {
            Opcode::READ => write!(f, "a read of {len} bytes at {offset}"),
            Opcode::WRITE => write!(f, "a write of {len} bytes at {offset}"),
            _ => f.write_str("a flush"),
        }
    }
}

/// Reasons why a disk can't be used, or a request failed. The disk's name is the caller's to add.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine could not give memory or the BAR.
    #[error(transparent)]
    Platform(#[from] hal::Error),
    /// Registers read as all ones: the device is gone.
    #[error("the device is gone (seen while {during})")]
    Gone {
        /// The step during which it happened.
        during: Step,
    },
    /// The controller says that it has failed (CSTS.CFS, section 3.1.6).
    #[error("the controller reports a fatal status")]
    Fatal,
    /// A step did not end within its deadline.
    #[error("{step} took longer than {waited:?}")]
    Timeout {
        /// The step.
        step: Step,
        /// Time waited.
        waited: Duration,
    },
    /// An admin command failed.
    #[error("{step} failed: {status}")]
    Refused {
        /// The step that it was for.
        step: Step,
        /// Its status.
        status: Status,
    },
    /// A number that the controller states is outside what this driver can work with.
    #[error("{what} is {value}, which this driver can't use")]
    Unsupported {
        /// The number.
        what: ControllerNumber,
        /// Its value.
        value: u64,
    },
    /// The controller or its namespace is of a kind that is not driven.
    #[error("{0}")]
    Unusable(Unusable),
    /// The controller has no active namespace.
    #[error("it has no namespace")]
    NoNamespace,
    /// A completion is for no outstanding command.
    #[error(
        "queue {queue} has a completion for command {id:#06x} of queue {of}, which is not outstanding"
    )]
    Nonsense {
        /// The queue that holds the completion.
        queue: u16,
        /// The submission queue that it names.
        of: u16,
        /// The command that it names.
        id: u16,
    },
    /// After a reset the controller or its namespace is another one.
    #[error("it is another disk since its reset")]
    Changed,
    /// A request was not answered within its deadline, and the controller was reset.
    #[error("{request} was not answered in {waited:?}")]
    Late {
        /// The request.
        request: Request,
        /// Time waited.
        waited: Duration,
    },
    /// The device could not do it.
    #[error("{request} failed: {status}")]
    Failed {
        /// The request.
        request: Request,
        /// The device's status.
        status: Status,
    },
    /// A request was lost in as many resets as it may be.
    #[error("{request} was lost in resets of the controller")]
    Lost {
        /// The request.
        request: Request,
    },
    /// The request leaves the disk, is not in whole blocks or is too long, or would change a disk
    /// that is read-only.
    #[error("{request} can't be made")]
    Impossible {
        /// The request.
        request: Request,
    },
}

/// Steps of bring-up and recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The first read of the registers.
    ReadCapabilities,
    /// Disabling the controller.
    Stop,
    /// Enabling the controller.
    Start,
    /// The place of an admin command that was given up, until the controller ends it.
    AwaitEarlierCommand,
    /// Identify, of the controller or a namespace.
    Identify,
    /// Set Features, number of queues.
    AskForQueues,
    /// Create I/O Completion Queue.
    CreateCompletionQueue,
    /// Create I/O Submission Queue.
    CreateSubmissionQueue,
    /// The look at the status while a request is at work.
    AwaitCompletion,
    /// The look at the status before a recovery.
    LookForFailure,
    /// Abort.
    Abort,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadCapabilities => "reading its capabilities",
            Self::Stop => "stopping the controller",
            Self::Start => "starting the controller",
            Self::AwaitEarlierCommand => "waiting for an earlier admin command",
            Self::Identify => "identifying",
            Self::AskForQueues => "asking for queues",
            Self::CreateCompletionQueue => "creating a completion queue",
            Self::CreateSubmissionQueue => "creating a submission queue",
            Self::AwaitCompletion => "waiting for a completion",
            Self::LookForFailure => "looking for a failure",
            Self::Abort => "aborting a command",
        })
    }
}

/// Numbers that a controller states and its driver depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControllerNumber {
    /// Bits of the command sets that it has (CAP.CSS).
    CommandSets,
    /// Exponent of the smallest page that it maps (CAP.MPSMIN).
    MinPage,
    /// Number of the last entry that a queue may have (CAP.MQES).
    LastQueueEntry,
    /// Length of its registers, which must hold the doorbells of two pairs of queues.
    RegistersLen,
}

impl fmt::Display for ControllerNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CommandSets => "the set of command sets",
            Self::MinPage => "the smallest page's exponent",
            Self::LastQueueEntry => "the last entry's number of a queue",
            Self::RegistersLen => "the length of the registers",
        })
    }
}
