//! The port, and the firmware's agents through which it is asked and told.

use hal::Platform;
use mad::smp::{self, Smp};
use mad::{Attribute, MAD_LEN, Mad, Method};
use mlx4_hw::bits::High;
use mlx4_hw::command::{CmdStatus, Opcode, in_modifier, op_modifier};
use mlx4_hw::mad_ifc::MadIfcExtended;
use mlx4_hw::set_port::{SetPortChange, SetPortIb};
use verbs::{DatagramSource, Gid, Guid, Lid, Parameter, PortInfo, PortState};
use zerocopy::{FromZeros, IntoBytes};

use crate::Error;
use crate::command::Command;
use crate::error::CardNumber;
use crate::hca::Hca;

/// Virtual lanes that the port is to offer, and fewer where its buffers do not suffice.
const VL_CAPS: [u8; 4] = [8, 4, 2, 1];
/// MTU that the port offers: 4096 bytes.
const MTU_CAP: u8 = 5;

impl<P: Platform> Hca<P> {
    /// Gives a datagram to the firmware's agents; one without source is the driver's own.
    pub(crate) async fn mad_ifc(
        &self,
        mad: &Mad,
        source: Option<DatagramSource>,
    ) -> Result<Mad, Error> {
        let mut input = [0; MAD_LEN + size_of::<MadIfcExtended>()];
        input[..MAD_LEN].copy_from_slice(mad);
        let mut modifier = in_modifier::MadIfc::new().with_port(self.port);
        let mut len = MAD_LEN;
        let mut op = op_modifier::MAD_IFC_IGNORE_MKEY | op_modifier::MAD_IFC_IGNORE_BKEY;
        if let Some(source) = source {
            let mut extended = MadIfcExtended::new_zeroed();
            extended.remote_qpn = source.qpn.0.into();
            extended.sl = High::new(source.sl);
            input[MAD_LEN..].copy_from_slice(extended.as_bytes());
            modifier = modifier.with_slid(source.address.lid().0);
            len = input.len();
            // The network's view is another one on shared cards only, and asked for there only
            // (Linux `mad.c`).
            op = op_modifier::MAD_IFC_EXTENDED;
        }
        let command = Command::new(Opcode::MAD_IFC)
            .op(op)
            .modifier(modifier.into())
            .mailbox(&input[..len]);
        self.commands.query(command).await
    }

    /// Asks the own agent for an attribute.
    async fn attribute<T>(&self, attribute: Attribute, modifier: u32) -> Result<T, Error>
    where
        T: zerocopy::FromBytes + zerocopy::KnownLayout + zerocopy::Immutable,
    {
        let request = Smp::request(Method::GET, attribute, modifier, 0);
        let answer = self.mad_ifc(&request.to_mad(), None).await?;
        let value = Smp::parse(&answer)
            .ok()
            .and_then(|answer| smp::attribute(&answer.data));
        value.ok_or(Error::Unsupported {
            what: CardNumber::Attribute,
            value: attribute.0.into(),
        })
    }

    /// Tells the port what it offers to its subnet manager: what the firmware says it can.
    pub(crate) async fn set_port(&self) -> Result<(), Error> {
        let info: smp::PortInfo = self
            .attribute(Attribute::PORT_INFO, self.port.into())
            .await?;
        // Connections are made by this side's software.
        let capabilities = info.capabilities.get() | smp::PortCapabilities::CM;
        let mut result = Ok(());
        for vl_cap in VL_CAPS {
            result = self.offer(vl_cap, capabilities).await;
            // Firmware whose port has no buffers for so many lanes of this MTU says so by either
            // status (Linux `port.c`, `mlx4_SET_PORT`: both are ENOMEM).
            if !matches!(
                result,
                Err(Error::Refused {
                    status: CmdStatus::EXCEED_LIM | CmdStatus::BAD_SIZE,
                    ..
                })
            ) {
                break;
            }
        }
        result
    }

    async fn offer(&self, vl_cap: u8, capabilities: u32) -> Result<(), Error> {
        let mut set = SetPortIb::new_zeroed();
        set.change = SetPortChange::new()
            .with_change_mtu_cap(true)
            .with_mtu_cap(MTU_CAP)
            .with_change_vl_cap(true)
            .with_vl_cap(vl_cap);
        set.capability_mask = capabilities.into();
        let command = Command::new(Opcode::SET_PORT)
            .op(op_modifier::SET_PORT_IB)
            .modifier(self.port.into())
            .mailbox(set.as_bytes());
        self.commands.run(command).await.map(drop)
    }

    /// The port's state and addresses.
    pub(crate) async fn port_info(&self, port: u8) -> Result<PortInfo, Error> {
        if port != self.port {
            return Err(Error::OutOfRange {
                parameter: Parameter::Port,
                value: port.into(),
            });
        }
        let info: smp::PortInfo = self.attribute(Attribute::PORT_INFO, port.into()).await?;
        let guids: smp::GuidInfo = self.attribute(Attribute::GUID_INFO, 0).await?;
        let state = match info.speed_state.state() {
            smp::PortStateBits::INIT => PortState::Initialize,
            smp::PortStateBits::ARMED => PortState::Armed,
            smp::PortStateBits::ACTIVE => PortState::Active,
            _ => PortState::Down,
        };
        let guid = Guid(guids.0[0].get());
        let mtu = 128_u16 << info.mtu_sm_sl.mtu().clamp(1, 5);
        Ok(PortInfo {
            state,
            address: Lid(info.lid.get()).into(),
            manager: Lid(info.sm_lid.get()).into(),
            guid,
            gid: Gid::new(info.gid_prefix.get(), guid),
            mtu,
        })
    }
}
