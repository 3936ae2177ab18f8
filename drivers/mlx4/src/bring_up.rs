//! From a card just found to one that takes queue pairs.
//!
//! The order is Linux's (`main.c`, `mlx4_load_one`): own, reset, firmware area, limits, context
//! memory, INIT_HCA, event queues, and from then on commands by event.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use hal::{Duration, InterruptVector, Platform, Registers};
use mlx4_hw::bits::Low;
use mlx4_hw::command::{MAILBOX_LEN, Opcode, in_modifier, op_modifier};
use mlx4_hw::eq::{EQ_STATE_ARMED, EqContext, QueueFlags};
use mlx4_hw::icm::{PAGE, PAGE_LEN};
use mlx4_hw::query_adapter::{ModStatCfg, QueryAdapter, QueryFunc};
use mlx4_hw::query_dev_cap::QueryDevCap;
use mlx4_hw::query_fw::QueryFw;
use mlx4_hw::query_port::QueryPort;
use mlx4_hw::regs;
use spin::Mutex;
use verbs::{Parameter, Resource};
use zerocopy::{FromZeros, IntoBytes};

use crate::command::{Command, Commands};
use crate::error::CardNumber;
use crate::event::{self, EventQueue, Events};
use crate::hca::{Hca, Tables, translate};
use crate::health::Health;
use crate::icm::{Icm, Pieces, Profile};
use crate::multicast::Groups;
use crate::pci::{self, Saved};
use crate::{Config, Error, report, special, wait};

/// Command interface revisions that this driver speaks (Linux `fw.c`, `MLX4_COMMAND_INTERFACE_*`).
const COMMAND_REVISION: u16 = 3;
/// Time that the card may take for the interrupt of a NOP.
const INTERRUPT_DEADLINE: Duration = Duration::from_secs(2);
/// Times that a card is asked again that says it can have no context memory.
const EMPTY_ANSWERS: u32 = 5;
/// Doorbells of EQs that fit before the pages of QPs and CQs.
const MAX_EQN: u32 = 4 * regs::FIRST_QUEUE_UAR;

/// Ownership of the card, and the memory whose addresses it has. Unless the card was stopped in
/// order, dropping this disables bus mastering before that memory is freed.
pub(crate) struct Claim<P: Platform> {
    platform: P,
    registers: Arc<P::Bar>,
    saved: Saved,
    /// Freed with the claim, when the card can't reach memory any more.
    lent: Mutex<Vec<Arc<P::Buffer>>>,
    /// The card is given up in order: nothing is left for the drop to do.
    stopped: AtomicBool,
}

impl<P: Platform> Claim<P> {
    /// Zeroed memory that outlives the card's use of it.
    pub(crate) fn alloc(&self, len: usize, align: usize) -> Result<Arc<P::Buffer>, hal::Error> {
        let buffer = Arc::new(self.platform.alloc(len, align)?);
        self.lent.lock().push(Arc::clone(&buffer));
        Ok(buffer)
    }

    /// Resets the card, so that it reaches no memory from then on; if it does not return, it loses
    /// the bus all the same.
    pub(crate) async fn reset(&self) {
        // Not before it: what is reset may still be at work.
        pci::disable_bus_mastering(&self.platform);
        if let Err(error) = pci::reset(&self.platform, &self.registers, &self.saved).await {
            log::error!("the card can't be reset: {error}");
        }
        pci::disable_bus_mastering(&self.platform);
    }

    /// Returns whether the card was given up.
    pub(crate) fn is_released(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Gives the card up; it must reach no memory any more.
    pub(crate) fn release(&self) {
        pci::release(&*self.registers);
        self.stopped.store(true, Ordering::Release);
    }
}

impl<P: Platform> Drop for Claim<P> {
    fn drop(&mut self) {
        if !self.stopped.load(Ordering::Acquire) {
            pci::disable_bus_mastering(&self.platform);
            self.release();
        }
    }
}

/// Brings the card up to where commands work by event.
pub(crate) async fn start<P: Platform>(platform: P, config: &Config) -> Result<Hca<P>, Error> {
    pci::enable(&platform)?;
    let registers = Arc::new(map_bar(&platform, regs::CONFIG_BAR, regs::CONFIG_BAR_LEN)?);
    let uar_len = regs::UAR_PAGE_LEN << crate::icm::LOG_UARS;
    let uar = Arc::new(map_bar(&platform, regs::UAR_BAR, uar_len)?);
    pci::claim(&*registers)?;
    // Until the reset: a former owner may have left it addresses of memory.
    pci::disable_bus_mastering(&platform);
    // From here on every way out, also a dropped future, gives the card up: see `Claim`'s drop.
    let claim = Claim::<P> {
        platform: platform.clone(),
        registers: Arc::clone(&registers),
        saved: Saved::of(&platform.config()),
        lent: Mutex::default(),
        stopped: AtomicBool::new(false),
    };
    pci::reset(&platform, &registers, &claim.saved).await?;
    // A reset may have cleared the ownership register. The first read takes ownership (Linux
    // `mlx4/main.c`, `mlx4_get_ownership`).
    let _ = registers.read_u32(regs::OWNERSHIP);

    let commands = Commands::new(&claim, platform.clone(), Arc::clone(&registers))?;
    let firmware = start_firmware(&claim, &commands).await?;
    // QUERY_FW names the buffer, so a card that dies before is told by its command's timeout only.
    commands.watch(Health::new(&registers, &firmware));
    let cap = query_limits(&commands, config).await?;
    let profile = Profile::new(&cap)?;
    let icm = Icm::map(&claim, &commands, &profile).await?;
    log::debug!("lent the card {} KB of context memory", icm.len() >> 10);
    let init = profile.init_hca();
    // From INIT_HCA to CLOSE_HCA the card uses the tables. All of them are mapped by now (Linux
    // `main.c`, `mlx4_init_hca`: `mlx4_init_icm` first).
    let command = Command::new(Opcode::INIT_HCA).mailbox(init.as_bytes());
    commands.run(command).await?;
    let adapter: QueryAdapter = commands.query(Command::new(Opcode::QUERY_ADAPTER)).await?;
    report::mailbox("QUERY_ADAPTER", adapter.as_bytes());
    report::mailbox("QUERY_DEV_CAP", cap.as_bytes());
    report::mailbox("INIT_HCA", init.as_bytes());

    let first_eqn = first_eqn(&commands, &cap).await?;
    let first_qpn = special::first_qpn(&cap) + special::BLOCK;
    let mut tables = Tables::new(first_qpn as usize, &profile, &cap, config.secret);
    let queues = 1 + config.completion_vectors;
    let vectors = enable_vectors(&platform, queues)?;
    let setup = EventSetup {
        claim: &claim,
        commands: &commands,
        icm: &icm,
        uar: &uar,
        first_eqn,
    };
    let events = setup.create(&mut tables, queues, vectors).await?;
    let mask = event::async_mask(cap.capabilities.port_management_events());
    let map = in_modifier::MapEq::new().with_eqn(first_eqn);
    let command = Command::new(Opcode::MAP_EQ)
        .modifier(map.into())
        .immediate(mask);
    commands.run(command).await?;
    // Armed before commands end by event, else the first one's end would raise no interrupt.
    // SW2HW_EQ armed the queues as well (`EQ_STATE_ARMED`), but an event since then has used that
    // up; a second arm does no harm (Linux `eq.c`, `mlx4_init_eq_table`, arms by `eq_set_ci` at its
    // end).
    events.arm_all();
    commands.use_events(Arc::clone(&events));
    if !interrupts_work(&platform, &commands, &events).await? {
        log::warn!("no interrupt comes: events are looked for at intervals");
        events.poll();
    }
    configure_datagrams(&commands, &cap).await?;

    Ok(Hca {
        claim,
        platform,
        uar,
        commands,
        events,
        icm,
        port: config.port,
        cap,
        tables: Mutex::new(tables),
        groups: Groups::new(),
    })
}

fn map_bar<P: Platform>(platform: &P, index: u8, at_least: usize) -> Result<P::Bar, Error> {
    let bar = platform.map_bar(index)?;
    if bar.len() < at_least {
        return Err(Error::Platform(hal::Error::NoBar { index }));
    }
    Ok(bar)
}

/// Finds the firmware out and gives it its memory.
async fn start_firmware<P: Platform>(
    claim: &Claim<P>,
    commands: &Commands<P>,
) -> Result<QueryFw, Error> {
    let firmware: QueryFw = commands.query(Command::new(Opcode::QUERY_FW)).await?;
    log::info!(
        "firmware {}.{}.{}, command interface {}",
        firmware.major,
        firmware.minor,
        firmware.subminor,
        firmware.command_revision
    );
    report::mailbox("QUERY_FW", firmware.as_bytes());
    if firmware.command_revision.get() != COMMAND_REVISION {
        return Err(Error::Unsupported {
            what: CardNumber::CommandRevision,
            value: firmware.command_revision.get().into(),
        });
    }
    // Firmware runs from host memory, which it keeps until UNMAP_FA: it must not be freed while the
    // card may fetch (Linux `main.c`, `mlx4_load_fw`).
    let mut area = Pieces::new(claim, u64::from(firmware.pages.get()) * PAGE_LEN)?;
    area.map(commands, Opcode::MAP_FA, 0).await?;
    commands.run(Command::new(Opcode::RUN_FW)).await?;

    let mut pages = ModStatCfg::new_zeroed();
    pages.page_valid = 1;
    let command = Command::new(Opcode::MOD_STAT_CFG)
        .op(op_modifier::MOD_STAT_CFG_SET)
        .mailbox(pages.as_bytes());
    match commands.run(command).await {
        Ok(_) => {}
        // Firmware without the setting has 4 KB pages anyway.
        Err(error @ Error::Refused { .. }) => log::warn!("ICM page size: {error}"),
        Err(error) => return Err(error),
    }
    Ok(firmware)
}

/// Asks for the card's limits and checks those that this driver relies on.
async fn query_limits<P: Platform>(
    commands: &Commands<P>,
    config: &Config,
) -> Result<QueryDevCap, Error> {
    let mut cap: QueryDevCap = commands.query(Command::new(Opcode::QUERY_DEV_CAP)).await?;
    // Owners of cards have seen that now and then.
    for _ in 0..EMPTY_ANSWERS {
        if cap.max_icm.get() != 0 {
            break;
        }
        log::warn!("the card says that it can have no context memory: it is asked again");
        commands.pause().await;
        cap = commands.query(Command::new(Opcode::QUERY_DEV_CAP)).await?;
    }
    let ports = cap.ports.get();
    if config.port == 0 || config.port > ports {
        return Err(Error::OutOfRange {
            parameter: Parameter::Port,
            value: config.port.into(),
        });
    }
    if u64::from(cap.log_min_page) > u64::from(PAGE_LEN.ilog2()) {
        return Err(Error::Unsupported {
            what: CardNumber::LogMinPage,
            value: cap.log_min_page.into(),
        });
    }
    let command = Command::new(Opcode::QUERY_PORT).modifier(config.port.into());
    let port: QueryPort = commands.query(command).await?;
    report::mailbox("QUERY_PORT", port.as_bytes());
    if !port.link.infiniband() {
        return Err(Error::Unsupported {
            what: CardNumber::PortWithoutInfiniband,
            value: config.port.into(),
        });
    }
    Ok(cap)
}

/// The first EQ that firmware doesn't keep (Linux `main.c`: by QUERY_FUNC, or in the older
/// numbering by the EQ doorbells of reserved UAR pages).
async fn first_eqn<P: Platform>(commands: &Commands<P>, cap: &QueryDevCap) -> Result<u32, Error> {
    let first = if cap.system_eqs.get() & 0xfff == 0 {
        (4 * u32::from(cap.reserved_uars.get())).max(1 << cap.log_reserved_eqs.get())
    } else {
        let function: QueryFunc = commands.query(Command::new(Opcode::QUERY_FUNC)).await?;
        u32::from(function.reserved_eqs.get())
    };
    Ok(first)
}

struct EventSetup<'a, P: Platform> {
    claim: &'a Claim<P>,
    commands: &'a Commands<P>,
    icm: &'a Icm<P>,
    uar: &'a Arc<P::Bar>,
    first_eqn: u32,
}

impl<P: Platform> EventSetup<'_, P> {
    async fn create(
        &self,
        tables: &mut Tables<P>,
        queues: u16,
        vectors: Vec<P::Vector>,
    ) -> Result<Arc<Events<P>>, Error> {
        let async_queue = self.queue(tables, 0).await?;
        let mut completion_queues = Vec::new();
        for vector in 1..queues {
            completion_queues.push(self.queue(tables, vector).await?);
        }
        Ok(Arc::new(Events::new(
            async_queue,
            completion_queues,
            vectors,
        )))
    }

    async fn queue(&self, tables: &mut Tables<P>, vector: u16) -> Result<EventQueue<P>, Error> {
        let eqn = self.first_eqn + u32::from(vector);
        if eqn >= MAX_EQN {
            return Err(Error::Exhausted {
                resource: Resource::EventQueue,
                limit: MAX_EQN.into(),
            });
        }
        let buffer = self.claim.alloc(event::QUEUE_LEN, PAGE)?;
        let translation = translate::<P>(tables, self.icm, &buffer)?;
        // Its owner bits are set before SW2HW_EQ, from which on the card writes entries.
        let queue = EventQueue::new(eqn, buffer, Arc::clone(self.uar));
        let mut context = EqContext::new_zeroed();
        context.flags = QueueFlags::new().with_state(EQ_STATE_ARMED);
        context.log_size = Low::new(event::LOG_ENTRIES);
        context.vector = vector.into();
        context.buffer = Hca::<P>::queue_buffer(translation);
        let command = Command::new(Opcode::SW2HW_EQ)
            .modifier(eqn)
            .mailbox(context.as_bytes());
        self.commands.run(command).await?;
        Ok(queue)
    }
}

/// Enables MSI-X; without vectors where the function or the machine has too few, so that events
/// must be looked for.
fn enable_vectors<P: Platform>(platform: &P, count: u16) -> Result<Vec<P::Vector>, Error> {
    match platform.enable_vectors(count) {
        Ok(vectors) => Ok(vectors.into_iter().collect()),
        Err(error @ hal::Error::TooFewVectors { .. }) => {
            log::warn!("{error}");
            Ok(Vec::new())
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns whether a NOP's completion raises the async vector (Linux `main.c`, `mlx4_setup_hca`,
/// which then tries the interrupt pin).
async fn interrupts_work<P: Platform>(
    platform: &P,
    commands: &Commands<P>,
    events: &Events<P>,
) -> Result<bool, Error> {
    commands
        .run(Command::new(Opcode::NOP).modifier(in_modifier::NOP))
        .await?;
    let Some(vector) = events.vector(0) else {
        return Ok(false);
    };
    Ok(wait::at_most(platform, vector.wait(), INTERRUPT_DEADLINE).await)
}

/// Has firmware keep the management datagrams that it asks for, where it parts them at all (Linux
/// `fw.c`, `mlx4_config_mad_demux`).
async fn configure_datagrams<P: Platform>(
    commands: &Commands<P>,
    cap: &QueryDevCap,
) -> Result<(), Error> {
    if !cap.mad_demux() {
        return Ok(());
    }
    let command = |op| {
        Command::new(Opcode::MAD_DEMUX)
            .op(op)
            .modifier(in_modifier::MAD_DEMUX_SUBNET)
    };
    let kept: [u8; MAILBOX_LEN] = commands
        .query(command(op_modifier::MAD_DEMUX_QUERY))
        .await?;
    let configure = command(op_modifier::MAD_DEMUX_CONFIGURE).mailbox(&kept);
    match commands.run(configure).await {
        // Datagrams are then parted as they were.
        Err(error @ Error::Refused { .. }) => {
            log::warn!("parting management datagrams: {error}");
            Ok(())
        }
        outcome => outcome.map(drop),
    }
}
