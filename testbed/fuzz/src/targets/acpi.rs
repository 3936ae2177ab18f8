//! libos: the firmware's tables, unchanged and with correct checksums.
//!
//! The bytes read in all are bounded whatever the tables point at: a list may name the same table a
//! thousand times.

use std::cell::Cell;

use libos::acpi::{ReadPhys, Tables};

use crate::input::Input;

/// Address of a root pointer with correct checksums, behind the input's bytes.
const BASE: usize = 0x1000;
/// Limit of the bytes read from a machine's tables.
const MOST_READ: usize = 12 << 20;

struct Memory {
    bytes: Vec<u8>,
    read: Cell<usize>,
}

impl Memory {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        let end = (at + bytes.len()).min(self.bytes.len());
        let len = end.saturating_sub(at);
        if len > 0 {
            self.bytes[at..end].copy_from_slice(&bytes[..len]);
        }
    }

    /// Makes the sum of a range zero by the byte at `fix`.
    fn seal(&mut self, range: std::ops::Range<usize>, fix: usize) {
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
        if let Some(part) = self.bytes.get_mut(range) {
            part[fix] = 0;
            part[fix] = 0_u8.wrapping_sub(sum(part));
        }
    }
}

impl ReadPhys for Memory {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let from = usize::try_from(address)
            .ok()
            .and_then(|at| self.bytes.get(at..)?.get(..into.len()));
        if let Some(from) = from {
            into.copy_from_slice(from);
            self.read.set(self.read.get() + into.len());
        }
        from.is_some()
    }
}

fn table(memory: &mut Memory, at: usize, signature: &[u8], body: &[u8]) {
    let len = 36 + body.len();
    memory.put(at, signature);
    memory.put(at + 4, &u32::try_from(len).unwrap_or(0).to_le_bytes());
    memory.put(at + 36, body);
    memory.seal(at..at + len, 9);
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    // A machine's tables are long where a few bytes say so.
    let mut memory = Memory {
        bytes: vec![0; BASE + (usize::from(input.u8()) << 12)],
        read: Cell::new(0),
    };
    let raw = input.bool();
    let rsdp = if raw {
        let at = u64::from(input.u16());
        memory.put(0x100, input.rest());
        at
    } else {
        let mut pointer = *b"RSD PTR \0TESTER\0\0\0\x10\0\0";
        pointer[15] = input.u8() & 2;
        memory.put(0x10, &pointer);
        memory.seal(0x10..0x10 + 20, 8);
        memory.seal(0x10..0x10 + 36, 32);
        let list_len = usize::from(input.u16()) << (input.u8() & 7);
        let madt = input.string().to_vec();
        let mcfg = input.string().to_vec();
        let mut list = vec![0; list_len.min(memory.bytes.len())];
        let pattern = input.rest();
        if !pattern.is_empty() {
            list.iter_mut()
                .zip(pattern.iter().cycle())
                .for_each(|(byte, from)| *byte = *from);
        }
        table(&mut memory, 0x200, b"APIC", &madt);
        table(&mut memory, 0x400, b"MCFG", &mcfg);
        // The same bytes as units of IOMMUs.
        table(&mut memory, 0x600, b"DMAR", &mcfg);
        table(&mut memory, 0x800, b"IVRS", &madt);
        table(&mut memory, BASE, b"RSDT", &list);
        0x10
    };
    let tables = Tables::read(&memory, rsdp);
    assert!(
        memory.read.get() <= MOST_READ,
        "{} bytes read of {}",
        memory.read.get(),
        memory.bytes.len()
    );
    assert!(
        tables
            .ecam
            .iter()
            .all(|ecam| ecam.first_bus <= ecam.last_bus)
    );
    assert!(
        tables
            .iommus
            .is_none_or(|iommus| iommus.registers.iter().all(|&address| address != 0))
    );
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let madt = [
        &[0, 0, 0xe0, 0xfe, 1, 0, 0, 0][..],
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    let mcfg = [
        &[0; 8][..],
        &[0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 0],
    ]
    .concat();
    let mut seed = vec![1, 0, 0, 16, 0, 0];
    seed.push(u8::try_from(madt.len()).unwrap_or(0));
    seed.extend(madt);
    seed.push(u8::try_from(mcfg.len()).unwrap_or(0));
    seed.extend(mcfg);
    seed.extend([0x00, 0x02, 0, 0, 0x00, 0x04, 0, 0]);
    seed.extend([0x00, 0x06, 0, 0, 0x00, 0x08, 0, 0]);
    // A list of half a megabyte that names itself.
    let itself = vec![0xff, 0, 0, 0x00, 0x80, 4, 0, 0, 0x00, 0x10, 0, 0];
    vec![seed, vec![1, 1, 0, 1], itself]
}
