//! Writing the table into a linked image.

use std::format;
use std::string::String;
use std::vec::Vec;

use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

use crate::{SECTION, encode};

/// Reasons why an image can't be given its table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is no object that can be read.
    #[error("the image can't be read: {0}")]
    Object(#[from] object::Error),
    /// The image has no room for a table: it was not linked by libos's script.
    #[error("the image has no section {SECTION} within the file")]
    NoSection,
}

/// Returns a symbol's name as it is written in Rust, without a hash.
#[must_use]
pub fn demangled(symbol: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(symbol))
}

/// Writes the image's functions into its symbol section. `image` is the linked ELF file.
///
/// # Errors
///
/// When the image can't be read or has no such section; it is unchanged then.
pub fn embed(image: &mut [u8]) -> Result<(), Error> {
    let file = object::File::parse(&*image)?;
    let section = file.section_by_name(SECTION).ok_or(Error::NoSection)?;
    let (start, len) = section.file_range().ok_or(Error::NoSection)?;
    let functions = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.address() != 0);
    let mut symbols = Vec::new();
    for symbol in functions {
        symbols.push((symbol.address(), demangled(symbol.name()?)));
    }
    // The entry code lies far below the rest, and can't panic.
    symbols.retain(|(address, _)| *address >= section.address() & !0x7fff_ffff);
    let (start, len) = (
        usize::try_from(start).unwrap_or(usize::MAX),
        usize::try_from(len).unwrap_or(0),
    );
    let end = start.checked_add(len).ok_or(Error::NoSection)?;
    let room = image.get_mut(start..end).ok_or(Error::NoSection)?;
    let table = encode(&symbols, len);
    room[..table.len()].copy_from_slice(&table);
    Ok(())
}
