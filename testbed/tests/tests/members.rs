//! Members of a cluster that are whole machines: killed, stopped, unplugged, restarted, late, gone,
//! and without the key.
//!
//! The bounds of FIT are read from what the nodes say by their own clocks; what is waited for here
//! may take long on a busy machine.

use std::thread::sleep;
use std::time::{Duration, Instant};

use testbed_tests::nodes::{Event, Identity, Line, Nodes};

/// Keep-alive bound of the members, as `xtask nodes` sets it.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// A look at the silence comes late by an eighth of the bound at most, as far as it counts.
const LATE_LOOK: Duration = Duration::from_millis(250);
/// Time that a call to a lost peer may take beyond the bound by its node's clock, which goes on
/// while a busy machine does not let the node run.
const SLACK: Duration = Duration::from_secs(20);
/// Time for which a machine is stopped.
const STOPPED: Duration = Duration::from_secs(10);

/// Tasks of each node that call each other one.
const CALLERS: usize = 2;
/// A node that calls all others, and waits for each answer much longer than a peer may be silent.
const CALLS: &str = "part=call callers=2 pace=50 timeout=120000";
/// Text that a member logs of an announcement with a wrong proof.
const REFUSED: &str = " is refused: Proof";
const ROLES: [&str; 4] = ["processor", "memory", "storage", "memory"];

/// A cluster of nodes that call each other.
struct Members {
    nodes: Nodes,
    names: Vec<String>,
    identities: Vec<Identity>,
}

impl Members {
    /// Starts a cluster and waits until its views agree, on a fabric with more adapters.
    fn new(count: usize, adapters: u8) -> Self {
        let mut members = Self {
            nodes: Nodes::new(adapters),
            names: Vec::new(),
            identities: Vec::new(),
        };
        (0..count).for_each(|index| {
            let name = format!("node{index}");
            members
                .nodes
                .tell(&format!("start {name} {CALLS} role={}", ROLES[index]));
            members.names.push(name);
        });
        for name in &members.names {
            members.identities.push(members.nodes.identity(name, 0));
        }
        (0..count).for_each(|index| members.is_back(index, 0));
        members
    }

    /// Waits until all are of one view, and this one and each other have answered each other since
    /// then.
    fn is_back(&self, index: usize, since: usize) {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        self.nodes.wait_for_one_view(&names);
        for other in (0..names.len()).filter(|&other| other != index) {
            self.nodes
                .wait_for_answer(names[other], &self.identities[index], since);
            self.nodes
                .wait_for_answer(names[index], &self.identities[other], since);
        }
    }

    /// Waits until the node `by` has lost `lost` since then, and has told each task that called it;
    /// gives the cause.
    fn loses(&self, by: usize, lost: usize, since: usize) -> String {
        let (node, of) = (&self.names[by], &self.identities[lost]);
        let loss = self.nodes.wait_event(node, "lost", since, |event| {
            (event.field(0), event.field(1)) == (of.name.as_str(), of.life.as_str())
        });
        for caller in 0..CALLERS {
            let caller = caller.to_string();
            let failed = self.nodes.wait_event(node, "call_failed", since, |event| {
                event.field(0) == of.name && event.field(1) == caller
            });
            check_failure(&failed, of);
        }
        loss.field(2).to_owned()
    }
}

/// Checks that the error of a call to a lost peer names peer, operation, age and the connection's
/// state, and came in time.
fn check_failure(failed: &Event, of: &Identity) {
    let (age, error) = (failed.field(2), failed.field(3));
    assert!(
        error.starts_with(&format!("{} is lost: ", of.name)),
        "{error}"
    );
    let age = Duration::from_micros(age.parse().expect("an age"));
    assert!(age < KEEPALIVE + SLACK, "{age:?}: {error}");
    // A task may have been about to call: then nothing was under way.
    let under_way = error.split_once("; no end of call 1 after ");
    if let Some((_, rest)) = under_way {
        assert!(rest.contains("(connection "), "{error}");
    }
}

/// Returns whether the cause of a loss is silence. Checks that the silence was at least the
/// keep-alive bound, and little more.
fn check_silence(cause: &str) -> bool {
    let Some(age) = cause.strip_prefix("nothing was heard of it for ") else {
        return false;
    };
    let seconds: f64 = age
        .strip_suffix('s')
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("{cause}"));
    let silent = Duration::from_secs_f64(seconds);
    assert!(
        (KEEPALIVE..KEEPALIVE + LATE_LOOK).contains(&silent),
        "{cause}"
    );
    true
}

#[test]
fn a_killed_machine_is_lost_and_comes_back_as_another_incarnation() {
    let mut members = Members::new(3, 3);
    let killed = members.nodes.tell("kill node2");
    for survivor in [0, 1] {
        let cause = members.loses(survivor, 2, killed);
        // Nobody is there to acknowledge, or to speak: whichever is noticed first.
        assert!(
            check_silence(&cause) || cause.starts_with("the transport failed: "),
            "{cause}"
        );
    }
    members.nodes.wait_for_one_view(&["node0", "node1"]);
    let again = members
        .nodes
        .tell(&format!("start node2 {CALLS} role={}", ROLES[2]));
    let now = members.nodes.identity("node2", again);
    let before = std::mem::replace(&mut members.identities[2], now.clone());
    assert_eq!(now.name, before.name);
    assert_ne!(now.life, before.life);
    for survivor in ["node0", "node1"] {
        let joined = members
            .nodes
            .wait_event(survivor, "joined", again, |event| {
                event.field(0) == now.name
            });
        assert_eq!(joined.field(1), now.life);
    }
    members.is_back(2, again);
    members.nodes.finish();
}

#[test]
fn a_stopped_machine_is_lost_by_its_silence_and_found_again() {
    let mut members = Members::new(3, 3);
    let stopped = members.nodes.tell("stop node2");
    let since = Instant::now();
    for survivor in [0, 1] {
        let cause = members.loses(survivor, 2, stopped);
        // Its card still acknowledges.
        assert!(check_silence(&cause), "{cause}");
    }
    members.nodes.wait_for_one_view(&["node0", "node1"]);
    sleep(STOPPED.saturating_sub(since.elapsed()));
    let goes_on = members.nodes.tell("continue node2");
    for other in [0, 1] {
        members.loses(2, other, goes_on);
    }
    // In the same life as before.
    members.is_back(2, goes_on);
    for survivor in ["node0", "node1"] {
        let of = &members.identities[2];
        let joined = members
            .nodes
            .wait_event(survivor, "joined", stopped, |event| {
                event.field(0) == of.name
            });
        assert_eq!(joined.field(1), of.life);
    }
    members.nodes.finish();
}

#[test]
fn a_machine_whose_cable_is_pulled_is_lost_and_found_again() {
    let mut members = Members::new(3, 3);
    let pulled = members.nodes.tell("cable node2 out");
    for (by, lost) in [(0, 2), (1, 2), (2, 0), (2, 1)] {
        let cause = members.loses(by, lost, pulled);
        assert!(
            check_silence(&cause) || cause.starts_with("the transport failed: "),
            "{cause}"
        );
    }
    members.nodes.wait_for_one_view(&["node0", "node1"]);
    members.nodes.wait_for_one_view(&["node2"]);
    let plugged = members.nodes.tell("cable node2 in");
    members.is_back(2, plugged);
    members.nodes.finish();
}

#[test]
fn a_late_machine_joins_all_and_one_without_the_key_is_refused() {
    let mut members = Members::new(3, 5);
    let wrong = "f".repeat(64);
    let strange = members
        .nodes
        .tell(&format!("start node4 {CALLS} key={wrong}"));
    let stranger = members.nodes.identity("node4", strange);
    let late = members
        .nodes
        .tell(&format!("start node3 {CALLS} role={}", ROLES[3]));
    members.names.push("node3".into());
    members
        .identities
        .push(members.nodes.identity("node3", late));
    members.is_back(3, late);
    for node in &members.names {
        members
            .nodes
            .wait_event(node, "refused", strange, |event| event.field(0) != "0");
        let what = format!("a refusal in the log of {node}");
        members.nodes.wait(&what, strange, |lines| {
            let is_it = |line: &Line| line.node == *node && line.text.contains(REFUSED);
            lines.iter().any(is_it).then_some(())
        });
    }
    // Nobody has changed its mind since.
    let names: Vec<&str> = members.names.iter().map(String::as_str).collect();
    members.nodes.wait_for_one_view(&names);
    members.nodes.wait_for_one_view(&["node4"]);
    let joined = members.nodes.events("joined", 0);
    let strange = |event: &&Event| event.node == "node4" || event.field(0) == stranger.name;
    assert_eq!(joined.iter().filter(strange).count(), 0, "{joined:?}");
    members.nodes.finish();
}

#[test]
fn a_machine_that_takes_its_leave_is_missed_before_it_is_silent() {
    let mut members = Members::new(2, 3);
    let visit = members
        .nodes
        .tell(&format!("start node2 {CALLS} calls=100"));
    let visitor = members.nodes.identity("node2", visit);
    for node in &members.names {
        let left = members
            .nodes
            .wait_event(node, "lost", visit, |event| event.field(0) == visitor.name);
        let cause = left.field(2);
        // The fabric may notice before a busy machine hears what it was told.
        assert!(
            cause == "the peer left" || cause.starts_with("the transport failed: "),
            "{cause}"
        );
    }
    let ended = members.nodes.wait_event("node2", "calls", visit, |_| true);
    assert_eq!(
        [0, 1, 2].map(|field| ended.field(field)),
        ["100", "100", "0"]
    );
    members.nodes.wait("the end of node2", visit, |lines| {
        let is_it = |line: &Line| line.text == "node2 has ended: left";
        lines.iter().any(is_it).then_some(())
    });
    members.nodes.wait_for_one_view(&["node0", "node1"]);
    members.nodes.finish();
}

#[test]
fn a_member_that_answers_nobody_ends_each_call_at_its_deadline() {
    let mut nodes = Nodes::new(2);
    nodes.tell("start node1 part=watch");
    let silent = nodes.identity("node1", 0);
    nodes.tell("start node0 part=call timeout=1000 pace=10000");
    let failed = nodes.wait_event("node0", "call_failed", 0, |event| {
        event.field(0) == silent.name
    });
    let age = Duration::from_micros(failed.field(2).parse().expect("an age"));
    let timeout = Duration::from_secs(1);
    assert!((timeout..timeout + SLACK).contains(&age), "{age:?}");
    let error = failed.field(3);
    let begins = format!("{}: no end of call 1 after ", silent.name);
    assert!(
        error.starts_with(&begins) && error.ends_with("(connection Up)"),
        "{error}"
    );
    // The connection is none the worse for it.
    nodes.wait_for_one_view(&["node0", "node1"]);
    nodes.finish();
}
