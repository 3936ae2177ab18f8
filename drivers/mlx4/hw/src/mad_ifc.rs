//! MAD_IFC: what stands behind the MAD in its input mailbox, when it came from the network.
//!
//! Source: Linux `infiniband/hw/mlx4/mad.c`, `mlx4_MAD_IFC`. The MAD itself has the first 256 bytes
//! of both mailboxes.

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::{High, layout};

/// Bytes of a MAD.
pub const MAD_LEN: usize = 256;
/// Bytes before a receive's MAD: the place of the GRH.
pub const GRH_LEN: usize = 40;

/// Source of a MAD; at byte 256 of the input mailbox.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MadIfcExtended {
    /// The QP it arrived at.
    pub own_qpn: U32,
    _reserved_04: [u8; 4],
    /// The QP that sent it.
    pub remote_qpn: U32,
    /// Service level.
    pub sl: High<4>,
    /// GRH flag and path bits.
    pub path_bits: u8,
    _reserved_0e: [u8; 2],
    /// Index of the partition key.
    pub pkey_index: U16,
    _reserved_12: [u8; 0x2e],
    /// The GRH.
    pub grh: [u8; GRH_LEN],
    _reserved_68: [u8; 0x98],
}

layout!(MadIfcExtended: 0x100, remote_qpn @ 8, sl @ 0x0c, path_bits @ 0x0d, pkey_index @ 0x10, grh @ 0x40);

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn golden() {
        // Linux mad.c: struct { be32 my_qpn; u32; be32 rqpn; u8 sl; u8 g_path; u16[2]; be16 pkey;
        // u32[11]; u8 grh[40] }: sl = in_wc->sl << 4.
        let mut extended = MadIfcExtended::new_zeroed();
        extended.own_qpn = 0x200.into();
        extended.remote_qpn = 1.into();
        extended.sl = High::new(3);
        extended.grh[0] = 0x60;
        let bytes = extended.as_bytes();
        assert_eq!(bytes[..13], [0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x30]);
        assert_eq!(bytes[0x40], 0x60);
    }
}
