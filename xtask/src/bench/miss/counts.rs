//! The plugin's file: instructions by phase and address, excursions into the kernel, accesses to
//! devices.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// First word of the file; the number is the format's version.
const MAGIC: &str = "tessera-counts 1";

/// A phase's number, as the program marks it.
pub(in crate::bench) type Phase = u8;

/// Counts of one run of the plugin.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::bench) struct Counts {
    /// Executions by phase and address.
    pub(in crate::bench) executed: BTreeMap<Phase, BTreeMap<u64, u64>>,
    /// The bytes of each instruction.
    pub(super) code: BTreeMap<u64, Vec<u8>>,
    excursions: Vec<KernelEntry>,
    accesses: Vec<Access>,
}

/// Excursions of a kind from the program into the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KernelEntry {
    phase: Phase,
    /// The kernel's first instruction.
    pub(super) entry: u64,
    /// Stores to the adapter in each; 3 for more.
    pub(super) stores: u64,
    /// Number of excursions.
    pub(super) count: u64,
    /// Instructions before the first store to the adapter, until the completion was seen, and after
    /// it.
    pub(super) stages: [u64; 3],
}

impl KernelEntry {
    /// Returns the instructions of all of them.
    pub(super) fn instructions(&self) -> u64 {
        self.stages.iter().sum()
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Access {
    phase: Phase,
    is_store: bool,
    count: u64,
    device: String,
}

impl Counts {
    /// Reads the plugin's file.
    pub(in crate::bench) fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let rest = first
            .strip_prefix(MAGIC)
            .with_context(|| format!("it begins with {first:?}, not {MAGIC:?}"))?;
        let lost = rest.split_whitespace().next().unwrap_or_default();
        ensure!(
            lost == "0",
            "{lost} counts found no room: enlarge SLOTS or KINDS in counts.c"
        );
        let (mut counts, mut is_whole) = (Self::default(), false);
        for line in lines {
            is_whole = line == "end";
            if !is_whole {
                counts
                    .add(line)
                    .with_context(|| format!("can't read {line:?}"))?;
            }
        }
        ensure!(
            is_whole,
            "it is cut off: QEMU was killed before it wrote all"
        );
        Ok(counts)
    }

    fn add(&mut self, line: &str) -> Option<()> {
        let (kind, rest) = line.split_once(' ')?;
        let words: Vec<&str> = rest.split(' ').collect();
        let number = |at: usize| words.get(at)?.parse::<u64>().ok();
        let address = |at: usize| u64::from_str_radix(words.get(at)?, 16).ok();
        let phase = words.first()?.parse();
        match kind {
            "count" => {
                let counts = self.executed.entry(phase.ok()?).or_default();
                counts.insert(address(1)?, number(2)?);
            }
            "code" => {
                self.code.insert(address(0)?, bytes(words.get(1)?)?);
            }
            "excursion" => self.excursions.push(KernelEntry {
                phase: phase.ok()?,
                entry: address(1)?,
                stores: number(2)?,
                count: number(3)?,
                stages: [number(4)?, number(5)?, number(6)?],
            }),
            "device" => self.accesses.push(Access {
                phase: phase.ok()?,
                is_store: *words.get(1)? == "w",
                count: number(2)?,
                device: words.get(3..)?.join(" "),
            }),
            _ => return None,
        }
        Some(())
    }

    /// Returns the excursions of a phase.
    pub(super) fn excursions(&self, phase: Phase) -> impl Iterator<Item = &KernelEntry> {
        self.excursions.iter().filter(move |one| one.phase == phase)
    }

    /// Returns the stores to, or loads from, the adapter in a phase.
    pub(super) fn adapter(&self, phase: Phase, is_store: bool) -> u64 {
        let wanted = |access: &&Access| {
            access.phase == phase && access.is_store == is_store && access.device.contains("vfio")
        };
        self.accesses
            .iter()
            .filter(wanted)
            .map(|access| access.count)
            .sum()
    }
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    let byte = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(byte).collect()
}

/// A kind of instruction that costs more than others, or more than it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CostlyInstruction {
    /// Locked: an atomic operation, a spin lock's first of all.
    Locked,
    /// Repeated: counted once, whatever it repeats.
    Repeated,
    /// `invlpg`, or a write to a control register, which may flush the TLB.
    TlbFlush,
}

impl CostlyInstruction {
    /// All kinds, with their names.
    pub(super) const ALL: [(Self, &'static str); 3] = [
        (Self::Locked, "locked instructions"),
        (Self::Repeated, "rep instructions"),
        (Self::TlbFlush, "TLB flushes"),
    ];

    /// Classifies an instruction (Intel SDM, volume 2, chapter 2.1: prefixes, then the opcode).
    pub(super) fn of(code: &[u8]) -> Option<Self> {
        let is_prefix = |byte: &&u8| {
            matches!(
                **byte,
                0xf0 | 0xf2 | 0xf3 | 0x66 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65
            )
        };
        let prefixes = code.iter().take_while(is_prefix).count();
        let has = |prefix: u8| code[..prefixes].contains(&prefix);
        let rest = &code[prefixes..];
        // A REX prefix comes last.
        let rest = match rest {
            [0x40..=0x4f, rest @ ..] => rest,
            _ => rest,
        };
        match rest {
            _ if has(0xf0) => Some(Self::Locked),
            // XCHG with memory is locked without a prefix.
            [0x86 | 0x87, modrm, ..] if *modrm < 0xc0 => Some(Self::Locked),
            [0xa4..=0xa7 | 0xaa..=0xaf | 0x6c..=0x6f, ..] if has(0xf2) || has(0xf3) => {
                Some(Self::Repeated)
            }
            [0x0f, 0x01, modrm, ..] if *modrm < 0xc0 && (modrm >> 3) & 7 == 7 => {
                Some(Self::TlbFlush)
            }
            [0x0f, 0x22, ..] => Some(Self::TlbFlush),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "tessera-counts 1 0 1\nexcursion 4 ffffffff80228200 1 10 20 30 40\n\
        device 4 w 7 vfio-user:/tmp/x y.sock BAR 2\ndevice 4 r 1 virtio\ndevice 5 w 9 vfio-user BAR 2\n\
        code ffffffff80228200 f00fb10f\ncount 4 ffffffff80228200 11\nend\n";

    #[test]
    fn a_whole_file_is_read() {
        let counts = Counts::parse(FILE).unwrap();
        assert_eq!(counts.executed[&4][&0xffff_ffff_8022_8200], 11);
        assert_eq!(
            counts.code[&0xffff_ffff_8022_8200],
            [0xf0, 0x0f, 0xb1, 0x0f]
        );
        assert_eq!((counts.adapter(4, true), counts.adapter(4, false)), (7, 0));
        let one = counts.excursions(4).next().unwrap();
        assert_eq!((one.count, one.stores, one.instructions()), (10, 1, 90));
        assert_eq!(counts.excursions(5).count(), 0);
    }

    #[test]
    fn a_damaged_file_is_refused() {
        for (from, to) in [
            ("end\n", ""),
            ("1 0 1", "1 3 1"),
            ("counts 1", "counts 2"),
            ("count 4", "counted"),
        ] {
            assert!(
                Counts::parse(&FILE.replacen(from, to, 1)).is_err(),
                "{from}"
            );
        }
        assert!(Counts::parse("").is_err());
    }

    #[test]
    fn costly_instructions_are_known_by_their_bytes() {
        let of = |code: &[u8]| CostlyInstruction::of(code);
        assert_eq!(
            of(&[0xf0, 0x48, 0x0f, 0xb1, 0x0f]),
            Some(CostlyInstruction::Locked),
            "lock cmpxchg"
        );
        assert_eq!(
            of(&[0x48, 0x87, 0x07]),
            Some(CostlyInstruction::Locked),
            "xchg [rdi], rax"
        );
        assert_eq!(of(&[0x48, 0x87, 0xc7]), None, "xchg rdi, rax");
        assert_eq!(
            of(&[0xf3, 0x48, 0xab]),
            Some(CostlyInstruction::Repeated),
            "rep stosq"
        );
        assert_eq!(of(&[0xf3, 0xc3]), None, "rep ret");
        assert_eq!(
            of(&[0x0f, 0x01, 0x38]),
            Some(CostlyInstruction::TlbFlush),
            "invlpg [rax]"
        );
        assert_eq!(of(&[0x0f, 0x01, 0xf8]), None, "swapgs");
        assert_eq!(
            of(&[0x0f, 0x22, 0xd8]),
            Some(CostlyInstruction::TlbFlush),
            "mov cr3, rax"
        );
        assert_eq!(of(&[]), None);
    }
}
