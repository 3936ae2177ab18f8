//! Errors of libos.

use alloc::string::String;
use alloc::vec::Vec;

/// An error of libos.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A `%` of the command line is not followed by two hexadecimal digits.
    #[error("bad percent escape in {:?}", String::from_utf8_lossy(token))]
    PercentEscape {
        /// The token as it stands on the line.
        token: Vec<u8>,
    },
    /// An option's key or value is not UTF-8.
    #[error("option {:?} is not UTF-8", String::from_utf8_lossy(bytes))]
    OptionText {
        /// The decoded bytes.
        bytes: Vec<u8>,
    },
    /// An option's value is not what the option takes.
    #[error("option {key}: bad value {value:?}")]
    OptionValue {
        /// The option's key.
        key: String,
        /// The value given.
        value: String,
    },
    /// An address is not in a program's half of the address space.
    #[error("{address:#x} is no program's address")]
    NotUserAddress {
        /// The address.
        address: u64,
    },
    /// An address is not the first of a page in a program's half of the address space.
    #[error("{address:#x} is no program's page")]
    NotUserPage {
        /// The address.
        address: u64,
    },
    /// A page is mapped there already.
    #[error("a page is mapped at {address:#x} already")]
    Mapped {
        /// The address.
        address: u64,
    },
    /// There is no memory left.
    #[error("out of memory")]
    NoMemory,
    /// There is no record of a boot loader where it should be, or it says what can't be.
    #[error("no usable record of a boot loader at {address:#x}")]
    NoBootRecord {
        /// The physical address that the loader gave.
        address: u64,
    },
    /// The boot loader names no RAM.
    #[error("the boot loader names no RAM")]
    NoMemoryMap,
    /// A virtio device can't be set up.
    #[error("virtio device {device}: {cause}")]
    Virtio {
        /// Its place on the PCI bus.
        device: String,
        /// The driver's error.
        cause: String,
    },
}
