//! ACPI tables of real servers: libos finds in them what ACPICA's disassembler prints.
//!
//! `tests/acpi` has some of each machine's tables: those that libos reads. Of the DSDT, which is
//! the vendor's program, it has only the package that means "off". Expected values are from the
//! text beside each public dump, made by `acpidump`, `acpixtract` and `iasl`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use libos::acpi::{ReadPhys, Tables};
use libos::fixed::SoftOff;

const HEADER_LEN: usize = 36;

/// The parts of physical memory that tables lie in.
#[derive(Default)]
struct Memory(BTreeMap<u64, Vec<u8>>);

impl ReadPhys for Memory {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let Some((start, bytes)) = self.0.range(..=address).next_back() else {
            return false;
        };
        let from = usize::try_from(address - start).expect("small");
        let found = bytes.get(from..).and_then(|bytes| bytes.get(..into.len()));
        found.map(|found| into.copy_from_slice(found)).is_some()
    }
}

/// Makes a table's sum zero by the byte at `at`.
fn seal(table: &mut [u8], at: usize) {
    table[at] = 0;
    table[at] = table.iter().fold(0_u8, |sum, &byte| sum.wrapping_sub(byte));
}

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = signature.to_vec();
    let len = u32::try_from(HEADER_LEN + body.len()).expect("short");
    table.extend(len.to_le_bytes());
    table.resize(HEADER_LEN, 0);
    table.extend(body);
    seal(&mut table, 9);
    table
}

/// Returns a machine with the tables of a file, and the address of its root pointer.
fn machine(name: &str) -> (Memory, u64) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/acpi/{name}.txt"));
    let text = fs::read_to_string(&path).expect("the machine's tables");
    let mut tables: Vec<(String, Vec<u8>)> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.len() == 4 && !line.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            tables.push((line.into(), Vec::new()));
            continue;
        }
        let digits = line.as_bytes().chunks(2);
        let bytes = digits.map(|pair| {
            let pair = std::str::from_utf8(pair).expect("digits");
            u8::from_str_radix(pair, 16).expect("hexadecimal")
        });
        tables
            .last_mut()
            .expect("a name comes first")
            .1
            .extend(bytes);
    }
    let (mut memory, mut list, mut at) = (Memory::default(), Vec::new(), 0x10_0000_u64);
    let dsdt = 0x8_0000_u64;
    for (name, mut bytes) in tables {
        match name.as_str() {
            "_S5_" => {
                memory.0.insert(dsdt, table(b"DSDT", &bytes));
                continue;
            }
            // The DSDT lies elsewhere here: fields 40 and 140 name it.
            "FACP" => {
                bytes[40..44].copy_from_slice(&dsdt.to_le_bytes()[..4]);
                bytes[140..148].copy_from_slice(&dsdt.to_le_bytes());
                seal(&mut bytes, 9);
            }
            _ => {}
        }
        list.extend(at.to_le_bytes());
        memory.0.insert(at, bytes);
        at += 0x1_0000;
    }
    memory.0.insert(0x9_0000, table(b"XSDT", &list));
    let mut root = *b"RSD PTR \0TESTER\x02\0\0\0\0\x24\0\0\0\0\0\x09\0\0\0\0\0\0\0\0\0";
    seal(&mut root[..20], 8);
    seal(&mut root, 32);
    memory.0.insert(0x7_0000, root.to_vec());
    (memory, 0x7_0000)
}

/// Findings in the tables of a machine.
struct Expected {
    name: &'static str,
    cores: usize,
    /// The lowest and the highest APIC id.
    ids: (u32, u32),
    last_bus: u8,
    pm1a: u16,
    timer: u16,
    /// The value for the port 0xcf9 that resets it.
    reset: Option<u8>,
    off: (u8, u8),
    /// Pieces of memory in its SRAT, and nodes.
    memory: (usize, usize),
}

#[rustfmt::skip]
const SERVERS: [Expected; 9] = [
    Expected { name: "poweredge-r820", cores: 80, ids: (0, 0x79), last_bus: 0xff, pm1a: 0x804, timer: 0x808, reset: None, off: (7, 0), memory: (4, 4) },
    Expected { name: "proliant-dl360-g7", cores: 16, ids: (0, 0x35), last_bus: 0x3f, pm1a: 0x904, timer: 0x908, reset: None, off: (7, 0), memory: (3, 2) },
    Expected { name: "proliant-dl165-g7", cores: 16, ids: (0x10, 0x27), last_bus: 0xff, pm1a: 0x804, timer: 0x808, reset: None, off: (5, 0), memory: (6, 4) },
    Expected { name: "proliant-dl380-g5", cores: 4, ids: (0, 3), last_bus: 0xff, pm1a: 0x904, timer: 0x908, reset: None, off: (7, 0), memory: (0, 0) },
    Expected { name: "primergy", cores: 8, ids: (0, 7), last_bus: 0xff, pm1a: 0x404, timer: 0x408, reset: Some(6), off: (7, 0), memory: (0, 0) },
    Expected { name: "supermicro-h8qg6", cores: 64, ids: (0x20, 0x8f), last_bus: 0xff, pm1a: 0x804, timer: 0x808, reset: None, off: (5, 0), memory: (10, 8) },
    Expected { name: "supermicro-h8dgu", cores: 24, ids: (0x10, 0x2b), last_bus: 0xff, pm1a: 0x804, timer: 0x808, reset: None, off: (5, 0), memory: (4, 2) },
    Expected { name: "supermicro-x8dtt", cores: 16, ids: (0, 0x35), last_bus: 0xff, pm1a: 0x804, timer: 0x808, reset: None, off: (7, 0), memory: (4, 2) },
    Expected { name: "quanta-x10e", cores: 8, ids: (0, 7), last_bus: 0xff, pm1a: 0x1804, timer: 0x1808, reset: Some(6), off: (7, 0), memory: (0, 0) },
];

#[test]
fn cores_buses_and_timers_of_real_servers_are_found() {
    for server in &SERVERS {
        let (memory, rsdp) = machine(server.name);
        let tables = Tables::read(&memory, rsdp);
        let name = server.name;
        let ids = tables.cores.iter().min().zip(tables.cores.iter().max());
        assert_eq!(ids, Some((&server.ids.0, &server.ids.1)), "{name}");
        assert_eq!(tables.cores.len(), server.cores, "{name}");
        let ecam: Vec<_> = tables
            .ecam
            .iter()
            .map(|ecam| (ecam.base, ecam.segment, ecam.first_bus, ecam.last_bus))
            .collect();
        assert_eq!(ecam, [(0xe000_0000, 0, 0, server.last_bus)], "{name}");
        let power = tables.fixed.power.expect(name);
        let timer = tables.fixed.timer.expect(name);
        assert_eq!(
            (power.pm1a, timer.port),
            (server.pm1a, server.timer),
            "{name}"
        );
        let reset = server.reset.map(|value| (0xcf9, value));
        assert_eq!(tables.fixed.reset, reset, "{name}");
        let (a, b) = server.off;
        assert_eq!(tables.soft_off, Some(SoftOff { a, b }), "{name}");
        let mut nodes: Vec<u32> = tables.memory.iter().map(|memory| memory.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        assert_eq!((tables.memory.len(), nodes.len()), server.memory, "{name}");
        // Those with a SPCR have redirection turned off: the table names no port, or no I/O port.
        assert_eq!(tables.serial, None, "{name}");
    }
}

/// A byte may be wrong anywhere: nothing panics, and sums that are made right again don't help.
#[test]
fn damaged_tables_of_real_servers_are_read_without_a_panic() {
    for server in &SERVERS {
        let (memory, rsdp) = machine(server.name);
        let mut damaged = Memory(memory.0.clone());
        for (&address, good) in &memory.0 {
            for offset in 0..good.len().min(300) {
                for value in [0, 0xff] {
                    let table = damaged.0.get_mut(&address).expect("there");
                    table.clone_from(good);
                    table[offset] = value;
                    if offset != 9 && table.len() > HEADER_LEN {
                        seal(table, 9);
                    }
                    let tables = Tables::read(&damaged, rsdp);
                    assert!(tables.cores.len() <= 256);
                }
            }
            damaged.0.insert(address, good.clone());
        }
    }
}
