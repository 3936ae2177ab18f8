//! Registers of a controller, and waits for them.

use hal::{ConfigSpace, Duration, Platform, Registers, fence};
use nvme_hw::regs;
use nvme_hw::{AdminQueueAttributes, Cap, ControllerConfig, ControllerStatus};

use crate::error::{ControllerNumber, Error, Step};
use crate::prp::PAGE;

const _: () = assert!(PAGE == 1 << regs::MIN_PAGE_SHIFT, "exponent 0");

/// Config space: command and status; the status half is cleared by ones.
const COMMAND: u16 = 0x04;
const COMMAND_MASK: u32 = 0xffff;
const COMMAND_MASTER: u32 = 1 << 2;
/// Poll interval of a register.
const PAUSE: Duration = Duration::from_micros(100);
/// Bit 0 of the supported command sets: NVM (section 3.1.1).
const NVM_COMMAND_SET: u8 = 1;

/// A controller's registers.
pub(crate) struct Hardware<P: Platform> {
    pub(crate) platform: P,
    bar: P::Bar,
    pub(crate) cap: Cap,
}

impl<P: Platform> Hardware<P> {
    /// Maps the registers and reads what the controller can do.
    pub(crate) fn new(platform: P) -> Result<Self, Error> {
        let bar = platform.map_bar(nvme_hw::BAR)?;
        if bar.len() < regs::DOORBELLS {
            return Err(hal::Error::NoBar {
                index: nvme_hw::BAR,
            }
            .into());
        }
        let [low, high] = [regs::CAP, regs::CAP + 4].map(|at| bar.read_u32(at));
        if low == regs::GONE && high == regs::GONE {
            return Err(Error::Gone {
                during: Step::ReadCapabilities,
            });
        }
        let cap = Cap::from(u64::from(high) << 32 | u64::from(low));
        let unsupported = |what, value| Err(Error::Unsupported { what, value });
        if cap.command_sets() & NVM_COMMAND_SET == 0 {
            return unsupported(ControllerNumber::CommandSets, cap.command_sets().into());
        }
        if cap.min_page() != 0 {
            return unsupported(ControllerNumber::MinPage, cap.min_page().into());
        }
        if cap.max_queue_entries() == 0 {
            return unsupported(ControllerNumber::LastQueueEntry, 0);
        }
        let this = Self { platform, bar, cap };
        if this.queue_pairs() < 2 {
            return unsupported(ControllerNumber::RegistersLen, this.bar.len() as u64);
        }
        Ok(this)
    }

    /// Returns for how many pairs of queues, the admin queues among them, there are doorbells.
    pub(crate) fn queue_pairs(&self) -> u16 {
        let pair = 2 * (4_usize << self.cap.stride());
        u16::try_from((self.bar.len() - regs::DOORBELLS) / pair).unwrap_or(u16::MAX)
    }

    /// Tells the controller the tail of a submission queue. What was written to memory before is
    /// visible to it.
    pub(crate) fn ring_submission(&self, queue: u16, tail: u16) {
        fence::publish();
        let at = regs::submission_doorbell(queue, self.cap.stride());
        self.bar.write_u32(at, tail.into());
    }

    /// Tells the controller the head of a completion queue.
    pub(crate) fn ring_completion(&self, queue: u16, head: u16) {
        let at = regs::completion_doorbell(queue, self.cap.stride());
        self.bar.write_u32(at, head.into());
    }

    /// Reads the status.
    ///
    /// # Errors
    ///
    /// If the device is gone. A fatal status is the caller's to judge.
    pub(crate) fn status(&self, during: Step) -> Result<ControllerStatus, Error> {
        match self.bar.read_u32(regs::CSTS) {
            regs::GONE => Err(Error::Gone { during }),
            status => Ok(status.into()),
        }
    }

    /// Stops the controller: it takes no commands and reaches no memory afterwards (section 7.3.2).
    pub(crate) async fn disable(&self) -> Result<(), Error> {
        let during = Step::Stop;
        let config = ControllerConfig::from(self.bar.read_u32(regs::CC));
        if u32::from(config) == regs::GONE {
            return Err(Error::Gone { during });
        }
        self.bar
            .write_u32(regs::CC, config.with_enable(false).into());
        self.wait_ready(false, during).await
    }

    /// Starts a controller that was stopped, with these admin queues (section 7.6.1).
    pub(crate) async fn enable(
        &self,
        entries: u16,
        submission: u64,
        completion: u64,
    ) -> Result<(), Error> {
        // Not before: a controller that firmware left running could write by old addresses until it
        // was disabled.
        self.set_master(true);
        let queues = AdminQueueAttributes::new()
            .with_submission(entries - 1)
            .with_completion(entries - 1);
        self.bar.write_u32(regs::AQA, queues.into());
        // Queue registers may change while the controller is disabled only (sections 3.1.8 to
        // 3.1.10).
        self.write_long(regs::ASQ, submission);
        self.write_long(regs::ACQ, completion);
        let config = ControllerConfig::new()
            .with_submission_entry(nvme_hw::command::LEN_SHIFT)
            .with_completion_entry(nvme_hw::completion::LEN_SHIFT)
            .with_page(0);
        fence::publish();
        self.bar
            .write_u32(regs::CC, config.with_enable(true).into());
        self.wait_ready(true, Step::Start).await
    }

    /// Writes a 64-bit register as two dwords, the lower first (section 3.1 permits either way).
    fn write_long(&self, at: usize, value: u64) {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.bar.write_u32(at, u32::from_le_bytes([a, b, c, d]));
        self.bar.write_u32(at + 4, u32::from_le_bytes([e, f, g, h]));
    }

    /// Waits until CSTS.RDY is as `wanted`, for as long as CAP.TO says.
    async fn wait_ready(&self, wanted: bool, step: Step) -> Result<(), Error> {
        let units = u64::from(self.cap.timeout()) + 1;
        let limit = Duration::from_millis(units * regs::TIMEOUT_UNIT_MS);
        let start = self.platform.now();
        loop {
            let status = self.status(step)?;
            if status.ready() == wanted {
                return Ok(());
            }
            // A controller that is to stop may have failed: that is why.
            if wanted && status.fatal() {
                return Err(Error::Fatal);
            }
            let waited = self.platform.now().since(start);
            if waited > limit {
                return Err(Error::Timeout { step, waited });
            }
            self.platform.sleep(PAUSE).await;
        }
    }

    /// Lets the device reach memory, or not.
    fn set_master(&self, on: bool) {
        let config = self.platform.config();
        let command = config.read_u32(COMMAND) & COMMAND_MASK & !COMMAND_MASTER;
        config.write_u32(COMMAND, command | if on { COMMAND_MASTER } else { 0 });
    }
}

impl<P: Platform> Drop for Hardware<P> {
    /// Stops the device's accesses to memory, which the queues give back next. The read of the
    /// command register comes behind what the device had on the bus.
    fn drop(&mut self) {
        // No wait here: what counts is the bus, which it loses next.
        self.bar.write_u32(regs::CC, 0);
        self.set_master(false);
        self.platform.config().read_u32(COMMAND);
    }
}
