//! Nodes of FIT in QEMU (`xtask nodes`), and their output so far.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use crate::xtask;

/// Deadline of any wait for something that must happen, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// Lines that a failure shows.
const TAIL: usize = 60;

/// A line of a node's log, or of `xtask nodes` itself under the name `nodes`.
#[derive(Debug, Clone)]
pub struct Line {
    /// Node that wrote the line.
    pub node: String,
    /// Text of the line.
    pub text: String,
}

/// Event that a node reports; `docs/user/nodes.md` lists them.
#[derive(Debug, Clone)]
pub struct Event {
    /// Node that reports the event.
    pub node: String,
    /// Name of the event.
    pub key: String,
    /// Time of the event, by the node's own clock.
    pub at: Duration,
    /// Other fields of the event.
    pub fields: Vec<String>,
}

impl Event {
    fn of(line: &Line) -> Option<Self> {
        let mut fields = line.text.strip_prefix("report\t")?.split('\t');
        let key = fields.next()?.to_owned();
        let at = Duration::from_micros(fields.next()?.parse().ok()?);
        Some(Self {
            node: line.node.clone(),
            key,
            at,
            fields: fields.map(str::to_owned).collect(),
        })
    }

    /// Returns a field; empty if it does not exist.
    #[must_use]
    pub fn field(&self, index: usize) -> &str {
        self.fields.get(index).map_or("", String::as_str)
    }
}

/// Identity that a node reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its role and GID.
    pub name: String,
    /// Incarnation: differs in each of the node's lives.
    pub life: String,
}

#[derive(Default)]
struct Heard {
    lines: Mutex<Vec<Line>>,
    more: Condvar,
}

/// A fabric with nodes. Dropping it ends them.
pub struct Nodes {
    child: Child,
    tell: Option<ChildStdin>,
    heard: Arc<Heard>,
    reader: Option<JoinHandle<()>>,
}

impl Nodes {
    /// Starts a fabric with `adapters` adapters and no node.
    ///
    /// # Panics
    /// If it can't be had.
    #[must_use]
    pub fn new(adapters: u8) -> Self {
        let mut child = xtask()
            .args(["nodes", "--adapters", &adapters.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("xtask starts");
        let (tell, said) = (child.stdin.take(), child.stdout.take().expect("a pipe"));
        let heard = Arc::new(Heard::default());
        let reader = spawn({
            let heard = Arc::clone(&heard);
            move || {
                for text in BufReader::new(said).lines().map_while(Result::ok) {
                    let (node, text) = text.split_once(": ").unwrap_or(("nodes", &text));
                    let line = Line {
                        node: node.to_owned(),
                        text: text.to_owned(),
                    };
                    heard.lines.lock().expect("lock").push(line);
                    heard.more.notify_all();
                }
            }
        });
        let nodes = Self {
            child,
            tell,
            heard,
            reader: Some(reader),
        };
        nodes.wait("the fabric", 0, |lines| {
            lines.iter().any(|line| line.text == "ready").then_some(())
        });
        nodes
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.heard.lines.lock().expect("lock")
    }

    /// Returns the number of lines so far.
    #[must_use]
    pub fn now(&self) -> usize {
        self.lines().len()
    }

    /// Has a line carried out, as `xtask nodes` takes them; gives how much had been said before.
    ///
    /// # Panics
    /// If it is not carried out.
    pub fn tell(&mut self, line: &str) -> usize {
        let before = self.now();
        let tell = self.tell.as_mut().expect("a pipe");
        writeln!(tell, "{line}").expect("xtask listens");
        self.wait(line, before, |lines| {
            lines
                .iter()
                .any(|said| said.node == "nodes" && said.text == line)
                .then_some(())
        });
        before
    }

    /// Waits until what was said since then holds what is looked for.
    ///
    /// # Panics
    /// If it does not come, or the nodes end.
    pub fn wait<T>(&self, what: &str, since: usize, look: impl Fn(&[Line]) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        let mut lines = self.lines();
        loop {
            if let Some(found) = look(&lines[since..]) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.reader.as_ref().is_none_or(JoinHandle::is_finished) {
                let from = lines.len().saturating_sub(TAIL);
                let last: Vec<_> = lines[from..]
                    .iter()
                    .map(|line| format!("{}: {}", line.node, line.text))
                    .collect();
                drop(lines);
                panic!("{what} did not come; the last lines:\n{}", last.join("\n"));
            }
            // The end of the output wakes nobody.
            let turn = left.min(Duration::from_millis(200));
            lines = self.heard.more.wait_timeout(lines, turn).expect("lock").0;
        }
    }

    /// Waits until the events since then hold what is looked for.
    ///
    /// # Panics
    /// As [`wait`](Self::wait).
    pub fn wait_events<T>(
        &self,
        what: &str,
        since: usize,
        look: impl Fn(&[Event]) -> Option<T>,
    ) -> T {
        self.wait(what, since, |lines| {
            let events: Vec<Event> = lines.iter().filter_map(Event::of).collect();
            look(&events)
        })
    }

    /// Waits for an event of a node.
    ///
    /// # Panics
    /// As [`wait`](Self::wait).
    pub fn wait_event(
        &self,
        node: &str,
        key: &str,
        since: usize,
        is_it: impl Fn(&Event) -> bool,
    ) -> Event {
        let what = format!("an event {key} of {node}");
        self.wait_events(&what, since, |events| {
            let found = events
                .iter()
                .find(|event| event.node == node && event.key == key && is_it(event));
            found.cloned()
        })
    }

    /// Returns the events named `key` since then.
    #[must_use]
    pub fn events(&self, key: &str, since: usize) -> Vec<Event> {
        let lines = self.lines();
        let events = lines[since..].iter().filter_map(Event::of);
        events.filter(|event| event.key == key).collect()
    }

    /// Waits until a node that was started then says who it is.
    ///
    /// # Panics
    /// As [`wait`](Self::wait).
    pub fn identity(&self, node: &str, since: usize) -> Identity {
        let event = self.wait_event(node, "up", since, |_| true);
        Identity {
            name: event.field(0).into(),
            life: event.field(1).into(),
        }
    }

    /// Waits until the latest views of all these nodes are the same, hold them all, and each knows
    /// that the others agree.
    ///
    /// # Panics
    /// As [`wait`](Self::wait).
    pub fn wait_for_one_view(&self, nodes: &[&str]) {
        let what = format!("one view of {}", nodes.join(", "));
        self.wait_events(&what, 0, |events| {
            let views = nodes.iter().map(|&node| {
                let is_view = |event: &&Event| event.node == node && event.key == "view";
                events.iter().rfind(is_view)
            });
            let views: Vec<&Event> = views.collect::<Option<_>>()?;
            let (members, agreeing) = (nodes.len().to_string(), (nodes.len() - 1).to_string());
            let same = views.iter().all(|view| {
                view.field(0) == members
                    && view.field(1) == views[0].field(1)
                    && view.field(2) == agreeing
            });
            same.then_some(())
        });
    }

    /// Waits until a node has had an answer of another since then.
    ///
    /// # Panics
    /// As [`wait`](Self::wait).
    pub fn wait_for_answer(&self, caller: &str, callee: &Identity, since: usize) {
        self.wait_event(caller, "answered", since, |event| {
            event.field(0) == callee.name
        });
    }

    /// Ends all nodes.
    ///
    /// # Panics
    /// If `xtask nodes` fails, or a node has panicked or seen damaged bytes.
    pub fn finish(mut self) {
        drop(self.tell.take());
        let status = self.child.wait().expect("wait");
        let reader = self.reader.take().expect("once");
        reader.join().expect("the reader ends");
        assert!(status.success(), "xtask nodes ended with {status}");
        let damaged = self.events("damaged", 0);
        assert!(damaged.is_empty(), "{damaged:?}");
        let panicked = self
            .lines()
            .iter()
            .find(|line| line.text.contains("panic"))
            .cloned();
        assert!(panicked.is_none(), "{panicked:?}");
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        // The end of its input ends it; what it started ends with it.
        drop(self.tell.take());
        let _ = self.child.wait();
    }
}
