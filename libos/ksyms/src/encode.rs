//! Making a table.

use std::collections::BTreeMap;
use std::string::String;
use std::vec::Vec;

use crate::{ENTRY, HEADER, MAGIC};

/// Makes a table of (address, name), in at most `capacity` bytes: symbols that don't fit are left
/// out, the highest first. Names are cut at 65535 bytes, symbols 4 GiB past the first are left out.
#[must_use]
pub fn encode(symbols: &[(u64, String)], capacity: usize) -> Vec<u8> {
    let mut sorted: Vec<_> = symbols.iter().collect();
    sorted.sort_by_key(|(address, _)| *address);
    sorted.dedup_by_key(|(address, _)| *address);
    let base = sorted.first().map_or(0, |(address, _)| *address);
    let (mut entries, mut names) = (Vec::new(), Vec::new());
    // Copies of a generic function have one name.
    let mut places: BTreeMap<&[u8], u32> = BTreeMap::new();
    for (address, name) in sorted {
        let name = &name.as_bytes()[..name.floor_char_boundary(usize::from(u16::MAX))];
        let old = places.get(name).copied();
        let (Ok(offset), Ok(end)) = (u32::try_from(address - base), u32::try_from(names.len()))
        else {
            break;
        };
        let more = old.map_or(2 + name.len(), |_| 0);
        if HEADER + entries.len() + ENTRY + names.len() + more > capacity {
            break;
        }
        entries.extend(offset.to_le_bytes());
        entries.extend(old.unwrap_or(end).to_le_bytes());
        if old.is_none() {
            places.insert(name, end);
            names.extend(u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes());
            names.extend(name);
        }
    }
    let count = u32::try_from(entries.len() / ENTRY).unwrap_or(0);
    let mut table = MAGIC.to_vec();
    table.extend(count.to_le_bytes());
    table.extend(base.to_le_bytes());
    table.extend(entries);
    table.extend(names);
    table
}
