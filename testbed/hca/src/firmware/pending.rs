//! Commands that take time: `go` stays set for a while, and in event mode they end in another order
//! than they came.

use hal::Instant;
use mlx4_hw::command::{CmdStatus, Doorbell, hcr};

use super::Command;
use crate::hca::Hca;

/// A command as software wrote it into the register.
#[derive(Debug, Clone, Copy)]
pub(super) struct Posted {
    pub(super) command: Command,
    pub(super) doorbell: Doorbell,
    pub(super) token: u16,
}

/// A command that firmware works at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    posted: Posted,
    /// Time at which the register takes the next command: at the end, or earlier in event mode.
    /// `None` once it does.
    frees: Option<Instant>,
    ends: Instant,
}

impl Hca {
    /// Takes the command in the register, if it is a new one: its toggle is not that of the command
    /// before, and the register is free (Linux `mlx4/cmd.c`, `mlx4_cmd_post`, `cmd_pending`).
    pub(crate) fn run_command(&mut self) {
        let doorbell = Doorbell::from(self.registers.command[hcr::DOORBELL / 4]);
        let busy = self
            .firmware
            .pending
            .iter()
            .any(|pending| pending.frees.is_some());
        if busy || doorbell.toggle() == self.registers.toggle {
            log::debug!("{}: not a new command", doorbell.opcode());
            return;
        }
        self.registers.toggle = doorbell.toggle();
        let posted = self.posted_command(doorbell);
        let time = self.board.command_time;
        if time.is_zero() {
            if doorbell.event() {
                self.free_register(doorbell, CmdStatus::OK);
            }
            return self.carry_out(&posted);
        }
        let now = self.core.now;
        let ends = now + time + time * self.core.rng.below(4);
        // In event mode firmware copies the command out of the register and takes the next one
        // meanwhile, so tokens tell ends apart (Linux `cmd.c`, `mlx4_cmd_use_events`: up to
        // `max_cmds` at once).
        let frees = if doorbell.event() {
            now + time / 4
        } else {
            ends
        };
        self.firmware.pending.push(Pending {
            posted,
            frees: Some(frees),
            ends,
        });
    }

    /// Frees the register: `go` clears and the toggle reads back in one dword, by which software
    /// sees the end (Linux `mlx4/cmd.c`, `cmd_pending`).
    pub(super) fn free_register(&mut self, doorbell: Doorbell, status: CmdStatus) {
        let done = Doorbell::new()
            .with_toggle(doorbell.toggle())
            .with_status(status);
        self.registers.command[hcr::DOORBELL / 4] = u32::from(done);
    }

    /// Ends the commands whose time is over, the earliest first.
    pub(crate) fn end_commands(&mut self) {
        let now = self.core.now;
        while !self.registers.dead {
            let mut freed = None;
            for pending in &mut self.firmware.pending {
                if pending.frees.is_some_and(|at| at <= now) {
                    pending.frees = None;
                    freed = Some(pending.posted.doorbell);
                }
            }
            if let Some(doorbell) = freed.filter(|doorbell| doorbell.event()) {
                self.free_register(doorbell, CmdStatus::OK);
            }
            let due = self.firmware.pending.iter().enumerate();
            let first = due
                .filter(|(_, pending)| pending.ends <= now)
                .min_by_key(|(_, pending)| pending.ends);
            let Some((index, _)) = first else { return };
            let pending = self.firmware.pending.swap_remove(index);
            self.carry_out(&pending.posted);
        }
    }

    /// Returns the time at which a command ends or the register becomes free.
    pub(crate) fn command_deadline(&self) -> Option<Instant> {
        let pending = self.firmware.pending.iter();
        pending
            .flat_map(|pending| pending.frees.into_iter().chain([pending.ends]))
            .min()
            .filter(|_| !self.registers.dead)
    }
}
