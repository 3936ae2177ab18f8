//! ACPI's fixed hardware: the registers by which a machine is powered off and reset, and its timer.
//!
//! Layouts: ACPI specification 6.5, sections 5.2.9 (FADT), 5.2.3.2 (generic address structure),
//! 4.8.3.2 (PM1 control), 4.8.3.3 (power management timer), 7.4.2 (`\_S5`), 20.2 (AML's encoding).
//!
//! The value that means "off" stands in `\_S5`, a package in the DSDT. It is looked for by its name
//! and not by running AML: it is a constant in every firmware, as an operating system needs it in
//! its last moments.

/// Offset of the flag and of its bits: a reset register exists; the timer has 32 bits in place of
/// 24; there is no fixed hardware.
const FLAGS: usize = 112;
const TIMER_IS_LONG: u32 = 1 << 8;
const HAS_RESET: u32 = 1 << 10;
const REDUCED: u32 = 1 << 20;
/// The number that a generic address structure gives I/O ports.
const IO_SPACE: u8 = 1;
/// The byte that AML puts before a package, and those before constants.
const PACKAGE: u8 = 0x12;
const ZERO: u8 = 0x00;
const ONE: u8 = 0x01;
const BYTE: u8 = 0x0a;
/// Sleep types have three bits.
const MAX_TYPE: u8 = 7;

/// The fixed hardware that a FADT describes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fixed {
    /// Physical address of the DSDT; 0 for none.
    pub dsdt: u64,
    /// The ports of power management; `None` on machines without fixed hardware.
    pub power: Option<PowerPorts>,
    /// The value that resets the machine, and its port.
    pub reset: Option<(u16, u8)>,
    /// The power management timer.
    pub timer: Option<PmTimer>,
}

/// Ports by which the machine is powered off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PowerPorts {
    /// The control register PM1a.
    pub pm1a: u16,
    /// The control register PM1b, where the chipset has two.
    pub pm1b: Option<u16>,
    /// The port and value that hand the registers over from the firmware, where that must be asked.
    pub enable: Option<(u16, u8)>,
}

/// The power management timer: a counter at 3.579545 MHz.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PmTimer {
    /// Its port.
    pub port: u16,
    /// The bits that count: 24 or 32 of them.
    pub mask: u32,
}

/// The sleep types that mean "off", for PM1a and PM1b.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoftOff {
    /// For PM1a.
    pub a: u8,
    /// For PM1b.
    pub b: u8,
}

impl Fixed {
    /// Reads a FADT, header and all. Fields that an old and short one lacks are taken as zero.
    #[must_use]
    pub fn read(fadt: &[u8]) -> Self {
        let flags = long(fadt, FLAGS);
        let reset = (flags & HAS_RESET != 0)
            .then(|| port_of(fadt, 116))
            .flatten();
        let dsdt = match quad(fadt, 140) {
            0 => long(fadt, 40).into(),
            extended => extended,
        };
        let mut fixed = Self {
            dsdt,
            reset: reset.map(|port| (port, byte(fadt, 128))),
            ..Self::default()
        };
        if flags & REDUCED != 0 {
            return fixed;
        }
        fixed.power = port(fadt, 172, 64).map(|pm1a| PowerPorts {
            pm1a,
            pm1b: port(fadt, 184, 68),
            enable: u16::try_from(long(fadt, 48))
                .ok()
                .filter(|&port| port != 0)
                .map(|port| (port, byte(fadt, 52))),
        });
        let mask = if flags & TIMER_IS_LONG != 0 {
            u32::MAX
        } else {
            0xff_ffff
        };
        fixed.timer = port(fadt, 208, 76).map(|port| PmTimer { port, mask });
        fixed
    }
}

impl SoftOff {
    /// Finds `\_S5` in a DSDT; `None` if it is missing or no package of constants.
    #[must_use]
    pub fn find(dsdt: &[u8]) -> Option<Self> {
        dsdt.windows(5)
            .enumerate()
            .filter(|(_, name)| name == b"_S5_\x12")
            .find_map(|(at, _)| Self::of_package(&dsdt[at + 4..]))
    }

    /// Reads a package of at least two constants; a package of one means it for both registers.
    fn of_package(package: &[u8]) -> Option<Self> {
        let [PACKAGE, lead, ..] = *package else {
            return None;
        };
        // The two highest bits of the length's first byte say how many more it has.
        let rest = package.get(2 + usize::from(lead >> 6)..)?;
        let (&count, rest) = rest.split_first()?;
        let (a, rest) = constant(rest)?;
        let b = if count > 1 { constant(rest)?.0 } else { a };
        (count > 0 && a <= MAX_TYPE && b <= MAX_TYPE).then_some(Self { a, b })
    }
}

/// Reads an AML constant of a byte; returns what follows it.
fn constant(aml: &[u8]) -> Option<(u8, &[u8])> {
    match *aml {
        [value @ (ZERO | ONE), ref rest @ ..] | [BYTE, value, ref rest @ ..] => Some((value, rest)),
        _ => None,
    }
}

/// Reads a port: by the extended field if that names one, else by the older.
fn port(fadt: &[u8], extended: usize, old: usize) -> Option<u16> {
    port_of(fadt, extended).or_else(|| {
        u16::try_from(long(fadt, old))
            .ok()
            .filter(|&port| port != 0)
    })
}

/// Reads a generic address structure that names an I/O port.
fn port_of(fadt: &[u8], at: usize) -> Option<u16> {
    let port = u16::try_from(quad(fadt, at + 4)).ok()?;
    (byte(fadt, at) == IO_SPACE && port != 0).then_some(port)
}

fn byte(table: &[u8], at: usize) -> u8 {
    table.get(at).copied().unwrap_or_default()
}

fn long(table: &[u8], at: usize) -> u32 {
    let bytes = table.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn quad(table: &[u8], at: usize) -> u64 {
    let bytes = table.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A FADT of version 1 or 3, with the fields that QEMU's has.
    fn fadt(len: usize, flags: u32) -> Vec<u8> {
        let mut fadt = vec![0; len];
        let mut put = |at: usize, bytes: &[u8]| {
            if at + bytes.len() <= len {
                fadt[at..at + bytes.len()].copy_from_slice(bytes);
            }
        };
        put(40, &0x7f_e000_u32.to_le_bytes());
        put(48, &0xb2_u32.to_le_bytes());
        put(52, &[2]);
        put(64, &0x604_u32.to_le_bytes());
        put(76, &0x608_u32.to_le_bytes());
        put(FLAGS, &flags.to_le_bytes());
        put(
            116,
            &[IO_SPACE, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0, 0x0f],
        );
        put(140, &0x1_0000_0000_u64.to_le_bytes());
        put(172, &[IO_SPACE, 16, 0, 2, 4, 6, 0, 0, 0, 0, 0, 0]);
        fadt
    }

    #[test]
    fn ports_are_found_in_old_and_new_tables() {
        let ports = Some(PowerPorts {
            pm1a: 0x604,
            pm1b: None,
            enable: Some((0xb2, 2)),
        });
        let old = Fixed::read(&fadt(116, TIMER_IS_LONG));
        assert_eq!((old.dsdt, old.power, old.reset), (0x7f_e000, ports, None));
        let timer = old.timer.expect("a timer");
        assert_eq!((timer.port, timer.mask), (0x608, u32::MAX));
        let new = Fixed::read(&fadt(244, HAS_RESET));
        assert_eq!(new.dsdt, 0x1_0000_0000);
        assert_eq!((new.power, new.reset), (ports, Some((0xcf9, 0x0f))));
        assert_eq!(new.timer.expect("a timer").mask, 0xff_ffff);
    }

    #[test]
    fn machines_without_fixed_hardware_have_no_ports() {
        let reduced = Fixed::read(&fadt(244, REDUCED));
        assert_eq!((reduced.power, reduced.timer), (None, None));
    }

    #[test]
    fn the_types_of_soft_off_are_found() {
        // QEMU's q35 (zeros as constants of a byte), a chipset with 7, one package with `Zero`.
        for (aml, a, b) in [
            (
                &b"\x08_S5_\x12\x06\x04\x0a\x00\x0a\x00\x00\x00"[..],
                0_u8,
                0_u8,
            ),
            (b"..\x08_S5_\x12\x0a\x04\x0a\x07\x0a\x07\x00\x00", 7, 7),
            (b"\x08_S5_\x12\x46\x00\x02\x0a\x05\x01", 5, 1),
            (b"\x08_S5_\x12\x04\x01\x0a\x05", 5, 5),
        ] {
            assert_eq!(SoftOff::find(aml), Some(SoftOff { a, b }), "{aml:x?}");
        }
    }

    #[test]
    fn a_soft_off_that_is_no_package_of_constants_is_not_believed() {
        for aml in [
            &b"_S5_"[..],
            b"_S5_\x12",
            b"_S5_\x12\xc6\x02",
            b"_S5_\x12\x06\x00\x0a\x05\x0a\x05",
            b"_S5_\x12\x06\x02\x0a\x08\x0a\x00",
            b"_S5_\x12\x06\x02\x0c\x05\x00\x00\x00",
        ] {
            assert_eq!(SoftOff::find(aml), None, "{aml:x?}");
        }
    }

    #[test]
    fn a_name_in_a_text_does_not_hide_the_package() {
        let aml = b"\x0d_S5_\x12\x06\x02\x0c \x08_S5_\x12\x06\x02\x0a\x05\x0a\x05";
        assert_eq!(SoftOff::find(aml), Some(SoftOff { a: 5, b: 5 }));
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (Fixed::read(&bytes), SoftOff::find(&bytes));
            let _ = SoftOff::of_package(&bytes);
        }
    }
}
