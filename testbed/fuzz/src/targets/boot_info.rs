//! libos: what a boot loader leaves, of each kind, wherever it points.

use libos::PAGE_SIZE;
use libos::acpi::ReadPhys;
use libos::boot_info::{BootInfo, COMMAND_LINE_MAX};

use crate::input::Input;

/// Physical address of the input.
const BASE: u64 = 0x1000;

struct Memory<'a>(&'a [u8]);

impl ReadPhys for Memory<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let from = address
            .checked_sub(BASE)
            .and_then(|at| self.0.get(usize::try_from(at).ok()?..)?.get(..into.len()));
        from.is_some_and(|from| {
            into.copy_from_slice(from);
            true
        })
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = input.u8();
    let memory = Memory(input.rest());
    let info = match kind % 3 {
        0 => BootInfo::from_pvh(&memory, BASE),
        1 => BootInfo::from_handover(&memory, BASE),
        _ => BootInfo::from_multiboot2(&memory, BASE),
    };
    let Ok(info) = info else { return };
    assert!(info.command_line.len <= COMMAND_LINE_MAX);
    assert!(!info.map.regions().is_empty() && info.image.is_multiple_of(PAGE_SIZE as u64));
    for module in &info.modules {
        assert!(module.start.checked_add(module.len).is_some());
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let words = |words: &[u64]| {
        words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect::<Vec<_>>()
    };
    // The record, and behind it a map of one entry.
    let mut pvh = vec![0];
    pvh.extend(words(&[
        0x1_336e_c578,
        1 << 32,
        BASE + 0x40,
        BASE + 0x58,
        0,
        BASE + 0x40,
        1,
        0,
    ]));
    pvh.extend(words(&[0x10_0000, 0x700_0000, 1]));
    let mut uefi = vec![1];
    uefi.extend(b"TESSERA1");
    uefi.extend(words(&[
        0x20_0000,
        BASE,
        8,
        0,
        BASE + 96,
        48,
        48,
        0xb800_0000,
        1 << 20,
        0,
        0,
    ]));
    uefi.extend(words(&[7, 0x10_0000, 0, 0x100, 0xf, 0]));
    // A command line, and a map of one entry.
    let mut multiboot2 = vec![2];
    multiboot2.extend(words(&[
        0x50,
        16 << 32 | 1,
        u64::from_le_bytes(*b"a=b -- x"),
        40 << 32 | 6,
        24,
        0x10_0000,
        0x700_0000,
        1,
        8 << 32,
    ]));
    vec![pvh, uefi, multiboot2]
}
