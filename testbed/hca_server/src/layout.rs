//! A function's sizes, found in its configuration space as system software finds them.

use hal::Instant;
use hca_model::{Cluster, NodeIndex};

/// Sizes of a function's parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Layout {
    /// Length of each BAR in bytes; 0 if there is none (also for the upper half of a 64-bit one).
    pub bars: [u64; 6],
    /// Length of configuration space.
    pub config: u16,
    /// Number of MSI-X vectors.
    pub vectors: u16,
}

/// Length of a PCI Express function's configuration space.
const CONFIG_LEN: u16 = 4096;
const FIRST_BAR: u16 = 0x10;
const FIRST_CAPABILITY: u16 = 0x34;
const MSIX: u8 = 0x11;
/// Most capabilities that fit: each takes at least four of the bytes 0x40 to 0xff.
const MAX_CAPABILITIES: usize = 48;

impl Layout {
    /// Sizes a function's BARs by writing ones to them, and counts its vectors. The BARs are left
    /// as they were.
    #[must_use]
    pub fn probe(cluster: &mut Cluster, node: NodeIndex, now: Instant) -> Self {
        let mut layout = Self {
            config: CONFIG_LEN,
            vectors: vectors(cluster, node),
            ..Self::default()
        };
        let mut bar = 0;
        while bar < layout.bars.len() {
            let at = FIRST_BAR + 4 * u16::try_from(bar).expect("at most 5");
            let kind = read32(cluster, node, at);
            let wide = kind & 0b111 == 0b100 && bar + 1 < layout.bars.len();
            let low = probe32(cluster, node, now, at) & !0xf;
            let high = if wide {
                probe32(cluster, node, now, at + 4)
            } else {
                u32::MAX
            };
            let mask = u64::from(high) << 32 | u64::from(low);
            layout.bars[bar] = if low == 0 && (!wide || high == 0) {
                0
            } else {
                mask.wrapping_neg()
            };
            bar += if wide { 2 } else { 1 };
        }
        layout
    }
}

/// Writes ones to a dword, reads which of them stayed, and puts back what was there.
fn probe32(cluster: &mut Cluster, node: NodeIndex, now: Instant, at: u16) -> u32 {
    let before = read32(cluster, node, at);
    cluster.config_write(node, now, at, &[0xff; 4]);
    let ones = read32(cluster, node, at);
    cluster.config_write(node, now, at, &before.to_le_bytes());
    ones
}

fn vectors(cluster: &Cluster, node: NodeIndex) -> u16 {
    let mut at = read8(cluster, node, FIRST_CAPABILITY);
    for _ in 0..MAX_CAPABILITIES {
        match read8(cluster, node, at.into()) {
            _ if at < 0x40 => break,
            MSIX => return read16(cluster, node, u16::from(at) + 2) % 2048 + 1,
            _ => at = read8(cluster, node, u16::from(at) + 1),
        }
    }
    0
}

fn read<const N: usize>(cluster: &Cluster, node: NodeIndex, at: u16) -> [u8; N] {
    let mut bytes = [0; N];
    cluster.config_read(node, at, &mut bytes);
    bytes
}

fn read8(cluster: &Cluster, node: NodeIndex, at: u16) -> u8 {
    read::<1>(cluster, node, at)[0]
}

fn read16(cluster: &Cluster, node: NodeIndex, at: u16) -> u16 {
    u16::from_le_bytes(read(cluster, node, at))
}

fn read32(cluster: &Cluster, node: NodeIndex, at: u16) -> u32 {
    u32::from_le_bytes(read(cluster, node, at))
}
