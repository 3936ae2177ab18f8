//! The firmware's command interface: one command at a time, polled for until the async event queue
//! works and by event after that.
//!
//! A command that has no answer within [`DEADLINE`], or whose waiter went away before its answer
//! came, leaves the interface in an unknown state: the card may yet write into the mailbox. The
//! card is then given up ([`Error::Failed`]) until it is reset.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use hal::{BusAddr, DmaBuffer, Duration, Instant, Platform, Registers, fence};
use mlx4_hw::command::{CmdStatus, Doorbell, MAILBOX_LEN, Opcode, POLL_TOKEN, hcr};
use mlx4_hw::regs;
use spin::{Mutex, Once};
use zerocopy::{FromBytes, IntoBytes};

use crate::Error;
use crate::bring_up::Claim;
use crate::error::Step;
use crate::event::Events;
use crate::health::Health;
use crate::report;

/// Bounds the time of a command, and of those that end the card's use (Linux
/// `include/linux/mlx4/cmd.h`, `MLX4_CMD_TIME_CLASS_A` to `_C`; `fw.c`, `mlx4_CLOSE_HCA`; `port.c`,
/// `mlx4_CLOSE_PORT`).
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

fn deadline_of(opcode: Opcode) -> Duration {
    match opcode {
        Opcode::CLOSE_HCA | Opcode::CLOSE_PORT => CLOSE_DEADLINE,
        _ => DEADLINE,
    }
}

/// Pause between two polls: the first, the longest of a normal command, the longest of a slow one.
const LOOK_AGAIN: Duration = Duration::from_micros(20);
const LOOK_SELDOM: Duration = Duration::from_millis(1);
const LOOK_RARELY: Duration = Duration::from_millis(20);
/// Firmware that takes longer than this is very slow.
const SLOW: Duration = Duration::from_secs(1);

/// Input of a command.
pub(crate) enum Input<'a> {
    Nothing,
    Immediate(u64),
    Mailbox(&'a [u8]),
}

/// A command.
pub(crate) struct Command<'a> {
    pub(crate) opcode: Opcode,
    pub(crate) op_modifier: u8,
    pub(crate) in_modifier: u32,
    pub(crate) input: Input<'a>,
    /// Whether the answer comes in a mailbox.
    pub(crate) output_mailbox: bool,
}

impl<'a> Command<'a> {
    /// A command without input and output.
    pub(crate) fn new(opcode: Opcode) -> Self {
        Self {
            opcode,
            op_modifier: 0,
            in_modifier: 0,
            input: Input::Nothing,
            output_mailbox: false,
        }
    }

    pub(crate) fn modifier(self, in_modifier: u32) -> Self {
        Self {
            in_modifier,
            ..self
        }
    }

    pub(crate) fn op(self, op_modifier: u8) -> Self {
        Self {
            op_modifier,
            ..self
        }
    }

    pub(crate) fn immediate(self, value: u64) -> Self {
        Self {
            input: Input::Immediate(value),
            ..self
        }
    }

    pub(crate) fn mailbox(self, bytes: &'a [u8]) -> Self {
        Self {
            input: Input::Mailbox(bytes),
            ..self
        }
    }
}

/// Numbers that the next post writes beside the command: both must differ from the last one's.
struct Posting {
    /// The card takes a command only if this differs from the last one's.
    toggle: bool,
    /// Named by the event of the command's end.
    token: u16,
}

pub(crate) struct Commands<P: Platform> {
    platform: P,
    registers: Arc<P::Bar>,
    /// One mailbox each way, as one command runs at a time. The card may write there until it
    /// answers.
    input: Arc<P::Buffer>,
    output: Arc<P::Buffer>,
    /// A command has the register and the mailboxes.
    busy: AtomicBool,
    /// The card is given up: no command is posted any more.
    failed: AtomicBool,
    posting: Mutex<Posting>,
    events: Once<Arc<Events<P>>>,
    health: Once<Health<P>>,
    /// Ends are reported by the async event queue; else the register is polled.
    by_event: AtomicBool,
}

/// The right to use the register and the mailboxes.
struct Turn<'a, P: Platform> {
    commands: &'a Commands<P>,
    in_flight: bool,
}

impl<P: Platform> Drop for Turn<'_, P> {
    fn drop(&mut self) {
        if self.in_flight {
            self.commands.failed.store(true, Ordering::Release);
        }
        self.commands.busy.store(false, Ordering::Release);
    }
}

impl<P: Platform> Commands<P> {
    pub(crate) fn new(
        claim: &Claim<P>,
        platform: P,
        registers: Arc<P::Bar>,
    ) -> Result<Self, Error> {
        Ok(Self {
            input: claim.alloc(MAILBOX_LEN, MAILBOX_LEN)?,
            output: claim.alloc(MAILBOX_LEN, MAILBOX_LEN)?,
            platform,
            registers,
            busy: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            posting: Mutex::new(Posting {
                toggle: true,
                token: 0,
            }),
            events: Once::new(),
            health: Once::new(),
            by_event: AtomicBool::new(false),
        })
    }

    /// Lets commands report their end through `events` from now on.
    pub(crate) fn use_events(&self, events: Arc<Events<P>>) {
        self.events.call_once(|| events);
        self.by_event.store(true, Ordering::Release);
    }

    /// Watches the firmware's catastrophic error buffer from now on.
    pub(crate) fn watch(&self, health: Health<P>) {
        self.health.call_once(|| health);
    }

    /// Checks the firmware's health at intervals; gives the card up if it failed.
    pub(crate) fn check_health(&self) -> Result<(), Error> {
        let Some(health) = self.health.get() else {
            return Ok(());
        };
        let result = health.check_at_times(self.platform.now());
        result.inspect_err(|_| self.fail())
    }

    /// Returns to polling, before the event queue is destroyed.
    pub(crate) fn use_polling(&self) {
        self.by_event.store(false, Ordering::Release);
    }

    /// Lets firmware do something else for a moment.
    pub(crate) async fn pause(&self) {
        self.platform.sleep(LOOK_SELDOM).await;
    }

    /// Gives the card up.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Executes a command and returns its immediate output.
    pub(crate) async fn run(&self, command: Command<'_>) -> Result<u64, Error> {
        let turn = self.turn(command.opcode).await?;
        self.carry_out(turn, command).await.map(|(_, value)| value)
    }

    /// Executes a command and returns its output mailbox.
    pub(crate) async fn query<T: FromBytes + IntoBytes>(
        &self,
        command: Command<'_>,
    ) -> Result<T, Error> {
        let turn = self.turn(command.opcode).await?;
        let command = Command {
            output_mailbox: true,
            ..command
        };
        let (_turn, _) = self.carry_out(turn, command).await?;
        let mut answer = T::new_zeroed();
        // The command's end before its mailbox.
        fence::observe();
        self.output.read(0, answer.as_mut_bytes());
        Ok(answer)
    }

    async fn turn(&self, opcode: Opcode) -> Result<Turn<'_, P>, Error> {
        let begin = self.platform.now();
        let deadline = begin + DEADLINE;
        while self
            .busy
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            if self.platform.now() >= deadline {
                return Err(Error::CommandTimeout {
                    opcode,
                    waited: DEADLINE,
                });
            }
            // The command ahead is short, unless firmware is very slow.
            let slow = self.platform.now().since(begin) >= SLOW;
            let pause = if slow { LOOK_RARELY } else { LOOK_AGAIN };
            self.platform.sleep(pause).await;
        }
        let turn = Turn {
            commands: self,
            in_flight: false,
        };
        if self.has_failed() {
            return Err(Error::Failed);
        }
        Ok(turn)
    }

    async fn carry_out<'t>(
        &'t self,
        mut turn: Turn<'t, P>,
        command: Command<'_>,
    ) -> Result<(Turn<'t, P>, u64), Error> {
        let opcode = command.opcode;
        let waited = deadline_of(opcode);
        let begin = self.platform.now();
        let deadline = begin + waited;
        let timeout = Error::CommandTimeout { opcode, waited };
        let events = self
            .events
            .get()
            .filter(|_| self.by_event.load(Ordering::Acquire));
        // From here on a dropped future leaves a command that may yet write into the mailbox: see
        // the head of this file.
        turn.in_flight = true;
        let mut pause = LOOK_AGAIN;
        // The register holds one command. It is polled until it is free even where ends come by
        // event: that event says nothing of `go` (Linux `mlx4/cmd.c`, `mlx4_cmd_post`,
        // `GO_BIT_TIMEOUT_MSECS`).
        while !self.register_free()? {
            if self.platform.now() >= deadline {
                return Err(timeout);
            }
            pause = self.look_again(begin, pause).await;
        }
        let token = self.post(&command, events.is_some());
        pause = LOOK_AGAIN;
        let (status, value) = loop {
            let end = match events {
                Some(events) => events.take_command(token),
                None => self.polled_end()?,
            };
            if let Some(end) = end {
                break end;
            }
            if self.has_failed() {
                return Err(Error::Failed);
            }
            self.check_health()?;
            if self.platform.now() >= deadline {
                return Err(timeout);
            }
            pause = self.look_again(begin, pause).await;
        };
        turn.in_flight = false;
        let took = self.platform.now().since(begin);
        report::command(
            opcode,
            command.op_modifier,
            command.in_modifier,
            status,
            took,
        );
        if status != CmdStatus::OK {
            return Err(Error::Refused { opcode, status });
        }
        Ok((turn, value))
    }

    /// Sleeps between two looks, and returns the next pause: it grows with the time since `begin`.
    async fn look_again(&self, begin: Instant, pause: Duration) -> Duration {
        self.platform.sleep(pause).await;
        let most = if self.platform.now().since(begin) < SLOW {
            LOOK_SELDOM
        } else {
            LOOK_RARELY
        };
        (pause * 2).min(most)
    }

    fn read(&self, offset: usize) -> u32 {
        regs::swap(self.registers.read_u32(regs::HCR + offset))
    }

    fn write(&self, offset: usize, value: u32) {
        self.registers
            .write_u32(regs::HCR + offset, regs::swap(value));
    }

    fn doorbell(&self) -> Result<Doorbell, Error> {
        match self.read(hcr::DOORBELL) {
            regs::GONE => Err(Error::Gone {
                during: Step::CommandRegister,
            }),
            value => Ok(Doorbell::from(value)),
        }
    }

    /// Returns whether the register takes a command: `go` is clear, and the toggle of the last
    /// command reads back (Linux `mlx4/cmd.c`, `cmd_pending`).
    fn register_free(&self) -> Result<bool, Error> {
        let doorbell = self.doorbell()?;
        Ok(!doorbell.go() && doorbell.toggle() != self.posting.lock().toggle)
    }

    /// Writes a command into the free register; returns the token that its event will name.
    fn post(&self, command: &Command<'_>, by_event: bool) -> u16 {
        let mailbox = |addr: BusAddr| addr.0;
        let input = match command.input {
            Input::Nothing => 0,
            Input::Immediate(value) => value,
            Input::Mailbox(bytes) => {
                self.input.fill(0, MAILBOX_LEN, 0);
                self.input.write(0, bytes);
                mailbox(self.input.bus_addr())
            }
        };
        let mut output = 0;
        if command.output_mailbox {
            // An answer that firmware writes in part only must not show bytes of the last one.
            self.output.fill(0, MAILBOX_LEN, 0);
            output = mailbox(self.output.bus_addr());
        }
        let mut posting = self.posting.lock();
        posting.token = posting.token.wrapping_add(1) % POLL_TOKEN;
        // A token is never one of the last commands': a late event of an abandoned command then
        // names none that is waited for (Linux `mlx4/cmd.c`, `mlx4_cmd_wait`, advances it in the
        // same way).
        let token = if by_event { posting.token } else { POLL_TOKEN };
        let [input_high, input_low] = halves(input);
        let [output_high, output_low] = halves(output);
        self.write(hcr::IN_PARAM_HIGH, input_high);
        self.write(hcr::IN_PARAM_LOW, input_low);
        self.write(hcr::IN_MODIFIER, command.in_modifier);
        self.write(hcr::OUT_PARAM_HIGH, output_high);
        self.write(hcr::OUT_PARAM_LOW, output_low);
        self.write(hcr::TOKEN, hcr::token(token));
        // Mailbox and parameters before `go`. The register takes whole dwords only (Linux
        // `mlx4/cmd.c`, `mlx4_cmd_post`).
        fence::publish();
        let doorbell = Doorbell::new()
            .with_go(true)
            .with_event(by_event)
            .with_toggle(posting.toggle)
            .with_op_modifier(command.op_modifier)
            .with_opcode(command.opcode);
        self.write(hcr::DOORBELL, doorbell.into());
        // The next command's. The card takes a command only if the toggle differs from the last
        // one's, and reads it back as written once it has: a `go` bit alone could be the one of a
        // command that has not been seen yet (Linux `mlx4/cmd.c`, `cmd_pending`).
        posting.toggle = !posting.toggle;
        token
    }

    /// Returns the status and output of a polled command; `None` while it runs.
    fn polled_end(&self) -> Result<Option<(CmdStatus, u64)>, Error> {
        let doorbell = self.doorbell()?;
        // `toggle` was inverted when the command was posted.
        if doorbell.go() || doorbell.toggle() == self.posting.lock().toggle {
            return Ok(None);
        }
        // These loads can't pass the doorbell's: loads of uncached memory are in order (Intel SDM
        // volume 3A, "Strong Uncacheable"). Linux reads them in the same order (`mlx4_cmd_poll`).
        let value = u64::from(self.read(hcr::OUT_PARAM_HIGH)) << 32
            | u64::from(self.read(hcr::OUT_PARAM_LOW));
        Ok(Some((doorbell.status(), value)))
    }
}

fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    [
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes([e, f, g, h]),
    ]
}
