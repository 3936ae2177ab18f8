//! The trace of system calls, one line a call, in strace's form.
//!
//! * [`table`]: the arguments of each call. * [`structs`]: structures. * [`words`]: names.
//! * [`pieces`]: what an argument leads to in the program's memory.
//!
//! Arguments that a call reads are shown as they were before the call, those that it writes as they
//! are after it. Programs' pointers are followed for a few bytes only, and shown as numbers where
//! they lead nowhere.

mod pieces;
mod structs;
mod table;
mod words;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use console::Output;
use messages::storage::PATH_MAX;

use self::table::Arg;
use crate::deliver::Outcome;
use crate::error::{Error, Exit, Result};
use crate::platform::SystemCall;
use crate::process::Node;
use crate::signals::SignalInfo;
use crate::thread::Thread;

/// Bytes of a text that are shown, as strace does.
const SHOWN: usize = 32;
/// Strings of a list that are shown.
const MAX_STRINGS: u64 = 16;
/// The flag of open with which rights count.
const O_CREAT: u64 = 0o100;
/// Strings of a list that are counted.
const MAX_COUNTED: u64 = 4096;

/// The calls of one number.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    time: Duration,
    calls: u64,
    errors: u64,
}

/// Counts of the trace, by the call's number.
pub(crate) type Tallies = BTreeMap<u64, Tally>;

/// A call whose end has not come.
pub(crate) struct Traced {
    shown: Vec<Option<String>>,
    begun: hal::Instant,
}

/// Returns bytes as a literal of C, cut after a few.
fn quote(bytes: &[u8], cut: bool) -> String {
    let mut text = String::from("\"");
    for &byte in bytes {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            b'"' | b'\\' => {
                text.push('\\');
                text.push(byte.into());
            }
            b' '..=b'~' => text.push(byte.into()),
            byte => text.push_str(&format!("\\{byte:o}")),
        }
    }
    text.push('"');
    if cut {
        text.push_str("...");
    }
    text
}

/// Returns how a call ended, as strace shows it.
fn result(call: SystemCall, outcome: &Result<Outcome>) -> String {
    match outcome {
        Ok(Outcome::Value(value)) => {
            let addresses = matches!(call.number, 9 | 12 | 25);
            if addresses {
                format!("{value:#x}")
            } else {
                format!("{}", value.cast_signed())
            }
        }
        Ok(Outcome::Registers) => "0".into(),
        Err(Error::Errno(errno)) => {
            let (name, text) = words::error(errno.0);
            // What the program sees of these depends on what the signal does.
            let value = if errno.0 >= 512 { "?" } else { "-1" };
            format!("{value} {name} ({text})")
        }
        Err(_) => "?".into(),
    }
}

impl<N: Node> Thread<N> {
    pub(crate) fn traces(&self) -> bool {
        self.node.kernel().strace
    }

    /// Serves a call and writes its line.
    pub(crate) async fn traced_call(&mut self, call: SystemCall) -> Result<Outcome> {
        let traced = self.trace_begin(call).await;
        let outcome = self.system_call(call).await;
        self.trace_end(call, traced, &outcome).await;
        outcome
    }

    /// Notes a call's arguments as they are before it.
    pub(crate) async fn trace_begin(&self, call: SystemCall) -> Traced {
        let mut shown = Vec::new();
        for (index, arg) in table::args(call.number).iter().enumerate() {
            shown.push(self.show_before(*arg, index, &call.args).await);
        }
        let begun = self.now();
        Traced { shown, begun }
    }

    /// Writes the line of a call that has ended.
    pub(crate) async fn trace_end(
        &self,
        call: SystemCall,
        traced: Traced,
        outcome: &Result<Outcome>,
    ) {
        let time = self.now().since(traced.begun);
        let mut line = self.prefix();
        line.push_str(crate::system_call_name(call.number).unwrap_or("?"));
        line.push('(');
        let opens = table::args(call.number)
            .iter()
            .any(|arg| matches!(arg, Arg::Open));
        for (index, (arg, before)) in table::args(call.number)
            .iter()
            .zip(traced.shown)
            .enumerate()
        {
            // Rights count only for what is made.
            let makes = index
                .checked_sub(1)
                .is_some_and(|flags| call.args[flags] & O_CREAT != 0);
            if matches!(arg, Arg::Mode) && opens && !makes {
                break;
            }
            if index > 0 {
                line.push_str(", ");
            }
            match before {
                Some(text) => line.push_str(&text),
                None => line.push_str(&self.show_after(*arg, index, &call.args, outcome).await),
            }
        }
        let spent = format!("<{}.{:06}>", time.as_secs(), time.subsec_micros());
        line.push_str(&format!(") = {} {spent}\n", result(call, outcome)));
        {
            let mut tallies = self.node.kernel().tallies.lock();
            // A program may try any number: what Linux has no call for is one row.
            let known = crate::system_call_name(call.number).map_or(u64::MAX, |_| call.number);
            let tally = tallies.entry(known).or_default();
            tally.time += time;
            tally.calls += 1;
            tally.errors += u64::from(matches!(outcome, Err(Error::Errno(_))));
        }
        self.write_trace(&line).await;
    }

    /// Writes that a signal is taken.
    pub(crate) async fn trace_signal(&self, info: &SignalInfo) {
        if self.traces() {
            let name = words::signal(info.signal.into());
            let [pid, _] = info.fields;
            let from = if info.code <= 0 {
                format!(", si_pid={}", pid & 0xffff_ffff)
            } else {
                String::new()
            };
            let line = format!(
                "--- {name} {{si_signo={name}, si_code={}{from}}} ---\n",
                info.code
            );
            self.write_trace(&(self.prefix() + &line)).await;
        }
    }

    /// Writes that the thread has ended.
    pub(crate) async fn trace_exit(&self, exit: Exit) {
        if self.traces() {
            let line = match exit {
                Exit::Code(code) => format!("+++ exited with {code} +++\n"),
                Exit::Signal(signal) => {
                    format!("+++ killed by {} +++\n", words::signal(signal.into()))
                }
            };
            self.write_trace(&(self.prefix() + &line)).await;
        }
    }

    /// Returns what tells threads apart, once there are several.
    fn prefix(&self) -> String {
        if self.node.kernel().had_several() {
            format!("[pid {:>5}] ", self.tid())
        } else {
            String::new()
        }
    }

    async fn write_trace(&self, line: &str) {
        self.node
            .kernel()
            .console
            .write_all(Output::Trace, line.as_bytes())
            .await;
    }

    /// Shows an argument before the call; `None` for what only the end of the call tells.
    async fn show_before(&self, arg: Arg, index: usize, args: &[u64; 6]) -> Option<String> {
        let value = args[index];
        let low = value & 0xffff_ffff;
        Some(match arg {
            Arg::Int => format!("{}", u32::try_from(low).unwrap_or(0).cast_signed()),
            Arg::Size => format!("{}", value.cast_signed()),
            Arg::Hex if value == 0 => "NULL".into(),
            Arg::Hex => format!("{value:#x}"),
            Arg::Dir if low == 0xffff_ff9c => "AT_FDCWD".into(),
            Arg::Dir => format!("{low}"),
            Arg::Path => self.show_string(value).await,
            Arg::In(len) => self.show_bytes(value, args[len]).await,
            Arg::Strings => self.show_strings(value).await,
            Arg::Count => {
                let count = self.count_strings(value).await;
                format!("{value:#x} /* {count} vars */")
            }
            Arg::Open => words::open_flags(low),
            Arg::Flags(words) => words::flags(words, value),
            Arg::Name(words) => words::name(words, low),
            Arg::Signal => words::signal(low),
            Arg::Mode => format!("0{:o}", low),
            Arg::Given(kind) => self.show_struct(kind, value).await,
            Arg::List(kind, count) => self.show_list(kind, value, args[count]).await,
            Arg::Pieces(count) => self.show_pieces(value, args[count], u64::MAX).await,
            Arg::Address(len) => self.show_address(value, args[len]).await,
            Arg::Out
            | Arg::OutPath
            | Arg::OutPair
            | Arg::OutStatus
            | Arg::Filled(_)
            | Arg::Events(_)
            | Arg::OutPieces(_)
            | Arg::OutAddress(_) => return None,
        })
    }

    /// Shows what the call has written.
    async fn show_after(
        &self,
        arg: Arg,
        index: usize,
        args: &[u64; 6],
        outcome: &Result<Outcome>,
    ) -> String {
        let value = args[index];
        let Ok(Outcome::Value(result)) = *outcome else {
            return format!("{value:#x}");
        };
        match arg {
            Arg::Out => self.show_bytes(value, result).await,
            Arg::OutPath => self.show_string(value).await,
            Arg::Filled(kind) => self.show_struct(kind, value).await,
            Arg::Events(kind) => self.show_list(kind, value, result).await,
            Arg::OutPieces(count) => self.show_pieces(value, args[count], result).await,
            Arg::OutAddress(len) => self.show_out_address(value, args[len]).await,
            Arg::OutPair | Arg::OutStatus if value != 0 => {
                let mut words = [0; 8];
                let len = if matches!(arg, Arg::OutPair) { 8 } else { 4 };
                if self.memory.read(value, &mut words[..len]).await.is_err() {
                    return format!("{value:#x}");
                }
                let word = |at: usize| {
                    i32::from_le_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]])
                };
                match arg {
                    Arg::OutPair => format!("[{}, {}]", word(0), word(4)),
                    _ => structs::status(word(0)),
                }
            }
            _ if value == 0 => "NULL".into(),
            _ => format!("{value:#x}"),
        }
    }

    async fn show_bytes(&self, addr: u64, len: u64) -> String {
        let count = usize::try_from(len).map_or(SHOWN, |len| len.min(SHOWN));
        let mut bytes = vec![0; count];
        match self.memory.read(addr, &mut bytes).await {
            Ok(()) => quote(&bytes, len > SHOWN as u64),
            Err(_) => format!("{addr:#x}"),
        }
    }

    async fn show_string(&self, addr: u64) -> String {
        match self.memory.read_string(addr, PATH_MAX).await {
            Ok(text) => quote(&text, false),
            Err(_) if addr == 0 => "NULL".into(),
            Err(_) => format!("{addr:#x}"),
        }
    }

    async fn show_strings(&self, list: u64) -> String {
        let mut shown = Vec::new();
        for index in 0..MAX_STRINGS {
            match self.memory.read_u64(list.wrapping_add(index * 8)).await {
                Ok(0) => return format!("[{}]", shown.join(", ")),
                Ok(at) => shown.push(self.show_string(at).await),
                Err(_) => return format!("{list:#x}"),
            }
        }
        format!("[{}, ...]", shown.join(", "))
    }

    async fn count_strings(&self, list: u64) -> u64 {
        for index in 0..MAX_COUNTED {
            match self.memory.read_u64(list.wrapping_add(index * 8)).await {
                Ok(0) | Err(_) => return index,
                Ok(_) => {}
            }
        }
        MAX_COUNTED
    }
}

/// Returns the table at the end of a trace, as `strace -c` has it.
pub(crate) fn summary(tallies: &Tallies) -> String {
    let total: Duration = tallies.values().map(|tally| tally.time).sum();
    let mut rows: Vec<_> = tallies.iter().collect();
    rows.sort_by_key(|(_, tally)| core::cmp::Reverse(tally.time));
    let mut text = String::from("% time     seconds  usecs/call     calls    errors syscall\n");
    let mut row = |name: &str, tally: &Tally| {
        let share = tally.time.as_nanos() * 10_000 / total.as_nanos().max(1);
        let each = tally.time.as_micros() / u128::from(tally.calls.max(1));
        let errors = if tally.errors == 0 {
            String::new()
        } else {
            format!("{}", tally.errors)
        };
        text.push_str(&format!(
            "{:>3}.{:02} {:>4}.{:06} {each:>11} {:>9} {errors:>9} {name}\n",
            share / 100,
            share % 100,
            tally.time.as_secs(),
            tally.time.subsec_micros(),
            tally.calls,
        ));
    };
    for (number, tally) in rows {
        row(crate::system_call_name(*number).unwrap_or("?"), tally);
    }
    let sum = |part: fn(&Tally) -> u64| tallies.values().map(part).sum();
    let all = Tally {
        time: total,
        calls: sum(|tally| tally.calls),
        errors: sum(|tally| tally.errors),
    };
    row("total", &all);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::errno;

    #[test]
    fn texts_and_results_look_as_strace_s() {
        assert_eq!(
            quote(b"a\n\"\\\x01\xff", true),
            "\"a\\n\\\"\\\\\\1\\377\"..."
        );
        let call = |number| SystemCall {
            number,
            args: [0; 6],
        };
        assert_eq!(result(call(0), &Ok(Outcome::Value(3))), "3");
        assert_eq!(result(call(9), &Ok(Outcome::Value(0x7000))), "0x7000");
        assert_eq!(
            result(call(2), &Err(errno::ENOENT.into())),
            "-1 ENOENT (No such file or directory)"
        );
        assert!(result(call(0), &Err(errno::ERESTARTSYS.into())).starts_with("? ERESTARTSYS"));
        assert_eq!(
            result(call(60), &Err(Error::ThreadEnded(Exit::Code(0)))),
            "?"
        );
    }

    #[test]
    fn the_summary_counts_calls_and_errors() {
        let tally = |micros, calls, errors| Tally {
            time: Duration::from_micros(micros),
            calls,
            errors,
        };
        let text = summary(&[(0, tally(250, 2, 0)), (2, tally(750, 3, 1))].into());
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(rows[1], ["75.00", "0.000750", "250", "3", "1", "open"]);
        assert_eq!(rows[2], ["25.00", "0.000250", "125", "2", "read"]);
        assert_eq!(rows[3], ["100.00", "0.001000", "200", "5", "1", "total"]);
    }
}
