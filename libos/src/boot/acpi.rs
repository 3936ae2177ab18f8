//! The ACPI tables that a unikernel needs: MADT (which cores there are), MCFG (where config space
//! is), FADT and DSDT (how to power off, see [`fixed`](super::fixed)), SPCR (which serial port the
//! console is), SRAT (which memory is near which core), WDAT (see [`watchdog`](super::watchdog)),
//! HPET (a timer), DMAR and IVRS (see [`iommu`](super::iommu)).
//!
//! Memory is not placed by the SRAT yet: what it says goes to the log.
//!
//! Layouts: ACPI specification 6.5, sections 5.2.5 (RSDP), 5.2.7 and 5.2.8 (RSDT, XSDT), 5.2.12
//! (MADT), 5.2.16 (SRAT); Microsoft's "Serial Port Console Redirection Table", revisions 1 and 4
//! (SPCR). Tables are copied by a reader, so the parsing is pure.

use alloc::vec;
use alloc::vec::Vec;

use super::fixed::{Fixed, SoftOff};
use super::iommu::Iommus;
use super::mcfg;
use super::watchdog::{self, Write};

const RSDP_LEN: usize = 36;
const RSDP_V1_LEN: usize = 20;
const HEADER_LEN: usize = 36;
/// Longer tables are taken for garbage.
const TABLE_MAX: usize = 1 << 20;
/// More tables than this are not looked at; firmware has some tens.
const MAX_TABLES: usize = 256;
/// Tables that are read.
const WANTED: [&[u8; 4]; 9] = [
    b"APIC", b"MCFG", b"FACP", b"SPCR", b"SRAT", b"WDAT", b"HPET", b"DMAR", b"IVRS",
];
/// Addresses at which PC firmware puts the root pointer.
const SEARCH: core::ops::Range<u64> = 0xe_0000..0x10_0000;

/// The serial port that firmware uses as its console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SerialConsole {
    /// Its first I/O port.
    pub port: u16,
    /// Bits a second; `None` where the line is to stay as firmware has set it.
    pub baud: Option<u32>,
}

/// Some memory, and the node of the machine that it is nearest to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryAffinity {
    /// The node's number.
    pub node: u32,
    /// The first byte's address.
    pub start: u64,
    /// The number of bytes.
    pub len: u64,
}

pub use super::mcfg::Ecam;

/// Contents of the tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// The local APIC ids of the usable cores.
    pub cores: Vec<u32>,
    /// Memory-mapped configuration space.
    pub ecam: Vec<Ecam>,
    /// Registers of fixed hardware.
    pub fixed: Fixed,
    /// The value that powers the machine off.
    pub soft_off: Option<SoftOff>,
    /// The console, if it is a UART at I/O ports.
    pub serial: Option<SerialConsole>,
    /// Memory by node; empty on a machine whose memory is all equally far.
    pub memory: Vec<MemoryAffinity>,
    /// The physical address of the HPET's registers.
    pub hpet: Option<u64>,
    /// The IOMMUs.
    pub iommus: Option<Iommus>,
    /// Writes that stop the board's watchdog.
    pub stop_watchdog: Vec<Write>,
}

/// Copies physical memory; `false` where there is none.
pub trait ReadPhys {
    /// Fills `into` from `address` on.
    fn read(&self, address: u64, into: &mut [u8]) -> bool;
}

impl Tables {
    /// Reads the tables. `rsdp` is the root pointer's address, or 0 to search where PC firmware
    /// leaves it. What is missing or broken is left empty; of two tables of a kind the first
    /// counts. Whatever they point at, a few megabytes are read.
    #[must_use]
    pub fn read(memory: &impl ReadPhys, rsdp: u64) -> Self {
        let mut tables = Self::default();
        let root = if rsdp == 0 {
            search(memory)
        } else {
            root(memory, rsdp)
        };
        let Some((root, width)) = root else {
            return tables;
        };
        let Some(list) = table(memory, root) else {
            return tables;
        };
        let mut seen: Vec<[u8; 4]> = Vec::new();
        for pointer in list[HEADER_LEN..].chunks_exact(width).take(MAX_TABLES) {
            let mut address = [0; 8];
            address[..width].copy_from_slice(pointer);
            let address = u64::from_le_bytes(address);
            let mut signature = [0; 4];
            // Read whole are only those that are wanted, once each: a list may name one a
            // thousand times.
            if !memory.read(address, &mut signature)
                || !WANTED.contains(&&signature)
                || seen.contains(&signature)
            {
                continue;
            }
            seen.push(signature);
            if let Some(table) = table(memory, address) {
                tables.take(&signature, &table);
            }
        }
        if tables.fixed.power.is_some() {
            let dsdt = table(memory, tables.fixed.dsdt);
            tables.soft_off = dsdt.and_then(|dsdt| SoftOff::find(&dsdt));
        }
        tables
    }

    fn take(&mut self, signature: &[u8; 4], table: &[u8]) {
        match signature {
            b"APIC" => self.cores = cores(table),
            b"MCFG" => self.ecam = mcfg::ranges(table),
            b"FACP" => self.fixed = Fixed::read(table),
            b"SPCR" => self.serial = serial(table),
            b"SRAT" => self.memory = near(table),
            b"HPET" => self.hpet = hpet(table),
            b"DMAR" => self.iommus = Some(Iommus::of_dmar(table)),
            b"IVRS" => self.iommus = Some(Iommus::of_ivrs(table)),
            b"WDAT" => self.stop_watchdog = watchdog::stop(table),
            _ => {}
        }
    }
}

fn search(memory: &impl ReadPhys) -> Option<(u64, usize)> {
    SEARCH.step_by(16).find_map(|at| root(memory, at))
}

/// The address of the list of tables and the width of its pointers.
fn root(memory: &impl ReadPhys, at: u64) -> Option<(u64, usize)> {
    let mut rsdp = [0; RSDP_LEN];
    let first = rsdp.first_chunk_mut::<RSDP_V1_LEN>()?;
    if !memory.read(at, first) || !first.starts_with(b"RSD PTR ") || !sums_to_zero(first) {
        return None;
    }
    if first[15] >= 2 && memory.read(at, &mut rsdp) && sums_to_zero(&rsdp) {
        return Some((u64::from_le_bytes(*rsdp[24..].first_chunk()?), 8));
    }
    Some((u32::from_le_bytes(*rsdp[16..].first_chunk()?).into(), 4))
}

/// Copies a table, header and all; at least a header long.
fn table(memory: &impl ReadPhys, at: u64) -> Option<Vec<u8>> {
    let mut header = [0; HEADER_LEN];
    if !memory.read(at, &mut header) {
        return None;
    }
    let len = usize::try_from(u32::from_le_bytes(*header[4..].first_chunk()?)).ok()?;
    if !(HEADER_LEN..=TABLE_MAX).contains(&len) {
        return None;
    }
    let mut table = vec![0; len];
    (memory.read(at, &mut table) && sums_to_zero(&table)).then_some(table)
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)) == 0
}

fn cores(madt: &[u8]) -> Vec<u32> {
    const FIXED: usize = HEADER_LEN + 8;
    const ENABLED: u8 = 1;
    let mut cores = Vec::new();
    for entry in entries(madt.get(FIXED..).unwrap_or_default()) {
        match *entry {
            // Processor Local APIC: processor uid, APIC id, flags.
            [0, _, _, id, flags, ..] if flags & ENABLED != 0 => cores.push(id.into()),
            // Processor Local x2APIC: reserved 2, x2APIC id 4, flags 4.
            [9, _, _, _, a, b, c, d, flags, ..] if flags & ENABLED != 0 => {
                cores.push(u32::from_le_bytes([a, b, c, d]));
            }
            _ => {}
        }
    }
    cores
}

/// Reads the console of a SPCR. A table may describe none: servers whose redirection is turned off
/// in the setup leave the address zero.
fn serial(spcr: &[u8]) -> Option<SerialConsole> {
    /// Full 16550, its subset, and 16550 described by the address structure.
    const KINDS: [u8; 3] = [0, 1, 0x12];
    const IO_SPACE: u8 = 1;
    let (&kind, &space) = (spcr.get(36)?, spcr.get(40)?);
    let port = u64::from_le_bytes(*spcr.get(44..)?.first_chunk()?);
    let port = u16::try_from(port)
        .ok()
        .filter(|port| (1..=u16::MAX - 7).contains(port))?;
    let baud = match *spcr.get(58)? {
        3 => Some(9600),
        4 => Some(19200),
        6 => Some(57600),
        7 => Some(115_200),
        _ => None,
    };
    (KINDS.contains(&kind) && space == IO_SPACE).then_some(SerialConsole { port, baud })
}

/// Reads where a HPET's registers are (IA-PC HPET specification 1.0a, section 3.2.4).
fn hpet(table: &[u8]) -> Option<u64> {
    const MEMORY: u8 = 0;
    let address = u64::from_le_bytes(*table.get(44..)?.first_chunk()?);
    (*table.get(40)? == MEMORY && address != 0).then_some(address)
}

/// Reads the memory of a SRAT.
fn near(srat: &[u8]) -> Vec<MemoryAffinity> {
    const FIXED: usize = HEADER_LEN + 12;
    /// Memory affinity: type and length, domain 4, reserved 2, base 8, length 8, reserved 4, flags.
    const MEMORY: u8 = 1;
    const ENABLED: u8 = 1;
    let mut memory = Vec::new();
    for entry in entries(srat.get(FIXED..).unwrap_or_default()) {
        if let [MEMORY, _, a, b, c, d, _, _, rest @ ..] = entry
            && let (Some(start), Some(len)) = (rest.first_chunk(), rest.get(8..))
            && let (Some(len), Some(&flags)) = (len.first_chunk(), rest.get(20))
            && flags & ENABLED != 0
        {
            memory.push(MemoryAffinity {
                node: u32::from_le_bytes([*a, *b, *c, *d]),
                start: u64::from_le_bytes(*start),
                len: u64::from_le_bytes(*len),
            });
        }
    }
    memory
}

/// Returns the entries of a table whose second byte is their length.
fn entries(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    core::iter::from_fn(move || {
        let len = usize::from(*rest.get(1)?);
        let entry = rest.get(..len).filter(|_| len >= 2)?;
        rest = &rest[len..];
        Some(entry)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Memory(Vec<u8>);

    impl ReadPhys for Memory {
        fn read(&self, address: u64, into: &mut [u8]) -> bool {
            let Ok(start) = usize::try_from(address) else {
                return false;
            };
            let Some(bytes) = start
                .checked_add(into.len())
                .and_then(|end| self.0.get(start..end))
            else {
                return false;
            };
            into.copy_from_slice(bytes);
            true
        }
    }

    fn sealed(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut table = signature.to_vec();
        table.extend(
            u32::try_from(HEADER_LEN + body.len())
                .expect("short")
                .to_le_bytes(),
        );
        table.resize(HEADER_LEN, 0);
        table.extend(body);
        table[9] = table.iter().fold(0_u8, |sum, &byte| sum.wrapping_sub(byte));
        table
    }

    fn machine(madt: &[u8], mcfg: &[u8]) -> Memory {
        let mut memory = vec![0; 0x4000];
        let mut put = |at: usize, bytes: &[u8]| memory[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x2000, &sealed(b"APIC", madt));
        put(0x3000, &sealed(b"MCFG", mcfg));
        put(
            0x1000,
            &sealed(b"RSDT", &[0x00, 0x20, 0, 0, 0x00, 0x30, 0, 0]),
        );
        let mut rsdp = *b"RSD PTR \0TESTER\0\0\x10\0\0";
        rsdp[8] = rsdp.iter().fold(0_u8, |sum, &byte| sum.wrapping_sub(byte));
        put(0x100, &rsdp);
        Memory(memory)
    }

    #[test]
    fn cores_and_config_space_are_found() {
        let madt = [
            &[0, 0, 0xe0, 0xfe, 1, 0, 0, 0][..],
            &[0, 8, 0, 0, 1, 0, 0, 0],
            &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
            &[0, 8, 1, 7, 1, 0, 0, 0],
            &[0, 8, 2, 9, 0, 0, 0, 0],
            &[9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        let mcfg = [
            &[0; 8][..],
            &[0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 0],
        ]
        .concat();
        let tables = Tables::read(&machine(&madt, &mcfg), 0x100);
        assert_eq!(tables.cores, [0, 7, 256], "a disabled core is left out");
        assert_eq!(
            tables.ecam,
            [Ecam {
                base: 0xb000_0000,
                segment: 0,
                first_bus: 0,
                last_bus: 255
            }]
        );
    }

    #[test]
    fn the_way_off_is_found() {
        let mut fadt = vec![0; 116 - HEADER_LEN];
        fadt[4..8].copy_from_slice(&0x3000_u32.to_le_bytes());
        fadt[64 - HEADER_LEN..68 - HEADER_LEN].copy_from_slice(&0x604_u32.to_le_bytes());
        let mut memory = machine(&[], &[]);
        let mut put = |at: usize, table: &[u8]| {
            memory.0[at..at + table.len()].copy_from_slice(table);
        };
        put(0x2000, &sealed(b"FACP", &fadt));
        put(
            0x3000,
            &sealed(b"DSDT", b"\x08_S5_\x12\x06\x02\x0a\x05\x0a\x05"),
        );
        let tables = Tables::read(&memory, 0x100);
        assert_eq!(tables.soft_off, Some(SoftOff { a: 5, b: 5 }));
        memory.0[0x3010] ^= 1;
        assert_eq!(Tables::read(&memory, 0x100).soft_off, None, "a wrong sum");
    }

    #[test]
    fn a_console_is_a_uart_at_ports() {
        let spcr = |kind: u8, space: u8, port: u16, baud: u8| {
            let mut table = vec![0; 80];
            (table[36], table[40], table[58]) = (kind, space, baud);
            table[44..46].copy_from_slice(&port.to_le_bytes());
            serial(&table)
        };
        let console = |port, baud| Some(SerialConsole { port, baud });
        assert_eq!(spcr(0, 1, 0x2f8, 7), console(0x2f8, Some(115_200)));
        assert_eq!(spcr(0x12, 1, 0x3e8, 0), console(0x3e8, None));
        for (kind, space, port) in [(3, 1, 0x3f8), (0, 0, 0x3f8), (0, 1, 0), (0, 1, 0xfff9)] {
            assert_eq!(spcr(kind, space, port, 7), None);
        }
        assert_eq!(serial(&[0; 58]), None, "a short table");
    }

    #[test]
    fn a_timer_in_memory_is_found() {
        let mut table = vec![0; 56];
        table[44..48].copy_from_slice(&0xfed0_0000_u32.to_le_bytes());
        assert_eq!(hpet(&table), Some(0xfed0_0000));
        table[40] = 1;
        assert_eq!(hpet(&table), None, "ports");
        assert_eq!(hpet(&table[..50]), None, "a short table");
    }

    #[test]
    fn a_list_that_names_itself_over_and_over_is_read_once() {
        struct Counted(Memory, core::cell::Cell<usize>);
        impl ReadPhys for Counted {
            fn read(&self, address: u64, into: &mut [u8]) -> bool {
                self.1.set(self.1.get() + into.len());
                self.0.read(address, into)
            }
        }
        let mut memory = machine(&[], &[]).0;
        memory.resize(TABLE_MAX + 0x1000, 0);
        let list = sealed(
            b"RSDT",
            &0x1000_u32
                .to_le_bytes()
                .repeat((TABLE_MAX - HEADER_LEN) / 4),
        );
        memory[0x1000..0x1000 + list.len()].copy_from_slice(&list);
        let memory = Counted(Memory(memory), core::cell::Cell::new(0));
        assert_eq!(Tables::read(&memory, 0x100), Tables::default());
        assert!(
            memory.1.get() < 2 * TABLE_MAX,
            "{} bytes read",
            memory.1.get()
        );
    }

    #[test]
    fn a_table_with_a_wrong_sum_is_not_believed() {
        let mut memory = machine(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 1, 0, 0, 0], &[]);
        memory.0[0x2030] ^= 1;
        assert_eq!(Tables::read(&memory, 0x100).cores, [0_u32; 0]);
    }

    proptest! {
        #[test]
        fn any_tables_end(madt in prop::collection::vec(any::<u8>(), 0..300), mcfg in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Tables::read(&machine(&madt, &mcfg), 0x100);
        }

        #[test]
        fn any_memory_ends(bytes in prop::collection::vec(any::<u8>(), 0..300), rsdp in 0_u64..400) {
            let _ = Tables::read(&Memory(bytes), rsdp);
        }
    }
}
