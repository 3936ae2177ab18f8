//! QUERY_ADAPTER, QUERY_FUNC and MOD_STAT_CFG: small mailboxes of bring-up.
//!
//! Source: Linux `fw.c` (`mlx4_QUERY_ADAPTER`, `mlx4_QUERY_FUNC`, `mlx4_MOD_STAT_CFG`), `main.c`.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::{Low, layout};

/// QUERY_ADAPTER's output mailbox.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct QueryAdapter {
    _reserved_00: [u8; 0x10],
    /// The interrupt pin, for the clear-interrupt register.
    pub interrupt_pin: u8,
    _reserved_11: [u8; 0x0d],
    /// Vendor of the vendor-specific data.
    pub vsd_vendor: U16,
    /// Vendor-specific data.
    pub vsd: [u8; 208],
    /// The board's id.
    pub board_id: [u8; 16],
}

layout!(QueryAdapter: 0x100, interrupt_pin @ 0x10, vsd_vendor @ 0x1e, vsd @ 0x20, board_id @ 0xf0);

/// QUERY_FUNC's output mailbox: what of the device belongs to this function.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct QueryFunc {
    /// PCI bus.
    pub bus: u8,
    /// PCI device and function.
    pub device_function: u8,
    _reserved_02: u8,
    /// Physical function.
    pub physical_function: u8,
    /// EQs kept by firmware.
    pub reserved_eqs: U16,
    /// EQs.
    pub max_eqs: U16,
    _reserved_08: [u8; 3],
    /// UAR pages kept by firmware.
    pub reserved_uars: Low<4>,
    _reserved_0c: [u8; 4],
}

layout!(QueryFunc: 0x10, reserved_eqs @ 4, max_eqs @ 6, reserved_uars @ 0x0b);

/// MOD_STAT_CFG's input mailbox with modifier 0: the page size of ICM.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ModStatCfg {
    _reserved_00: [u8; 2],
    /// 1: `log_page_less_12` counts.
    pub page_valid: u8,
    /// log2 of an ICM page's bytes, less 12.
    pub log_page_less_12: u8,
    _reserved_04: [u8; 12],
}

layout!(ModStatCfg: 0x10, page_valid @ 2);

/// MOD_STAT_CFG's output mailbox with modifier 2: a port's GUID (Linux `fw.c`,
/// `mlx4_get_phys_port_id`), whose halves are apart.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PortGuidCfg {
    _reserved_00: [u8; 0x14],
    /// Upper half.
    pub high: U32,
    _reserved_18: [u8; 4],
    /// Lower half.
    pub low: U32,
    _reserved_20: U64,
}

layout!(PortGuidCfg: 0x28, high @ 0x14, low @ 0x1c);

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn golden() {
        // Linux main.c: cfg.log_pg_sz_m = 1 at MOD_STAT_CFG_PG_SZ_M_OFFSET 2, log_pg_sz = 0 at 3.
        let mut cfg = ModStatCfg::new_zeroed();
        cfg.page_valid = 1;
        assert_eq!(cfg.as_bytes()[..4], [0, 0, 1, 0]);
        // Linux fw.c: QUERY_FUNC_RSVD_EQS_OFFSET 4, MAX_EQ_OFFSET 6, RSVD_UARS_OFFSET 0x0b.
        let mut func = QueryFunc::new_zeroed();
        func.reserved_eqs = 28.into();
        func.max_eqs = 156.into();
        assert_eq!(func.as_bytes()[4..8], [0, 28, 0, 156]);
    }
}
