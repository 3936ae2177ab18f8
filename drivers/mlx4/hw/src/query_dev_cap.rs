//! QUERY_DEV_CAP: what the device can hold and do.
//!
//! Source: Linux `fw.c`, `mlx4_QUERY_DEV_CAP` (`QUERY_DEV_CAP_*_OFFSET`).

use bitfield_struct::bitfield;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::{High, Low, layout};

/// QUERY_DEV_CAP's output mailbox.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct QueryDevCap {
    _reserved_00: [u8; 0x10],
    /// log2 of a shared receive queue's WQEs.
    pub log_max_srq_wqes: u8,
    /// log2 of a work queue's WQEs.
    pub log_max_qp_wqes: u8,
    /// log2 of the QPs kept by firmware, from 0 on.
    pub log_reserved_qps: Low<4>,
    /// log2 of the QPs.
    pub log_max_qps: Low<5>,
    /// log2 of the SRQs kept by firmware.
    pub log_reserved_srqs: High<4>,
    /// log2 of the SRQs.
    pub log_max_srqs: Low<5>,
    _reserved_16: [u8; 3],
    /// log2 of a CQ's entries.
    pub log_max_cqes: u8,
    /// log2 of the CQs kept by firmware.
    pub log_reserved_cqs: Low<4>,
    /// log2 of the CQs.
    pub log_max_cqs: Low<5>,
    /// log2 of an EQ's entries.
    pub log_max_eqes: u8,
    /// log2 of the MPT entries.
    pub log_max_mpts: Low<6>,
    /// log2 of the EQs kept by firmware.
    pub log_reserved_eqs: Low<4>,
    /// log2 of the EQs.
    pub log_max_eqs: Low<4>,
    /// log2 of the MTT segments kept by firmware.
    pub log_reserved_mtts: High<4>,
    /// log2 of a region's bytes.
    pub log_max_region: u8,
    /// log2 of the MPT entries kept by firmware.
    pub log_reserved_mpts: Low<4>,
    /// log2 of the MTT segments.
    pub log_max_mtts: u8,
    _reserved_24: [u8; 2],
    /// EQs of the system, when numbered by QUERY_FUNC (12 bits); 0 for the older numbering.
    pub system_eqs: U16,
    _reserved_28: u8,
    /// log2 of the READs a QP may have outstanding.
    pub log_max_reads_as_requester: Low<6>,
    _reserved_2a: u8,
    /// log2 of the READs a QP may answer at once.
    pub log_max_reads_as_responder: Low<6>,
    _reserved_2c: u8,
    /// log2 of the longest segmented send.
    pub log_max_lso: Low<5>,
    /// Receive side scaling.
    pub rss: u8,
    /// log2 of all READs outstanding.
    pub log_max_reads: Low<6>,
    _reserved_30: [u8; 5],
    /// Time of this HCA to acknowledge: 4.096 µs × 2^n.
    pub ack_delay: Low<5>,
    _old_mtu_width: u8,
    /// Ports.
    pub ports: Low<4>,
    /// log2 of the longest message.
    pub log_max_message: Low<5>,
    _reserved_39: [u8; 2],
    /// log2 of a port's GIDs (older interface).
    pub log_max_gids: Low<4>,
    /// Static rates.
    pub static_rates: U16,
    /// Completions can carry time stamps.
    pub timestamps: High<1>,
    /// log2 of a port's partition keys (older interface).
    pub log_max_pkeys: Low<4>,
    /// Capability bits.
    pub capabilities: Capabilities,
    /// UAR pages kept by firmware.
    pub reserved_uars: High<4>,
    /// log2 of the UAR area in MB.
    pub log_uar_megabytes: Low<6>,
    _reserved_4a: u8,
    /// log2 of the smallest page.
    pub log_min_page: u8,
    /// BlueFlame exists.
    pub blueflame: High<1>,
    /// log2 of a BlueFlame register's bytes.
    pub log_blueflame_len: Low<5>,
    /// log2 of the BlueFlame registers in a page.
    pub log_blueflame_registers: Low<6>,
    _reserved_4f: [u8; 2],
    /// Pieces in a send.
    pub max_send_pieces: u8,
    /// Bytes of a send's descriptor.
    pub max_send_descriptor: U16,
    _reserved_54: u8,
    /// Pieces in a receive.
    pub max_receive_pieces: u8,
    /// Bytes of a receive's descriptor.
    pub max_receive_descriptor: U16,
    _reserved_58: [u8; 9],
    /// log2 of a multicast group's QPs.
    pub log_max_group_qps: u8,
    /// Multicast groups kept by firmware.
    pub reserved_groups: Low<4>,
    /// log2 of the multicast groups.
    pub log_max_groups: u8,
    /// Protection domains kept by firmware.
    pub reserved_pds: High<4>,
    /// log2 of the protection domains.
    pub log_max_pds: Low<6>,
    /// XRC domains kept by firmware.
    pub reserved_xrcds: High<4>,
    /// log2 of the XRC domains.
    pub log_max_xrcds: Low<5>,
    /// Counter sets.
    pub max_counters: U32,
    _reserved_6c: [u8; 4],
    /// More capability bits.
    pub capabilities_2: U32,
    _reserved_74: [u8; 12],
    /// Bytes of an RDMARC entry.
    pub rdmarc_entry_len: U16,
    /// Bytes of a QP context.
    pub qpc_entry_len: U16,
    /// Bytes of an auxiliary context.
    pub auxc_entry_len: U16,
    /// Bytes of an alternate path.
    pub altc_entry_len: U16,
    /// Bytes of an EQ context.
    pub eqc_entry_len: U16,
    /// Bytes of a CQ context.
    pub cqc_entry_len: U16,
    /// Bytes of an SRQ context.
    pub srqc_entry_len: U16,
    /// Bytes of a cMPT entry.
    pub cmpt_entry_len: U16,
    /// Bytes of an MTT entry.
    pub mtt_entry_len: U16,
    /// Bytes of a dMPT entry.
    pub dmpt_entry_len: U16,
    /// Base memory management extensions.
    pub memory_extensions: U32,
    /// The L_Key that means bus addresses.
    pub reserved_lkey: U32,
    _reserved_9c: [u8; 4],
    /// Bytes of ICM that the device can address.
    pub max_icm: U64,
    _reserved_a8: [u8; 8],
    /// Bit 0: MAD_DEMUX.
    pub extended: U32,
    _reserved_b4: [u8; 0x4c],
}

impl QueryDevCap {
    const MAD_DEMUX: u32 = 1;

    /// Returns whether firmware wants to be told how management datagrams are parted (Linux `fw.c`,
    /// `MLX4_DEV_CAP_FLAG2_MAD_DEMUX`).
    #[must_use]
    pub fn mad_demux(&self) -> bool {
        self.extended.get() & Self::MAD_DEMUX != 0
    }

    /// Sets that.
    pub fn set_mad_demux(&mut self, offered: bool) {
        self.extended = u32::from(offered).into();
    }
}

layout!(QueryDevCap: 0x100, log_max_srq_wqes @ 0x10, log_reserved_qps @ 0x12, log_reserved_srqs @ 0x14,
    log_max_cqes @ 0x19, log_max_mpts @ 0x1d, log_reserved_eqs @ 0x1e, log_reserved_mtts @ 0x20,
    log_reserved_mpts @ 0x22, system_eqs @ 0x26, log_max_reads_as_requester @ 0x29,
    log_max_reads_as_responder @ 0x2b, log_max_lso @ 0x2d, log_max_reads @ 0x2f, ack_delay @ 0x35, ports @ 0x37,
    log_max_message @ 0x38, log_max_gids @ 0x3b, timestamps @ 0x3e, log_max_pkeys @ 0x3f, capabilities @ 0x40, reserved_uars @ 0x48,
    log_min_page @ 0x4b, blueflame @ 0x4c, log_blueflame_registers @ 0x4e, max_send_pieces @ 0x51,
    max_send_descriptor @ 0x52, max_receive_pieces @ 0x55, max_receive_descriptor @ 0x56, log_max_group_qps @ 0x61,
    log_max_groups @ 0x63, reserved_pds @ 0x64, log_max_xrcds @ 0x67, max_counters @ 0x68, capabilities_2 @ 0x70,
    rdmarc_entry_len @ 0x80, qpc_entry_len @ 0x82, auxc_entry_len @ 0x84, altc_entry_len @ 0x86,
    eqc_entry_len @ 0x88, cqc_entry_len @ 0x8a, srqc_entry_len @ 0x8c, cmpt_entry_len @ 0x8e, mtt_entry_len @ 0x90,
    dmpt_entry_len @ 0x92, memory_extensions @ 0x94, reserved_lkey @ 0x98, max_icm @ 0xa0, extended @ 0xb0);

/// Capabilities of the device (Linux `device.h`, `MLX4_DEV_CAP_FLAG_*`).
#[bitfield(u64, repr = U64, from = U64::new, into = U64::get, order = Lsb)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct Capabilities {
    /// Reliable connections.
    pub rc: bool,
    /// Unreliable connections.
    pub uc: bool,
    /// Datagrams.
    pub ud: bool,
    /// Extended reliable connections.
    pub xrc: bool,
    #[bits(2)]
    __: u8,
    /// Shared receive queues.
    pub srq: bool,
    /// IPoIB checksums.
    pub ipoib_checksum: bool,
    /// Counts bad P_Keys.
    pub bad_pkey_counter: bool,
    /// Counts bad Q_Keys.
    pub bad_qkey_counter: bool,
    #[bits(2)]
    __: u8,
    /// Ports of different types.
    pub mixed_ports: bool,
    #[bits(2)]
    __: u8,
    /// Header separation, segmentation offload.
    pub lso: bool,
    /// Memory windows.
    pub memory_windows: bool,
    /// Path migration.
    pub path_migration: bool,
    /// Atomics.
    pub atomics: bool,
    /// Raw multicast.
    pub raw_multicast: bool,
    /// Enforces the port of a datagram's address vector.
    pub ud_port_check: bool,
    /// Datagram multicast.
    pub ud_multicast: bool,
    __: u8,
    /// RoCE.
    pub roce: bool,
    #[bits(1)]
    __: u8,
    /// Unicast loopback.
    pub unicast_loopback: bool,
    #[bits(1)]
    __: u8,
    /// Keeps the frame check sequence.
    pub keep_fcs: bool,
    #[bits(2)]
    __: u8,
    /// Wake-on-LAN on port 1.
    pub wol_port_1: bool,
    /// Wake-on-LAN on port 2.
    pub wol_port_2: bool,
    #[bits(1)]
    __: u8,
    /// RSS by UDP ports.
    pub udp_rss: bool,
    /// Unicast steering by multicast table.
    pub unicast_steering: bool,
    /// Multicast steering by multicast table.
    pub multicast_steering: bool,
    #[bits(5)]
    __: u8,
    /// Counter sets.
    pub counters: bool,
    #[bits(3)]
    __: u8,
    /// RSS of IP fragments.
    pub rss_fragments: bool,
    /// Ethernet scheduling.
    pub ethernet_scheduling: bool,
    #[bits(1)]
    __: u8,
    /// SENSE_PORT works.
    pub sense_port: bool,
    #[bits(3)]
    __: u8,
    /// Port management change events.
    pub port_management_events: bool,
    #[bits(1)]
    __: u8,
    /// EQEs of 64 bytes.
    pub eqe_64: bool,
    /// CQEs of 64 bytes.
    pub cqe_64: bool,
    #[bits(1)]
    __: u8,
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn golden_capabilities() {
        // Linux device.h: RC 0, UD_AV_PORT 20, IBOE 30, VEP_UC_STEER 41, VEP_MC_STEER 42, COUNTERS
        // 48, SENSE_SUPPORT 55, PORT_MNG_CHG_EV 59, 64B_EQE 61, 64B_CQE 62.
        let bits = [
            (Capabilities::new().with_rc(true), 0),
            (Capabilities::new().with_mixed_ports(true), 12),
            (Capabilities::new().with_atomics(true), 18),
            (Capabilities::new().with_ud_port_check(true), 20),
            (Capabilities::new().with_roce(true), 30),
            (Capabilities::new().with_udp_rss(true), 40),
            (Capabilities::new().with_unicast_steering(true), 41),
            (Capabilities::new().with_multicast_steering(true), 42),
            (Capabilities::new().with_counters(true), 48),
            (Capabilities::new().with_sense_port(true), 55),
            (Capabilities::new().with_port_management_events(true), 59),
            (Capabilities::new().with_eqe_64(true), 61),
            (Capabilities::new().with_cqe_64(true), 62),
        ];
        for (field, bit) in bits {
            assert_eq!(field.as_bytes(), (1_u64 << bit).to_be_bytes(), "bit {bit}");
        }
    }

    #[test]
    fn golden_fields() {
        // Linux fw.c: dev_cap->reserved_qps = 1 << (field & 0xf) at 0x12; reserved_srqs = 1 <<
        // (field >> 4) at 0x14; reserved_uars = field >> 4 at 0x48; uar_size = 1 << ((field & 0x3f)
        // + 20) at 0x49; ports field & 0xf at 0x37.
        let mut cap = QueryDevCap::new_zeroed();
        cap.log_reserved_qps = Low::new(6);
        cap.log_reserved_srqs = High::new(5);
        cap.reserved_uars = High::new(1);
        cap.log_uar_megabytes = Low::new(2);
        cap.ports = Low::new(2);
        cap.max_send_descriptor = 0x3f0.into();
        cap.max_icm = (1 << 40).into();
        cap.timestamps = High::new(1);
        cap.set_mad_demux(true);
        let bytes = cap.as_bytes();
        assert_eq!((bytes[0x12], bytes[0x14], bytes[0x37]), (6, 0x50, 2));
        assert_eq!(bytes[0x48..0x4a], [0x10, 2]);
        assert_eq!(bytes[0x52..0x54], [3, 0xf0]);
        assert_eq!(bytes[0xa0..0xa8], [0, 0, 1, 0, 0, 0, 0, 0]);
        // field & 1 << 7 at 0x3e; field32 & 1 << 0 at 0xb0.
        assert_eq!((bytes[0x3e], bytes[0xb3]), (0x80, 1));
    }
}
