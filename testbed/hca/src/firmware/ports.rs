//! Commands on ports, and datagrams for the firmware's agents.

use mad::smp::{NodeDescription, Smp};
use mlx4_hw::command::{CmdStatus, in_modifier, in_modifier::MadIfc, op_modifier};
use mlx4_hw::query_port::{Nibbles, PortLink, PortMtu, QueryPort};
use mlx4_hw::set_port::SetPortIb;
use zerocopy::FromZeros;
use zerocopy::big_endian::U32;

use super::{Command, Outcome};
use crate::agents;
use crate::hca::Hca;
use crate::port::{LOG_TABLE_LEN, MTU_4096};

/// SENSE_PORT's answer for InfiniBand.
pub(super) const SENSED_INFINIBAND: u64 = 1;
/// log2 of the VLANs, and of the MAC addresses.
const LOG_VLANS_MACS: u8 = 7;
const VIRTUAL_LANES: u8 = 8;

impl Hca {
    fn port_number(&self, command: &Command) -> Result<u8, CmdStatus> {
        let [_, _, _, number] = command.in_modifier.to_be_bytes();
        self.core
            .port(number)
            .map(|_| number)
            .ok_or(CmdStatus::BAD_PARAM)
    }

    /// Starts or stops a port. The subnet manager learns of it by the link's state.
    pub(super) fn init_port(&mut self, command: &Command, start: bool) -> Outcome {
        let number = self.port_number(command)?;
        let left = self
            .core
            .port_mut(number)
            .is_some_and(|port| port.enable(start));
        if left {
            agents::report_link(&mut self.core, number, false);
        }
        Ok(0)
    }

    pub(super) fn set_port(&mut self, command: &Command) -> Outcome {
        if command.op_modifier != op_modifier::SET_PORT_IB {
            return Err(CmdStatus::BAD_PARAM);
        }
        let number = self.port_number(command)?;
        let wanted: SetPortIb = self.read_input(command)?;
        let change = wanted.change;
        let started = self
            .core
            .port(number)
            .is_some_and(crate::port::Port::is_started);
        if started && (change.change_mtu_cap() || change.change_vl_cap()) {
            return Err(CmdStatus::BAD_SYS_STATE);
        }
        let mtu_refused = change.change_mtu_cap() && !(1..=MTU_4096).contains(&change.mtu_cap());
        let lanes_refused = change.change_vl_cap()
            && (change.vl_cap() > VIRTUAL_LANES || !has_buffers(change.vl_cap(), change.mtu_cap()));
        if mtu_refused || lanes_refused {
            return Err(CmdStatus::BAD_SIZE);
        }
        if let Some(port) = self.core.port_mut(number) {
            // Taken without a bit that asks for it: Linux sets none (`hw/mlx4/main.c`,
            // `mlx4_ib_SET_PORT`).
            port.info.capabilities = U32::new(wanted.capability_mask.get());
            if change.change_mtu_cap() {
                port.info.mtu_cap.set_low(change.mtu_cap());
            }
            if change.change_vl_cap() {
                let code = vl_code(change.vl_cap());
                port.info.vl_cap.set_high(code);
                // OpenSM takes a link down whose lanes in use differ from what both ends are able
                // to.
                let used = port.info.operational_vls.high().min(code);
                port.info.operational_vls.set_high(used);
            }
        }
        Ok(0)
    }

    pub(super) fn query_port(&self, command: &Command) -> Outcome {
        let number = self.port_number(command)?;
        let port = self.core.port(number).ok_or(CmdStatus::BAD_PARAM)?;
        let mut answer = QueryPort::new_zeroed();
        answer.link = PortLink::new()
            .with_up(port.is_active())
            .with_infiniband(true);
        answer.mtu = PortMtu::new().with_max_ib_mtu_code(MTU_4096);
        answer.ib_speeds = mlx4_hw::bits::Low::new(7);
        answer.widths = mlx4_hw::bits::Low::new(3);
        answer.log_gids_pkeys = Nibbles::new()
            .with_high(LOG_TABLE_LEN)
            .with_low(LOG_TABLE_LEN);
        answer.log_vlans_macs = Nibbles::new()
            .with_high(LOG_VLANS_MACS)
            .with_low(LOG_VLANS_MACS);
        answer.max_tc_vl = Nibbles::new()
            .with_high(VIRTUAL_LANES)
            .with_low(VIRTUAL_LANES);
        answer.mac = mac_of(port.guid().0).into();
        self.write_output(command, &answer)
    }

    /// Gives a datagram to the firmware's agents. One that they do not answer comes back as a bad
    /// packet.
    pub(super) fn give_mad(&mut self, command: &Command) -> Outcome {
        let port = MadIfc::from(command.in_modifier).port();
        self.core.port(port).ok_or(CmdStatus::BAD_PARAM)?;
        let mad: mad::Mad = self.read_input(command)?;
        let checks_key = command.op_modifier & op_modifier::MAD_IFC_IGNORE_MKEY == 0;
        let answer = agents::answer(&mut self.core, &self.identity, port, checks_key, &mad);
        let mut answer = match answer {
            Some(answer) => answer,
            // The end of a trap, which has no answer, is no bad packet.
            None if is_repress(&mad) => return Ok(0),
            None => return Err(CmdStatus::BAD_PKT),
        };
        // The way back on a directed route is software's business: iPXE takes any status for an
        // error, and Linux sets the bit itself (`hw/mlx4/mad.c`).
        if let Ok(mut smp) = Smp::parse(&answer)
            && smp.is_directed()
        {
            smp.set_returning(false);
            answer = smp.to_mad();
        }
        self.write_bytes(command, &answer)
    }

    pub(super) fn set_node(&mut self, command: &Command) -> Outcome {
        self.identity.description = NodeDescription(self.read_input(command)?);
        agents::begin_traps(&mut self.core);
        Ok(0)
    }

    /// Tells which attributes of subnet management firmware keeps for itself, or takes that these
    /// are to be so: software gives the answer back (Linux `fw.c`, `mlx4_config_mad_demux`).
    pub(super) fn demultiplex(&self, command: &Command) -> Outcome {
        /// Some bits of each of the four masks.
        const KEPT: [usize; 4] = [0x10, 0x20, 0x40, 0x70];
        let mut answer = [0; 0x100];
        for place in KEPT {
            answer[place] = 0x5a;
        }
        match (command.op_modifier, command.in_modifier) {
            (op_modifier::MAD_DEMUX_QUERY, in_modifier::MAD_DEMUX_SUBNET) => {
                self.write_bytes(command, &answer)
            }
            (op_modifier::MAD_DEMUX_CONFIGURE, in_modifier::MAD_DEMUX_SUBNET)
                if self.read_input::<[u8; 0x100]>(command)? == answer =>
            {
                Ok(0)
            }
            _ => Err(CmdStatus::BAD_PARAM),
        }
    }
}

fn is_repress(mad: &mad::Mad) -> bool {
    mad::Header::parse(mad).is_ok_and(|header| header.method == mad::Method::TRAP_REPRESS)
}

/// Returns whether the port's buffers hold packets of an MTU on so many lanes. Firmware with too
/// few buffers refuses with status 0x40, and Linux then asks for half the lanes (`port.c`,
/// `mlx4_SET_PORT`; `cmd.c`, `mlx4_cmd_wait`).
fn has_buffers(lanes: u8, mtu: u8) -> bool {
    const LANES_OF_4096: u8 = 4;
    mtu < MTU_4096 || lanes <= LANES_OF_4096
}

/// Returns PortInfo's code of a number of lanes: 1, 2, 4, 8 lanes are 1, 2, 3, 4.
fn vl_code(lanes: u8) -> u8 {
    u8::try_from(lanes.max(1).ilog2() + 1).unwrap_or(1)
}

/// Returns a unicast MAC address made of a GUID's ends.
fn mac_of(guid: u64) -> u64 {
    let [a, b, c, _, _, d, e, f] = guid.to_be_bytes();
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}
