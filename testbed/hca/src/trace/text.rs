//! A trace as text: one line an event, its parts separated by tabs.
//!
//! ```text
//! SECONDS  NODE  command    NAME  op=N  modifier=N  in=ADDRESS  out=ADDRESS  status=NAME
//!                           in.FIELD=VALUE…  out.FIELD=VALUE…   (on the same line)
//! SECONDS  NODE  doorbell   send|arm|events  FIELD=VALUE…
//! SECONDS  NODE  read|write WHAT  addr=ADDRESS  len=N  FIELD=VALUE…
//! SECONDS  NODE  interrupt  vector=N
//! SECONDS  NODE  pin        asserted=0|1
//! SECONDS  NODE  reset
//! ```
//!
//! Numbers that are zero are left out of the fields.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hal::Instant;

use super::{Command, Direction, Doorbell, Event, Purpose, Recorder, decode, fields};

/// A recorder that writes lines.
pub struct Text<W: Write + Send> {
    state: Mutex<State<W>>,
}

struct State<W> {
    out: W,
    /// Mailboxes that each card has read and written since its last command: they are told with the
    /// next.
    mailboxes: BTreeMap<String, Mailboxes>,
    failed: bool,
}

#[derive(Default)]
struct Mailboxes {
    input: Vec<u8>,
    output: Vec<u8>,
}

impl<W: Write + Send> Text<W> {
    /// Writes to `out`, a line at a time: it should have a buffer.
    pub fn new(out: W) -> Self {
        Self {
            state: Mutex::new(State {
                out,
                mailboxes: BTreeMap::new(),
                failed: false,
            }),
        }
    }

    /// Writes what is still in a buffer.
    ///
    /// # Errors
    ///
    /// The writer's.
    pub fn flush(&self) -> io::Result<()> {
        self.lock().out.flush()
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: Write + Send> Recorder for Text<W> {
    fn record(&self, node: &str, now: Instant, event: &Event<'_>) {
        let mut state = self.lock();
        if state.failed {
            return;
        }
        let Some(line) = state.line(node, event) else {
            return;
        };
        let (seconds, nanos) = (now.nanos / 1_000_000_000, now.nanos % 1_000_000_000);
        if let Err(error) = writeln!(state.out, "{seconds}.{nanos:09}\t{node}\t{line}") {
            log::error!("the trace ends here: {error}");
            state.failed = true;
        }
    }
}

impl<W> State<W> {
    /// Returns the line of an event; `None` if a later event's line includes it.
    fn line(&mut self, node: &str, event: &Event<'_>) -> Option<String> {
        let mut line = String::new();
        match *event {
            Event::Command(ref command) => {
                let mailboxes = self.mailboxes.remove(node).unwrap_or_default();
                put_command(&mut line, command, &mailboxes);
            }
            Event::Dma {
                direction,
                purpose: Purpose::Mailbox,
                bytes,
                ..
            } => {
                let mailboxes = self.mailboxes.entry(node.into()).or_default();
                match direction {
                    Direction::Read => bytes.clone_into(&mut mailboxes.input),
                    Direction::Write => bytes.clone_into(&mut mailboxes.output),
                }
                return None;
            }
            Event::Dma {
                direction,
                purpose,
                addr,
                bytes,
                done,
            } => {
                let way = match direction {
                    Direction::Read => "read",
                    Direction::Write => "write",
                };
                let fault = if done { "" } else { "\tno memory" };
                let len = bytes.len();
                // Writing to a string does not fail.
                let _ = write!(
                    line,
                    "{way}\t{purpose:?}\taddr={addr:#x}\tlen={len:#x}{fault}"
                );
                put(&mut line, "", &decode::dma(purpose, bytes));
            }
            Event::Doorbell(doorbell) => put_doorbell(&mut line, doorbell),
            Event::Interrupt { vector } => {
                let _ = write!(line, "interrupt\tvector={vector:#x}");
            }
            Event::Pin { asserted } => {
                let _ = write!(line, "pin\tasserted={}", u8::from(asserted));
            }
            Event::Reset => line += "reset",
        }
        Some(line)
    }
}

fn put_command(line: &mut String, command: &Command, mailboxes: &Mailboxes) {
    let Command {
        opcode,
        op_modifier,
        in_modifier,
        in_param,
        out_param,
        status,
        result,
        by_event,
        token,
    } = *command;
    let way = if by_event { "event" } else { "poll" };
    let _ = write!(
        line,
        "command\t{opcode}\top={op_modifier:#x}\tmodifier={in_modifier:#x}\tin={in_param:#x}\tout={out_param:#x}\t\
         {way}={token:#x}\tstatus={status}"
    );
    if result != out_param {
        let _ = write!(line, "\tresult={result:#x}");
    }
    put(line, "in.", &decode::input(command, &mailboxes.input));
    put(line, "out.", &decode::output(command, &mailboxes.output));
}

fn put_doorbell(line: &mut String, doorbell: Doorbell) {
    let _ = match doorbell {
        Doorbell::Send { uar, qpn } => write!(line, "doorbell\tsend\tuar={uar:#x}\tqpn={qpn:#x}"),
        Doorbell::Arm { uar, arm, consumer } => {
            let begun = write!(line, "doorbell\tarm\tuar={uar:#x}\tconsumer={consumer:#x}");
            put(line, "", &fields(&arm));
            begun
        }
        Doorbell::Events { eqn, value } => {
            let begun = write!(line, "doorbell\tevents\teqn={eqn:#x}");
            put(line, "", &fields(&value));
            begun
        }
    };
}

fn put(line: &mut String, prefix: &str, fields: &[(String, String)]) {
    for (name, value) in fields {
        let _ = write!(line, "\t{prefix}{name}={value}");
    }
}
