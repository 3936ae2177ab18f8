//! Errors of the loader's input.

/// An error of the loader's pure parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The loader's own headers are not those of a PE file.
    #[error("this program has no PE header")]
    NoHeader,
    /// The build has added no image.
    #[error("this program has no section {:?}: it was not made by `build-image`", core::str::from_utf8(name).unwrap_or_default())]
    NoSection {
        /// The section's name.
        name: [u8; 8],
    },
    /// The image is no ELF file for this.
    #[error("the image is not an ELF file of 64 bits")]
    NotElf,
    /// A segment lies where none can.
    #[error("the image's segment at {address:#x}, {len} bytes long, is out of bounds")]
    Segment {
        /// Its physical address.
        address: u64,
        /// Its length in memory.
        len: u64,
    },
    /// The image names no entry for this loader, or one outside of it.
    #[error("the image has no entry for this loader")]
    NoEntry,
    /// The pages for the page tables do not suffice.
    #[error("the page tables need more than {pages} pages")]
    NoTable {
        /// The number of pages.
        pages: usize,
    },
    /// A page is mapped twice, to different places.
    #[error("{address:#x} is mapped already")]
    Mapped {
        /// The virtual address.
        address: u64,
    },
}
