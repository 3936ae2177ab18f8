//! Judge of the checks: parses the guests' output into verdicts.
//!
//! A guest's `checks.sh` prints `@check NUMBER begins`, then what the script says, then `@check
//! NUMBER ended STATUS`; `xtask linux` puts `nodeN: ` before each line. A guest that prints `@gone`
//! takes no further part.

use super::group::{Check, Group};

/// Follows the guests' lines, and says how each check went once all nodes have ended it.
pub struct Judge<'a> {
    checks: Vec<Progress<'a>>,
    nodes: usize,
    /// Number of each node's current check; `None` between checks.
    at: Vec<Option<usize>>,
}

/// A check that has begun or not.
struct Progress<'a> {
    check: &'a Check,
    said: String,
    statuses: Vec<Option<i32>>,
}

/// Result of a check.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Its number in the group.
    pub number: usize,
    /// Reasons of a failure, a line each; empty if the check passed.
    pub faults: Vec<String>,
    /// Output of the nodes.
    pub said: String,
}

/// Meaning of a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A node begins a check, the first to do so.
    Begins(usize),
    /// The last node has ended a check.
    Ended(Verdict),
}

impl<'a> Judge<'a> {
    /// Creates a judge that has seen no line.
    #[must_use]
    pub fn new(group: &'a Group) -> Self {
        let nodes = group.nodes();
        let progress = |check| Progress {
            check,
            said: String::new(),
            statuses: vec![None; nodes],
        };
        Self {
            checks: group.checks.iter().map(progress).collect(),
            nodes,
            at: vec![None; nodes],
        }
    }

    /// Takes the next line of the guests.
    pub fn line(&mut self, line: &str) -> Option<Event> {
        let (node, text) = line.strip_prefix("node")?.split_once(": ")?;
        let node: usize = node.parse().ok().filter(|&node| node < self.nodes)?;
        if let Some((number, what)) = text
            .strip_prefix("@check ")
            .and_then(|rest| rest.split_once(' '))
        {
            let number = number
                .parse()
                .ok()
                .filter(|&number| number < self.checks.len())?;
            return match what.strip_prefix("ended ") {
                Some(status) => self.ended(node, number, status.trim().parse().unwrap_or(-1)),
                None => self.begins(node, number),
            };
        }
        if text.trim_end() == "@gone" {
            return self.gone(node);
        }
        let at = self.at[node]?;
        self.checks[at].said += &format!("{line}\n");
        None
    }

    fn begins(&mut self, node: usize, number: usize) -> Option<Event> {
        let first = !self.at.contains(&Some(number));
        let begun = self.checks[number].statuses.iter().any(Option::is_some);
        self.at[node] = Some(number);
        (first && !begun).then_some(Event::Begins(number))
    }

    /// Handles a node that has ended on purpose: it takes no part in this check and those that
    /// follow.
    fn gone(&mut self, node: usize) -> Option<Event> {
        let at = self.at[node];
        for (number, progress) in self.checks.iter_mut().enumerate() {
            if Some(number) != at {
                progress.statuses[node].get_or_insert(0);
            }
        }
        self.ended(node, at?, 0)
    }

    fn ended(&mut self, node: usize, number: usize, status: i32) -> Option<Event> {
        let progress = &mut self.checks[number];
        self.at[node] = None;
        progress.statuses[node] = Some(status);
        let statuses: Vec<i32> = progress.statuses.iter().copied().flatten().collect();
        if statuses.len() < self.nodes {
            return None;
        }
        let failed = statuses
            .iter()
            .enumerate()
            .filter(|&(_, &status)| status != 0);
        let mut faults: Vec<String> = failed
            .map(|(node, status)| format!("node{node} ended with {status}"))
            .collect();
        for text in &progress.check.expected {
            if !progress.said.contains(text) {
                faults.push(format!("nothing said {text:?}"));
            }
        }
        Some(Event::Ended(Verdict {
            number,
            faults,
            said: progress.said.clone(),
        }))
    }

    /// Returns the nodes' output of a check that has not ended.
    #[must_use]
    pub fn said(&self, number: usize) -> &str {
        self.checks
            .get(number)
            .map_or("", |progress| &progress.said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> Group {
        Group::new("group", &[])
            .check(Check::new("two", &["a", "b"]).expect("node1: well"))
            .check(Check::new("one", &["c"]))
    }

    fn judge(lines: &str) -> Vec<Event> {
        let group = group();
        let mut judge = Judge::new(&group);
        lines.lines().filter_map(|line| judge.line(line)).collect()
    }

    fn faults(events: &[Event]) -> Vec<&[String]> {
        let verdicts = events.iter().filter_map(|event| match event {
            Event::Ended(verdict) => Some(verdict.faults.as_slice()),
            Event::Begins(_) => None,
        });
        verdicts.collect()
    }

    #[test]
    fn a_check_ends_with_its_last_node() {
        let events = judge(
            "node0: before\nnode0: @check 0 begins\nnode1: @check 0 begins\nnode0: @check 0 ended 0\nnode1: well\n\
             node1: @check 0 ended 0\nnode1: after",
        );
        let verdict = Verdict {
            number: 0,
            faults: Vec::new(),
            said: "node1: well\n".into(),
        };
        assert_eq!(events, [Event::Begins(0), Event::Ended(verdict)]);
    }

    #[test]
    fn a_status_or_a_missing_word_is_a_fault() {
        let events = judge(
            "node0: @check 0 begins\nnode0: well\nnode0: @check 0 ended 124\nnode1: @check 0 begins\n\
             node1: @check 0 ended 0",
        );
        assert_eq!(
            faults(&events),
            [["node0 ended with 124", "nothing said \"node1: well\""]]
        );
    }

    #[test]
    fn a_node_that_is_gone_is_waited_for_no_more() {
        let events = judge(
            "node0: @check 0 begins\nnode1: @check 0 begins\nnode1: well\nnode1: @gone\nnode0: @check 0 ended 0\n\
             node0: @check 1 begins\nnode0: @check 1 ended 0",
        );
        assert_eq!(faults(&events), [&[] as &[String], &[]]);
    }

    #[test]
    fn a_failed_check_does_not_hide_the_next() {
        let events = judge(
            "node0: @check 0 begins\nnode0: @check 0 ended 1\nnode1: @check 0 begins\nnode1: well\n\
             node0: @check 1 begins\nnode1: @check 0 ended 0\nnode1: @check 1 begins\nnode1: @check 1 ended 0\n\
             node0: @check 1 ended 0",
        );
        assert_eq!(
            faults(&events),
            [&["node0 ended with 1".to_owned()][..], &[]]
        );
        assert_eq!(events[1], Event::Begins(1));
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over() {
        let lines = "node0: @check 9 begins\nnode7: @check 0 begins\nnode0 @check\nnode0: @check\n@check 0 begins\nnode: x";
        assert_eq!(judge(lines), []);
        let events =
            judge("node0: @check 0 begins\nnode0: @check 0 ended what\nnode1: @check 0 ended 0");
        assert_eq!(faults(&events)[0][0], "node0 ended with -1");
    }
}
