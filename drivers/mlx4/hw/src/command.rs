//! The firmware command interface: the HCR, its opcodes, modifiers and status codes.
//!
//! Sources: Linux `drivers/net/ethernet/mellanox/mlx4/cmd.c` (`HCR_*_OFFSET`, `CMD_STAT_*`) and
//! `include/linux/mlx4/cmd.h` (`MLX4_CMD_*`).
//!
//! # Shape
//!
//! ```text
//!  00 input parameter │ 08 input modifier │ 0c output parameter │ 14 token - - │ 18 doorbell
//!
//!  doorbell  31 ── status ── 24 │ go │ event │ toggle │ 20 - 16 │ modifier 15-12 │ opcode 11-0
//! ```
//!
//! The doorbell is written last: with `go` set the register is the firmware's, until `go` reads as
//! 0 and the toggle as it was written. A mailbox is a page whose bus address is the parameter. A
//! command that ends by event leaves its output in the event instead of the register.

use bitfield_struct::bitfield;

use crate::bits::open_enum;

/// Offsets of the HCR's dwords from [`regs::HCR`](crate::regs::HCR).
pub mod hcr {
    /// Input parameter, high half: a mailbox's bus address or an immediate.
    pub const IN_PARAM_HIGH: usize = 0x00;
    /// Input parameter, low half.
    pub const IN_PARAM_LOW: usize = 0x04;
    /// Input modifier.
    pub const IN_MODIFIER: usize = 0x08;
    /// Output parameter, high half: a mailbox's bus address going in, an immediate coming out.
    pub const OUT_PARAM_HIGH: usize = 0x0c;
    /// Output parameter, low half.
    pub const OUT_PARAM_LOW: usize = 0x10;
    /// The token, in the upper 16 bits.
    pub const TOKEN: usize = 0x14;
    /// [`Doorbell`](super::Doorbell); writing it with `go` starts the command.
    pub const DOORBELL: usize = 0x18;
    /// Bytes of the whole block.
    pub const LEN: usize = 0x1c;

    /// The token dword of a token.
    #[must_use]
    pub const fn token(token: u16) -> u32 {
        (token as u32) << 16
    }

    /// The token in a token dword.
    #[must_use]
    pub const fn token_of(dword: u32) -> u16 {
        let [high, low, _, _] = dword.to_be_bytes();
        u16::from_be_bytes([high, low])
    }
}

/// The token of a command that is polled for.
pub const POLL_TOKEN: u16 = 0xffff;

/// Bytes of a command mailbox, which is aligned to as much.
pub const MAILBOX_LEN: usize = 4096;

/// The last dword of the HCR.
#[bitfield(u32, order = Msb)]
#[derive(PartialEq, Eq)]
pub struct Doorbell {
    /// Status of the last command; valid when `go` is clear.
    #[bits(8)]
    pub status: CmdStatus,
    /// Set by software to start a command, cleared by the device when the register is free again.
    pub go: bool,
    /// Report the end by an event.
    pub event: bool,
    /// Inverted from command to command; a command was taken when it reads back as written.
    pub toggle: bool,
    #[bits(5)]
    __: u8,
    /// Opcode modifier.
    #[bits(4)]
    pub op_modifier: u8,
    /// Opcode.
    #[bits(12)]
    pub opcode: Opcode,
}

open_enum! {
    /// A firmware command.
    pub struct Opcode(u16) {
        /// Capabilities and limits.
        QUERY_DEV_CAP = 0x003,
        /// Firmware version, area size and register offsets.
        QUERY_FW = 0x004,
        /// Interrupt pin and board id.
        QUERY_ADAPTER = 0x006,
        /// Starts the HCA with its ICM profile.
        INIT_HCA = 0x007,
        /// Stops the HCA.
        CLOSE_HCA = 0x008,
        /// Brings a port's link up.
        INIT_PORT = 0x009,
        /// Takes a port's link down.
        CLOSE_PORT = 0x00a,
        /// Echoes INIT_HCA.
        QUERY_HCA = 0x00b,
        /// Configures a port.
        SET_PORT = 0x00c,
        /// Hands a dMPT entry over.
        SW2HW_MPT = 0x00d,
        /// Reads a dMPT entry.
        QUERY_MPT = 0x00e,
        /// Takes a dMPT entry back.
        HW2SW_MPT = 0x00f,
        /// Reads MTT entries.
        READ_MTT = 0x010,
        /// Writes MTT entries.
        WRITE_MTT = 0x011,
        /// Routes event types to an EQ.
        MAP_EQ = 0x012,
        /// Hands an EQ over.
        SW2HW_EQ = 0x013,
        /// Takes an EQ back.
        HW2SW_EQ = 0x014,
        /// Reads an EQ context.
        QUERY_EQ = 0x015,
        /// Hands a CQ over.
        SW2HW_CQ = 0x016,
        /// Takes a CQ back.
        HW2SW_CQ = 0x017,
        /// Reads a CQ context.
        QUERY_CQ = 0x018,
        /// QP from RESET to INIT.
        RST2INIT_QP = 0x019,
        /// QP from INIT to RTR.
        INIT2RTR_QP = 0x01a,
        /// QP from RTR to RTS.
        RTR2RTS_QP = 0x01b,
        /// Changes a QP in RTS.
        RTS2RTS_QP = 0x01c,
        /// QP from SQER to RTS.
        SQERR2RTS_QP = 0x01d,
        /// QP to ERR.
        QP_2ERR = 0x01e,
        /// QP from RTS to SQD.
        RTS2SQD_QP = 0x01f,
        /// QP from SQD to RTS.
        SQD2RTS_QP = 0x020,
        /// QP to RESET.
        QP_2RST = 0x021,
        /// Reads a QP context.
        QUERY_QP = 0x022,
        /// Says which QPs are QP0 and QP1.
        CONF_SPECIAL_QP = 0x023,
        /// Gives a MAD to the firmware's agents.
        MAD_IFC = 0x024,
        /// Reads a multicast group entry.
        READ_MCG = 0x025,
        /// Writes a multicast group entry.
        WRITE_MCG = 0x026,
        /// Hashes a multicast GID.
        MGID_HASH = 0x027,
        /// Resizes a CQ or changes its moderation.
        MODIFY_CQ = 0x02c,
        /// Changes a QP in INIT.
        INIT2INIT_QP = 0x02d,
        /// Flushes the MPT and MTT caches.
        SYNC_TPT = 0x02f,
        /// Reads diagnostic counters.
        DIAG_RPRT = 0x030,
        /// Does nothing; tests interrupts.
        NOP = 0x031,
        /// Static configuration.
        MOD_STAT_CFG = 0x034,
        /// Hands an SRQ over.
        SW2HW_SRQ = 0x035,
        /// Takes an SRQ back.
        HW2SW_SRQ = 0x036,
        /// Reads an SRQ context.
        QUERY_SRQ = 0x037,
        /// Changes a QP in SQD.
        SQD2SQD_QP = 0x038,
        /// Reads or sets device configuration.
        CONFIG_DEV = 0x03a,
        /// Accesses a firmware register.
        ACCESS_REG = 0x03b,
        /// Arms an SRQ's limit event.
        ARM_SRQ = 0x040,
        /// A port's static properties and link.
        QUERY_PORT = 0x043,
        /// Filters VLANs.
        SET_VLAN_FLTR = 0x047,
        /// Filters multicast MAC addresses.
        SET_MCAST_FLTR = 0x048,
        /// Ethernet port counters.
        DUMP_ETH_STATS = 0x049,
        /// Senses the link's type.
        SENSE_PORT = 0x04d,
        /// Asks whether the firmware lives.
        HW_HEALTH_CHECK = 0x050,
        /// Reads a counter set.
        QUERY_IF_STAT = 0x054,
        /// Sets up a counter set.
        SET_IF_STAT = 0x055,
        /// This function's share of the device.
        QUERY_FUNC = 0x056,
        /// Asks for the operation that the firmware requests.
        GET_OP_REQ = 0x059,
        /// Sets the node description.
        SET_NODE = 0x05a,
        /// Changes single fields of a QP.
        UPDATE_QP = 0x061,
        /// Device-managed steering for a range of UC QPs.
        FLOW_STEERING_IB_UC_QP_RANGE = 0x064,
        /// Attaches a steering rule.
        FLOW_STEERING_ATTACH = 0x065,
        /// Detaches a steering rule.
        FLOW_STEERING_DETACH = 0x066,
        /// Congestion control.
        CONGESTION_CTRL = 0x068,
        /// Allocates virtual port priorities.
        ALLOCATE_VPP = 0x080,
        /// Sets a virtual port's quality of service.
        SET_VPORT_QOS = 0x081,
        /// Sets the MADs that a guest may send.
        MAD_DEMUX = 0x203,
        /// Starts the firmware in its area.
        RUN_FW = 0xff6,
        /// Turns local attached memory off.
        DISABLE_LAM = 0xff7,
        /// Turns local attached memory on.
        ENABLE_LAM = 0xff8,
        /// Takes ICM pages back.
        UNMAP_ICM = 0xff9,
        /// Gives ICM pages.
        MAP_ICM = 0xffa,
        /// Takes the auxiliary pages back.
        UNMAP_ICM_AUX = 0xffb,
        /// Gives the auxiliary pages.
        MAP_ICM_AUX = 0xffc,
        /// States the ICM's size, answers the auxiliary area's.
        SET_ICM_SIZE = 0xffd,
        /// Takes the firmware area back.
        UNMAP_FA = 0xffe,
        /// Gives the firmware area.
        MAP_FA = 0xfff,
    }
}

open_enum! {
    /// Status of a command (Linux `cmd.c`, `CMD_STAT_*`).
    #[derive(zerocopy::Unaligned)]
    pub struct CmdStatus(u8) {
        /// Done.
        OK = 0x00,
        /// Internal error.
        INTERNAL_ERR = 0x01,
        /// Unknown opcode, or not now.
        BAD_OP = 0x02,
        /// A parameter is out of range.
        BAD_PARAM = 0x03,
        /// The system is not enabled or not in the state the command needs.
        BAD_SYS_STATE = 0x04,
        /// Reserved or unallocated resource.
        BAD_RESOURCE = 0x05,
        /// Busy.
        RESOURCE_BUSY = 0x06,
        /// A limit is exceeded.
        EXCEED_LIM = 0x08,
        /// The resource is in the wrong state for this.
        BAD_RES_STATE = 0x09,
        /// An index is out of range.
        BAD_INDEX = 0x0a,
        /// The non-volatile memory is damaged.
        BAD_NVMEM = 0x0b,
        /// An ICM page that is needed is not mapped.
        ICM_ERROR = 0x0c,
        /// The QP is in the wrong state for this.
        BAD_QP_STATE = 0x10,
        /// Invalid segment or MPT parameters.
        BAD_SEG_PARAM = 0x20,
        /// A region has windows bound to it.
        REG_BOUND = 0x21,
        /// Local attached memory is not present.
        LAM_NOT_PRE = 0x22,
        /// The MAD is malformed.
        BAD_PKT = 0x30,
        /// Bad size, or a CQ that doesn't fit.
        BAD_SIZE = 0x40,
        /// The function is one of many and not allowed this.
        MULTI_FUNC_REQ = 0x50,
    }
}

/// Opcode modifiers, by command.
pub mod op_modifier {
    /// HW2SW_MPT, HW2SW_EQ, HW2SW_CQ, HW2SW_SRQ: no context is wanted back (Linux `mlx4_HW2SW_MPT`,
    /// `!mailbox`).
    pub const HW2SW_NO_OUTPUT: u8 = 1;
    /// SW2HW_CQ: the device initialises the entries.
    pub const SW2HW_CQ_HW_INIT: u8 = 0;
    /// SW2HW_CQ: software has filled the entries with 0xcc.
    pub const SW2HW_CQ_SW_INIT: u8 = 1;
    /// MODIFY_CQ: resize.
    pub const MODIFY_CQ_RESIZE: u8 = 0;
    /// MODIFY_CQ: moderation.
    pub const MODIFY_CQ_MODERATION: u8 = 1;
    /// 2RST_QP: straight to RESET, nothing is flushed (Linux `qp.c`, `__mlx4_qp_modify` sends 2).
    pub const QP_2RST_NO_FLUSH: u8 = 2;
    /// SET_PORT: InfiniBand settings.
    pub const SET_PORT_IB: u8 = 0;
    /// SET_PORT: Ethernet settings, whose kind is in the input modifier.
    pub const SET_PORT_ETH: u8 = 1;
    /// MOD_STAT_CFG: set.
    pub const MOD_STAT_CFG_SET: u8 = 0;
    /// MOD_STAT_CFG: query.
    pub const MOD_STAT_CFG_QUERY: u8 = 2;
    /// MAD_DEMUX: sets how firmware parts the datagrams (Linux `fw.c`, `mlx4_config_mad_demux`).
    pub const MAD_DEMUX_CONFIGURE: u8 = 0;
    /// MAD_DEMUX: asks for the datagrams that firmware keeps for itself.
    pub const MAD_DEMUX_QUERY: u8 = 2;
    /// MAD_IFC: do not check the M_Key (Linux `mad.c`, `mlx4_MAD_IFC`).
    pub const MAD_IFC_IGNORE_MKEY: u8 = 0x1;
    /// MAD_IFC: do not check the B_Key.
    pub const MAD_IFC_IGNORE_BKEY: u8 = 0x2;
    /// MAD_IFC: the input has [`MadIfcExtended`](crate::mad_ifc::MadIfcExtended) behind the MAD.
    pub const MAD_IFC_EXTENDED: u8 = 0x4;
    /// MAD_IFC: the network's view of a virtualised port.
    pub const MAD_IFC_NETWORK_VIEW: u8 = 0x8;
}

/// Input modifiers that are more than a number.
pub mod in_modifier {
    use bitfield_struct::bitfield;

    /// NOP: what Linux sends (`fw.c`, `mlx4_NOP`).
    pub const NOP: u32 = 0x1f;

    /// MAP_EQ's.
    #[bitfield(u32, order = Msb)]
    #[derive(PartialEq, Eq)]
    pub struct MapEq {
        /// Takes the mapping away.
        pub unmap: bool,
        #[bits(7)]
        __: u8,
        /// The EQ.
        #[bits(24)]
        pub eqn: u32,
    }

    /// MAD_DEMUX's: the class of subnet management.
    pub const MAD_DEMUX_SUBNET: u32 = 1;

    /// MAD_IFC's.
    #[bitfield(u32, order = Msb)]
    #[derive(PartialEq, Eq)]
    pub struct MadIfc {
        /// LID of the MAD's sender; only with extended information.
        pub slid: u16,
        #[bits(8)]
        __: u8,
        /// The port, from 1.
        pub port: u8,
    }

    /// SET_PORT's for Ethernet.
    #[bitfield(u32, order = Msb)]
    #[derive(PartialEq, Eq)]
    pub struct SetPort {
        #[bits(16)]
        __: u16,
        /// Kind of Ethernet settings; 0 for InfiniBand.
        pub selector: u8,
        /// The port, from 1.
        pub port: u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doorbell_bits() {
        // Linux cmd.c: HCR_OPMOD_SHIFT 12, HCR_T_BIT 21, HCR_E_BIT 22, HCR_GO_BIT 23, status in the
        // top byte.
        let doorbell = Doorbell::new()
            .with_go(true)
            .with_toggle(true)
            .with_op_modifier(1)
            .with_opcode(Opcode::HW2SW_MPT);
        assert_eq!(u32::from(doorbell), 1 << 23 | 1 << 21 | 1 << 12 | 0xf);
        let done = Doorbell::from(0x0320_0000);
        assert_eq!(done.status(), CmdStatus::BAD_PARAM);
        assert!(!done.go() && done.toggle() && !done.event());
        assert_eq!(u32::from(Doorbell::new().with_event(true)), 1 << 22);
    }

    #[test]
    fn token_dword() {
        // Linux cmd.c: __raw_writel(cpu_to_be32(token << 16), hcr + 5).
        assert_eq!(hcr::token(0x1234), 0x1234_0000);
        assert_eq!(hcr::token_of(0x1234_0000), 0x1234);
    }

    #[test]
    fn modifiers() {
        // Linux eq.c, mlx4_MAP_EQ: (unmap << 31) | eq_num. mad.c: in_modifier = port | slid << 16.
        assert_eq!(
            u32::from(in_modifier::MapEq::new().with_unmap(true).with_eqn(5)),
            0x8000_0005
        );
        assert_eq!(
            u32::from(in_modifier::MadIfc::new().with_slid(7).with_port(2)),
            0x0007_0002
        );
        assert_eq!(
            u32::from(in_modifier::SetPort::new().with_selector(0xd).with_port(1)),
            0x0d01
        );
    }

    #[test]
    fn unknown_values_print() {
        assert_eq!(format!("{}", Opcode::QUERY_FW), "QUERY_FW");
        assert_eq!(format!("{}", CmdStatus(0x77)), "CmdStatus(0x77)");
    }
}
