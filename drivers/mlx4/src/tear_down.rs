//! Orderly shutdown, so that the card can be started again or used by another driver.
//!
//! The order is the reverse of bring-up, as in Linux `mlx4/main.c`, `mlx4_unload_one`: an object is
//! taken from the card before the objects and tables that it uses.

use hal::Platform;
use mlx4_hw::command::{Opcode, in_modifier, op_modifier};

use crate::Error;
use crate::command::Command;
use crate::hca::Hca;

impl<P: Platform> Hca<P> {
    /// Stops the card. Whatever fails, the card no longer reaches memory afterwards: if it can't be
    /// stopped in order it is reset.
    pub(crate) async fn stop(&self) -> Result<(), Error> {
        if self.claim.is_released() {
            return Err(Error::Failed);
        }
        let result = self.stop_in_order().await;
        // Whether that went well or not, no command may follow: the memory of mailboxes is about to
        // be freed.
        self.commands.fail();
        if let Err(error) = &result {
            log::warn!("the card is reset, because it could not be stopped in order: {error}");
            self.claim.reset().await;
        }
        self.claim.release();
        result
    }

    async fn stop_in_order(&self) -> Result<(), Error> {
        let run = |command| self.commands.run(command);
        // First the outside: no packet arrives while the queues below it go (Linux `main.c`,
        // `mlx4_unload_one`, closes the ports before it frees any table).
        run(Command::new(Opcode::CLOSE_PORT).modifier(self.port.into())).await?;
        let (qps, cqs, regions) = self.leftovers();
        for qpn in qps {
            self.destroy_pair(qpn).await?;
        }
        for cqn in cqs {
            self.destroy_cq(cqn).await?;
        }
        for index in regions {
            let command = Command::new(Opcode::HW2SW_MPT)
                .op(op_modifier::HW2SW_NO_OUTPUT)
                .modifier(index);
            run(command).await?;
        }
        // With no QPN, which takes QP0 and QP1 back from software (Linux `qp.c`,
        // `mlx4_cleanup_qp_table`).
        run(Command::new(Opcode::CONF_SPECIAL_QP)).await?;
        self.stop_events().await?;
        // Ends all use of ICM. Only then may its pages be unmapped, and the firmware's own ones
        // last.
        run(Command::new(Opcode::CLOSE_HCA)).await?;
        self.icm.unmap(&self.commands).await?;
        run(Command::new(Opcode::UNMAP_FA)).await.map(drop)
    }

    async fn stop_events(&self) -> Result<(), Error> {
        // The async queue is about to go, and with it the events of commands (Linux `main.c`,
        // `mlx4_unload_one`: `mlx4_cmd_use_polling` before `mlx4_cleanup_eq_table`).
        self.commands.use_polling();
        let eqns = (0..).map_while(|vector| self.events.eqn(vector));
        for (vector, eqn) in eqns.enumerate() {
            if vector == 0 {
                // No event may be routed to a queue that is gone (Linux `eq.c`,
                // `mlx4_cleanup_eq_table`: MAP_EQ with the unmap bit, then HW2SW_EQ).
                let unmap = in_modifier::MapEq::new().with_unmap(true).with_eqn(eqn);
                let command = Command::new(Opcode::MAP_EQ)
                    .modifier(unmap.into())
                    .immediate(u64::MAX);
                self.commands.run(command).await?;
            }
            let command = Command::new(Opcode::HW2SW_EQ)
                .op(op_modifier::HW2SW_NO_OUTPUT)
                .modifier(eqn);
            self.commands.run(command).await?;
        }
        Ok(())
    }
}
