//! An image's own symbol table, so that a panic can name functions.
//!
//! The linker script leaves room for it in the section [`SECTION`]; after linking, the build writes
//! the table there (`embed`, a feature for the host); at run time [`Table`] looks addresses up.
//!
//! The table, little-endian: the magic `KSYM`, the number of symbols (`u32`), the base address
//! (`u64`); then for each symbol, by address, its offset from the base and its name's offset (`u32`
//! each); then the names, each a length (`u16`) and UTF-8.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "embed"))]
extern crate std;

#[cfg(feature = "embed")]
mod embed;
#[cfg(any(test, feature = "embed"))]
mod encode;

#[cfg(feature = "embed")]
pub use embed::{Error, demangled, embed};
#[cfg(any(test, feature = "embed"))]
pub use encode::encode;

/// The section's name.
pub const SECTION: &str = ".ksyms";
const MAGIC: [u8; 4] = *b"KSYM";
const HEADER: usize = 16;
const ENTRY: usize = 8;

/// A symbol table in memory.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    base: u64,
    entries: &'a [u8],
    names: &'a [u8],
}

impl<'a> Table<'a> {
    /// Reads a table; `None` if there is none.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let count = usize::try_from(u32_at(rest, 0)?).ok()?;
        let base = u64::from_le_bytes(*rest.get(4..)?.first_chunk()?);
        let (entries, names) = bytes
            .get(HEADER..)?
            .split_at_checked(count.checked_mul(ENTRY)?)?;
        Some(Self {
            base,
            entries,
            names,
        })
    }

    /// The function that `address` lies in or after, and how far in.
    #[must_use]
    pub fn lookup(&self, address: u64) -> Option<(&'a str, u64)> {
        let offset = u32::try_from(address.checked_sub(self.base)?).ok()?;
        let (mut low, mut high) = (0, self.entries.len() / ENTRY);
        // The last entry that does not lie beyond: below `low` all are at most `offset`, from
        // `high` on none is.
        while low < high {
            let middle = usize::midpoint(low, high);
            if u32_at(self.entries, middle * ENTRY)? <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let entry = low.checked_sub(1)? * ENTRY;
        let start = u32_at(self.entries, entry)?;
        let name = self
            .names
            .get(usize::try_from(u32_at(self.entries, entry + 4)?).ok()?..)?;
        let len = u16::from_le_bytes(*name.first_chunk()?);
        let name = name.get(2..)?.get(..usize::from(len))?;
        Some((
            core::str::from_utf8(name).ok()?,
            u64::from(offset.checked_sub(start)?),
        ))
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::string::String;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn an_address_is_named_by_the_function_before_it() {
        let symbols = [
            (0x1010, "b".into()),
            (0x1000, "a::start".into()),
            (0x1020, "c".into()),
        ];
        let bytes = encode(&symbols, 4096);
        let table = Table::parse(&bytes).expect("a table");
        assert_eq!(table.lookup(0x0fff), None);
        assert_eq!(table.lookup(0x1000), Some(("a::start", 0)));
        assert_eq!(table.lookup(0x101f), Some(("b", 15)));
        assert_eq!(table.lookup(0x1_0000), Some(("c", 0xefe0)));
    }

    #[test]
    fn an_empty_section_is_no_table() {
        assert!(Table::parse(&[0; 4096]).is_none());
    }

    #[test]
    fn what_does_not_fit_is_left_out_from_the_end() {
        let symbols: Vec<_> = (0..100_u64)
            .map(|n| (n * 16, std::format!("function {n}")))
            .collect();
        let bytes = encode(&symbols, 200);
        assert!(bytes.len() <= 200);
        let table = Table::parse(&bytes).expect("a table");
        assert_eq!(table.lookup(0), Some(("function 0", 0)));
    }

    #[test]
    fn copies_of_a_function_have_one_name() {
        let name = String::from("core::ptr::drop_in_place");
        let symbols: Vec<_> = (0..100_u64).map(|n| (n * 16, name.clone())).collect();
        let bytes = encode(&symbols, 4096);
        assert_eq!(bytes.len(), HEADER + 100 * ENTRY + 2 + name.len());
        let table = Table::parse(&bytes).expect("a table");
        assert_eq!(table.lookup(99 * 16 + 3), Some((name.as_str(), 3)));
    }

    proptest! {
        #[test]
        fn every_symbol_is_found(symbols in prop::collection::btree_map(0_u64..1 << 31, "[a-z:<>é]{0,40}", 1..100)) {
            let base = 0xffff_ffff_8000_0000;
            let list: Vec<_> = symbols.iter().map(|(at, name)| (base + at, name.clone())).collect();
            let bytes = encode(&list, 1 << 20);
            let table = Table::parse(&bytes).expect("a table");
            for (at, name) in &list {
                prop_assert_eq!(table.lookup(*at), Some((name.as_str(), 0)));
            }
        }

        #[test]
        fn any_bytes_are_harmless(tail in prop::collection::vec(any::<u8>(), 0..200), address in any::<u64>()) {
            let bytes = [&MAGIC[..], &tail].concat();
            if let Some(table) = Table::parse(&bytes) {
                let _ = table.lookup(address);
            }
        }
    }
}
