//! The layout of what a boot loader of ours leaves in memory for an image.
//!
//! The UEFI loader (`boot/uefi`) writes a [`Handover`]; libos reads and checks it. The image names
//! its entry for such a loader in an ELF note: name [`NOTE_NAME`], type [`NOTE_TYPE`], value the
//! entry's virtual address in 8 bytes.
//!
//! The entry is called in 64-bit mode with interrupts off, `rdi` holding the record's physical
//! address, EFER.NXE set, and page tables that map
//!
//! ```text
//! DIRECT_BASE                    the first 4 GiB of physical memory (`MAPPED`)
//! LINK_BASE                      the image, page by page, to `Handover::image`
//! ```
//!
//! Everything that the record names lies below [`MAPPED`], and its memory is not RAM by the map
//! that it names.
#![no_std]
#![forbid(unsafe_code)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The virtual address at which an image begins.
pub const LINK_BASE: u64 = 0xffff_ffff_8020_0000;
/// Address at which an image expects physical memory while it starts.
pub const DIRECT_BASE: u64 = 0xffff_8000_0000_0000;
/// Bytes of physical memory that are mapped there.
pub const MAPPED: u64 = 4 << 30;
/// The physical address at which an image's segments begin by its ELF header.
pub const LOAD_BASE: u64 = 0x20_0000;

/// The name of the ELF note that names the entry, without the zero byte at its end.
pub const NOTE_NAME: &str = "Tessera";
/// The type of that note.
pub const NOTE_TYPE: u32 = 1;

/// [`Handover::magic`]: "TESSERA1" in memory.
pub const MAGIC: u64 = u64::from_le_bytes(*b"TESSERA1");

/// [`Handover::framebuffer`] is of this many bytes; the format says how a pixel lies in its 4
/// bytes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Framebuffer {
    /// The physical address of the first pixel; 0 for no framebuffer.
    pub address: u64,
    /// Its bytes.
    pub len: u64,
    /// Pixels in a visible line.
    pub width: u32,
    /// Visible lines.
    pub height: u32,
    /// Pixels from one line to the next.
    pub stride: u32,
    /// 0 for red in the lowest byte, 1 for blue in the lowest byte.
    pub format: u32,
}

/// The record. All addresses are physical; all numbers little-endian, as the machine is.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Handover {
    /// [`MAGIC`].
    pub magic: u64,
    /// Physical address of the image's first byte; a page's first byte.
    pub image: u64,
    /// The command line.
    pub command_line: u64,
    /// Its bytes.
    pub command_line_len: u64,
    /// ACPI's root pointer, or 0.
    pub rsdp: u64,
    /// The memory map: descriptors of UEFI (UEFI specification 2.10, section 7.2.3,
    /// `EFI_MEMORY_DESCRIPTOR`).
    pub map: u64,
    /// Its bytes.
    pub map_len: u64,
    /// The bytes from one descriptor to the next.
    pub descriptor_len: u64,
    /// The screen.
    pub framebuffer: Framebuffer,
}

const _: () = assert!(size_of::<Handover>() == 96 && size_of::<Framebuffer>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_has_its_fields_where_the_page_says() {
        let record = Handover {
            magic: MAGIC,
            image: 0x1000,
            map_len: 0x22,
            framebuffer: Framebuffer {
                format: 1,
                ..Framebuffer::default()
            },
            ..Handover::default()
        };
        let bytes = record.as_bytes();
        assert_eq!(&bytes[..16], b"TESSERA1\0\x10\0\0\0\0\0\0");
        assert_eq!(bytes[48], 0x22);
        assert_eq!(bytes[92], 1);
        assert_eq!(Handover::read_from_bytes(bytes), Ok(record));
    }
}
