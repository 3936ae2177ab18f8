//! Errors of a device, and the words that they are told in: operations, resources, parameters.

use core::fmt;

use crate::QpSlot;

/// Reasons why a device did not do what it was asked. A request that was not taken leaves its queue
/// as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The work queue has no free slot. A user that counts its credits never sees this.
    #[error("the work queue of {qp} is full ({depth} requests)")]
    QueueFull {
        /// The queue pair.
        qp: QpSlot,
        /// Number of requests that it holds.
        depth: u32,
    },
    /// More pieces or inline bytes than the queue pair was made for.
    #[error("the request needs {needed} bytes of descriptor, {qp} has {have}")]
    TooLarge {
        /// The queue pair.
        qp: QpSlot,
        /// Descriptor bytes needed.
        needed: u32,
        /// Descriptor bytes a request may have.
        have: u32,
    },
    /// The request does not fit the queue pair's kind.
    #[error("{misuse} is not possible on {qp}")]
    NotPossible {
        /// The queue pair.
        qp: QpSlot,
        /// The request's kind.
        misuse: Misuse,
    },
    /// No such queue pair in this set, or it is not in a state that takes the request.
    #[error("{qp} does not take requests")]
    NotReady {
        /// The queue pair.
        qp: QpSlot,
    },
    /// The device wrote a completion that can't be: an unknown queue pair, or an index with nothing
    /// posted there.
    #[error("a completion for QPN {qpn:#x}, index {index}, that nothing was posted for")]
    Inconsistent {
        /// The queue pair's number as the device wrote it.
        qpn: u32,
        /// The index as the device wrote it.
        index: u16,
    },
    /// The completion queue was overrun or failed; its queue pairs are in the error state.
    #[error("the completion queue failed")]
    CqFailed,
    /// No answer within the deadline.
    #[error("no answer to {operation} within {millis} ms")]
    Timeout {
        /// The operation.
        operation: Operation,
        /// Time waited, in milliseconds.
        millis: u64,
    },
    /// The firmware refused a command.
    #[error("{operation} was refused with status {status:#04x}")]
    Refused {
        /// The operation that the command belongs to.
        operation: Operation,
        /// The device's status code.
        status: u8,
    },
    /// The device has no more of a resource.
    #[error("no {resource} left (limit {limit})")]
    Exhausted {
        /// The resource.
        resource: Resource,
        /// The limit.
        limit: u64,
    },
    /// The machine has no contiguous memory of this size.
    #[error("no {bytes} contiguous bytes for DMA")]
    NoMemory {
        /// The bytes asked for.
        bytes: u64,
    },
    /// The machine gives no BAR of this index, or one that is too small.
    #[error("BAR {index} is missing or too small")]
    NoBar {
        /// The BAR's index in config space.
        index: u8,
    },
    /// The machine gives too few interrupt vectors.
    #[error("{wanted} interrupt vectors wanted, there are {have}")]
    TooFewVectors {
        /// The vectors asked for.
        wanted: u16,
        /// The vectors there are.
        have: u16,
    },
    /// The request makes no sense to this device.
    #[error("{parameter}: {value} is outside what the device takes")]
    OutOfRange {
        /// The parameter.
        parameter: Parameter,
        /// Its value.
        value: u64,
    },
    /// The device is gone, failed, or answers nonsense.
    #[error("the device failed: {0}")]
    Failed(Failure),
}

// Posts and polls return it on the data path: with the result around it, two registers.
const _: () = assert!(size_of::<Result<usize, Error>>() == 16);

/// Displays each value of an enum as a phrase.
macro_rules! phrases {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $phrase:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$value_doc])* $value,)*
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$value => $phrase,)*
                })
            }
        }
    };
}

phrases! {
    /// Requests that a kind of queue pair does not take.
    Misuse {
        /// Any request on a queue pair of the device's own.
        Management = "a request of the user on a management queue pair",
        /// A destination on a connection.
        DatagramOnConnection = "a datagram on a connection",
        /// A datagram to nobody.
        NoDestination = "a datagram without destination",
        /// READ or WRITE on a datagram queue pair.
        RdmaByDatagram = "RDMA by datagram",
        /// A READ into the request itself.
        InlineRead = "an inline READ",
    }
}

phrases! {
    /// Operations of a device, each of one or more firmware commands.
    Operation {
        /// Bring-up and all that no other operation covers.
        Start = "a command of the device's start",
        /// [`create_queues`](crate::Device::create_queues).
        CreateQueues = "the creation of a completion queue",
        /// [`destroy_queues`](crate::Device::destroy_queues).
        DestroyQueues = "the end of a completion queue",
        /// A new queue pair, or [`init_qp`](crate::Device::init_qp).
        InitQp = "a queue pair's transition to INIT",
        /// [`ready_to_receive`](crate::Device::ready_to_receive).
        ReadyToReceive = "a queue pair's transition to RTR",
        /// [`ready_to_send`](crate::Device::ready_to_send).
        ReadyToSend = "a queue pair's transition to RTS",
        /// [`fail_qp`](crate::Device::fail_qp).
        FailQp = "a queue pair's transition to ERR",
        /// [`reset_qp`](crate::Device::reset_qp), or the end of a queue pair.
        ResetQp = "a queue pair's transition to RESET",
        /// [`register`](crate::Device::register).
        Register = "the registration of a memory region",
        /// [`deregister`](crate::Device::deregister).
        Deregister = "the end of a memory region",
        /// Changes of the table of multicast groups.
        Multicast = "a change of the multicast table",
        /// [`port`](crate::Device::port).
        QueryPort = "the question for the port's state",
        /// A mapping of context memory.
        MapMemory = "a mapping of context memory",
    }
}

phrases! {
    /// Resources of a device and of a queue set.
    Resource {
        /// Queue pairs.
        QueuePair = "queue pair",
        /// Completion queues.
        CompletionQueue = "completion queue",
        /// Event queues.
        EventQueue = "event queue",
        /// Memory regions.
        Region = "memory region",
        /// Entries of the table that translates memory regions.
        TranslationEntry = "translation entry",
        /// Entries of the table of multicast groups.
        MulticastGroup = "multicast group",
        /// Receivers of a multicast group.
        MulticastMember = "place in a multicast group",
        /// Slots of a queue set.
        Slot = "slot of a queue set",
        /// Buffers for management datagrams that are being sent.
        Datagram = "management datagram under way",
    }
}

phrases! {
    /// Parameters that a device bounds.
    Parameter {
        /// Port of a device, from 1.
        Port = "the port",
        /// Payload of a packet on the whole path.
        PathMtu = "the path MTU",
        /// Code of the delay asked of a sender.
        RnrTimer = "the RNR timer",
        /// Retries after a timeout.
        Retries = "retries",
        /// Retries after receiver-not-ready.
        RnrRetries = "RNR retries",
        /// Exponent of the ACK timeout.
        AckTimeout = "the ACK timeout",
        /// READs that a queue pair answers at once.
        ResponderReads = "READs answered at once",
        /// Requests of a send queue.
        SendQueueDepth = "the send queue's depth",
        /// Requests of a receive queue.
        ReceiveQueueDepth = "the receive queue's depth",
        /// Pieces of a send request.
        SendPieces = "pieces of a send",
        /// Pieces of a receive request.
        ReceivePieces = "pieces of a receive",
        /// Slots of a send queue, whose size follows from depth and descriptor.
        SendSlots = "the send queue's slots",
        /// Bytes of a send request's descriptor.
        SendDescriptor = "a send's descriptor",
        /// Bytes inside a send request.
        InlineBytes = "inline bytes",
        /// Entries of a completion queue.
        CqDepth = "the completion queue's depth",
        /// Interrupt vector of a completion queue.
        CompletionVector = "the completion vector",
        /// Number of a queue pair.
        Qpn = "the queue pair's number",
        /// Queue pair that is to be connected by no path.
        NoPath = "a connection without path",
        /// Place of a queue pair in its set.
        Slot = "the queue pair's slot",
        /// Protection domain.
        Domain = "the protection domain",
        /// Bytes of a memory region.
        RegionLen = "the length of a memory region",
        /// Key of a memory region.
        RegionKey = "the key of a memory region",
        /// Entry of the table of multicast groups, as the device named it.
        MulticastIndex = "the index of a multicast group",
    }
}

phrases! {
    /// Failures of a device.
    Failure {
        /// Its registers read as all ones, or its machine stopped.
        Gone = "it is gone",
        /// Firmware wrote its catastrophic error buffer, or an event that says so.
        Firmware = "its firmware failed",
        /// It failed before, and is not used any more.
        Earlier = "an earlier failure",
        /// Another driver has it.
        Owned = "another driver owns it",
        /// It states a number that its driver can't work with.
        Unsupported = "it states a number that its driver can't use",
        /// A completion queue that everything depends on failed.
        CompletionQueue = "a completion queue failed",
        /// Its user stopped without a cause.
        Unknown = "no cause is known",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_operation_resource_and_parameter() {
        let refused = Error::Refused {
            operation: Operation::ReadyToReceive,
            status: 3,
        };
        let text = "a queue pair's transition to RTR was refused with status 0x03";
        assert_eq!(refused.to_string(), text);
        let exhausted = Error::Exhausted {
            resource: Resource::QueuePair,
            limit: 9,
        };
        assert_eq!(exhausted.to_string(), "no queue pair left (limit 9)");
        let outside = Error::OutOfRange {
            parameter: Parameter::PathMtu,
            value: 1500,
        };
        let text = "the path MTU: 1500 is outside what the device takes";
        assert_eq!(outside.to_string(), text);
        let gone = Error::Failed(Failure::Gone).to_string();
        assert_eq!(gone, "the device failed: it is gone");
    }
}
