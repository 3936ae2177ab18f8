//! The board's watchdog as ACPI's WDAT describes it: the writes that stop it.
//!
//! An operating system may have armed it before a warm reset, or firmware for the boot. UEFI's own
//! watchdog ends with its boot services (UEFI 2.10, section 7.5).
//!
//! Layout: Microsoft's "Hardware Watchdog Timers Design Specification", revision 1.01: a header of
//! 32 bytes behind the common one, and entries of 24 bytes, each an action, an instruction, a
//! register as a generic address structure, a value and a mask.

use alloc::vec::Vec;

/// Offsets of the number of entries, and of the entries.
const COUNT: usize = 64;
const ENTRIES: usize = 68;
const ENTRY_LEN: usize = 24;
/// The action "set stopped state", the instruction "write value", and its flag for the bits outside
/// of the mask.
const STOP: u8 = 0x0b;
const WRITE_VALUE: u8 = 2;
const PRESERVE: u8 = 0x80;
const IO_SPACE: u8 = 1;
/// More writes than this for one action are garbage.
const MAX_WRITES: usize = 16;

/// A write to a register at I/O ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// The register's first port.
    pub port: u16,
    /// Its length: 1, 2 or 4.
    pub bytes: u8,
    /// The bits to set.
    pub value: u32,
    /// The bits that keep what they are.
    pub keeps: u32,
}

/// Returns the writes that stop the watchdog; none where its registers are not I/O ports.
#[must_use]
pub fn stop(wdat: &[u8]) -> Vec<Write> {
    let count = wdat.get(COUNT..).and_then(<[u8]>::first_chunk);
    let count = count.map_or(0, |count| u32::from_le_bytes(*count));
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let entries = wdat.get(ENTRIES..).unwrap_or_default();
    entries
        .chunks_exact(ENTRY_LEN)
        .take(count)
        .filter_map(write)
        .take(MAX_WRITES)
        .collect()
}

fn write(entry: &[u8]) -> Option<Write> {
    let long = |at: usize| {
        let bytes = entry.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    };
    let (action, instruction) = (entry[0], entry[1]);
    if action != STOP || instruction & !PRESERVE != WRITE_VALUE || entry[4] != IO_SPACE {
        return None;
    }
    let shift = u32::from(entry[6]);
    let bytes = match entry[5] {
        8 => 1,
        16 => 2,
        32 => 4,
        _ => return None,
    };
    let port = u64::from_le_bytes(*entry.get(8..)?.first_chunk()?);
    let port = u16::try_from(port).ok()?;
    let (value, mask) = (long(16)?, long(20)?);
    let mask = mask.checked_shl(shift).unwrap_or(0);
    let value = value.checked_shl(shift).unwrap_or(0) & mask;
    let keeps = if instruction & PRESERVE != 0 {
        !mask
    } else {
        0
    };
    (port != 0).then_some(Write {
        port,
        bytes,
        value,
        keeps,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(action: u8, instruction: u8, space: u8, width: u8, port: u16) -> [u8; ENTRY_LEN] {
        let mut entry = [0; ENTRY_LEN];
        entry[..2].copy_from_slice(&[action, instruction]);
        entry[4..7].copy_from_slice(&[space, width, 3]);
        entry[8..10].copy_from_slice(&port.to_le_bytes());
        entry[16..20].copy_from_slice(&0x101_u32.to_le_bytes());
        entry[20..24].copy_from_slice(&0x1_u32.to_le_bytes());
        entry
    }

    fn wdat(count: u32, entries: &[[u8; ENTRY_LEN]]) -> Vec<u8> {
        let mut table = vec![0; ENTRIES];
        table[COUNT..].copy_from_slice(&count.to_le_bytes());
        table.extend(entries.as_flattened());
        table
    }

    #[test]
    fn the_writes_that_stop_are_found() {
        let entries = [
            entry(1, WRITE_VALUE, IO_SPACE, 16, 0x460),
            entry(STOP, WRITE_VALUE | PRESERVE, IO_SPACE, 16, 0x468),
            entry(STOP, 0, IO_SPACE, 16, 0x46a),
            entry(STOP, WRITE_VALUE, 0, 16, 0x46c),
            entry(STOP, WRITE_VALUE, IO_SPACE, 64, 0x46e),
            entry(STOP, WRITE_VALUE, IO_SPACE, 8, 0x470),
        ];
        let kept = Write {
            port: 0x468,
            bytes: 2,
            value: 8,
            keeps: !8,
        };
        let whole = Write {
            port: 0x470,
            bytes: 1,
            value: 8,
            keeps: 0,
        };
        assert_eq!(stop(&wdat(6, &entries)), [kept, whole]);
        assert_eq!(
            stop(&wdat(2, &entries)),
            [kept],
            "entries beyond the number"
        );
        assert_eq!(stop(&wdat(6, &[])), []);
        assert_eq!(stop(&[0; COUNT]), []);
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(stop(&bytes).len() <= MAX_WRITES);
        }
    }
}
