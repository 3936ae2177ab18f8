//! Commands on queue pairs.

use mlx4_hw::command::{CmdStatus, Opcode};
use mlx4_hw::icm::CmptKind;
use mlx4_hw::qp::{QpContext, QpMailbox, QpState, Service};

use super::bringup::LOG_RESERVED_QPS;
use super::rules::check_reads;
use super::{Command, Outcome, SPECIAL_BLOCK, Special};
use crate::hca::Hca;
use crate::qp::{QueuePair, buffer_len, context_mailbox};

/// Bytes that a context takes in ICM.
pub(super) const QPC_ENTRY: u16 = 0x100;

/// Decodes CONF_SPECIAL_QP's operation modifier: whether the firmware's agents keep QP0 and QP1
/// (illumos `hermon`).
fn kept_agents(op_modifier: u8) -> Option<[bool; 2]> {
    Some(match op_modifier {
        0 => [false, false],
        1 => [true, false],
        2 => [false, true],
        3 => [true, true],
        _ => return None,
    })
}

impl Hca {
    /// Returns the queue pair that a command is about.
    ///
    /// As many low bits as the table has entries for say where its context is. Those above are
    /// software's to choose: iPXE takes them at random (`hermon.c`, `HERMON_QPN_RANDOM_MASK`), and
    /// Linux's own tables look at the low ones only.
    fn qpn(&self, command: &Command) -> Result<u32, CmdStatus> {
        let qpn = mlx4_hw::bits::Low24::new(command.in_modifier).get();
        let table = self.profile()?.qpc;
        let mask = 1_u32
            .checked_shl(table.log_entries().into())
            .unwrap_or(0)
            .wrapping_sub(1);
        let kind = CmptKind::Qp;
        self.check_number(qpn & mask, table, LOG_RESERVED_QPS, QPC_ENTRY, kind)?;
        let shares = |other: &&u32| **other != qpn && *other & mask == qpn & mask;
        if self.qps.keys().find(shares).is_some() {
            return Err(CmdStatus::BAD_QP_STATE);
        }
        Ok(qpn)
    }

    pub(super) fn change_qp(
        &mut self,
        command: &Command,
        from: Option<QpState>,
        to: QpState,
    ) -> Outcome {
        let qpn = self.qpn(command)?;
        let state = self.qps.get(&qpn).map_or(QpState::RST, |qp| qp.state);
        let fits = match from {
            Some(from) => state == from,
            None => state != QpState::RST,
        };
        if !fits {
            return Err(CmdStatus::BAD_QP_STATE);
        }
        if to == QpState::ERR {
            if let Some(qp) = self.qps.get_mut(&qpn) {
                qp.fail(&mut self.core);
            }
            return Ok(0);
        }
        // RTS to SQD, SQD to RTS and SQ error to RTS may come without a mailbox.
        let optional = matches!(
            command.opcode,
            Opcode::RTS2SQD_QP | Opcode::SQD2RTS_QP | Opcode::SQERR2RTS_QP
        );
        let mailbox = if optional && command.in_param == 0 {
            None
        } else {
            Some(self.read_input::<QpMailbox>(command)?)
        };
        if let Some(mailbox) = &mailbox {
            self.check_context(command.opcode, &mailbox.context)?;
        }
        let qp = self.qps.entry(qpn).or_insert_with(|| QueuePair::new(qpn));
        if let Some(mailbox) = mailbox {
            qp.configure(command.opcode, mailbox.optional, &mailbox.context);
        }
        qp.state = to;
        if command.opcode == Opcode::RTS2SQD_QP {
            qp.report_drained = command.in_modifier.leading_zeros() == 0;
        }
        // A queue pair that may send now may have been posted to and rung before.
        self.core.ready.push_back(qpn);
        Ok(0)
    }

    fn check_context(&self, opcode: Opcode, context: &QpContext) -> Result<(), CmdStatus> {
        match opcode {
            Opcode::RST2INIT_QP => {
                let queues = [context.send_cqn.get(), context.receive_cqn.get()];
                let known = queues
                    .iter()
                    .all(|cqn| self.core.completions.contains(*cqn));
                let srq_known =
                    !context.srq.enable() || self.core.shared.contains(context.srq.srqn());
                let port_known = self
                    .core
                    .port(context.primary_path.schedule.port())
                    .is_some();
                let service = context.flags.service();
                let served = matches!(
                    service,
                    Service::RC | Service::UC | Service::UD | Service::XRC | Service::MLX
                );
                if !(known && srq_known && port_known && served) || context.flags.rss() {
                    return Err(CmdStatus::BAD_PARAM);
                }
                self.check_queue(
                    Some(context.uar.get()),
                    Some((context.doorbell_record.get(), 4)),
                    (context.buffer, buffer_len(context)),
                )
            }
            Opcode::INIT2RTR_QP => {
                let mtu_known = (1..=5).contains(&context.mtu.mtu_code());
                let port_known = self
                    .core
                    .port(context.primary_path.schedule.port())
                    .is_some();
                if !(mtu_known && port_known) {
                    return Err(CmdStatus::BAD_PARAM);
                }
                check_reads(self.profile()?, context)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn reset_qp(&mut self, command: &Command) -> Outcome {
        let qpn = self.qpn(command)?;
        self.qps.remove(&qpn);
        Ok(0)
    }

    pub(super) fn query_qp(&self, command: &Command) -> Outcome {
        let qpn = self.qpn(command)?;
        let context = match self.qps.get(&qpn) {
            Some(qp) => qp.query(),
            None => QueuePair::new(qpn).query(),
        };
        self.write_bytes(command, &context_mailbox(&context))
    }

    pub(super) fn configure_special(&mut self, command: &Command) -> Outcome {
        let base = mlx4_hw::bits::Low24::new(command.in_modifier).get();
        if base == 0 {
            self.firmware.special = None;
            return Ok(0);
        }
        let table = self.profile()?.qpc;
        let inside = u64::from(base) + u64::from(SPECIAL_BLOCK) <= 1 << table.log_entries();
        if !base.is_multiple_of(SPECIAL_BLOCK) || base < 1 << LOG_RESERVED_QPS || !inside {
            return Err(CmdStatus::BAD_PARAM);
        }
        let kept = kept_agents(command.op_modifier).ok_or(CmdStatus::BAD_PARAM)?;
        self.firmware.special = Some(Special { base, kept });
        Ok(0)
    }
}

impl QueuePair {
    pub(super) fn uses_cq(&self, cqn: u32) -> bool {
        self.context.send_cqn.get() == cqn || self.context.receive_cqn.get() == cqn
    }

    pub(super) fn uses_srq(&self, srqn: u32) -> bool {
        self.context.srq.enable() && self.context.srq.srqn() == srqn
    }
}
