//! Groups of checks, and their scripts in the guests.

use std::any::Any;
use std::io;

/// Default time limit of each script of a check, in seconds of the guest.
const LIMIT: u32 = 60;

/// Checks that share one boot of guests, in their order.
pub struct Group {
    /// Name after the module's: `pingpong`.
    pub name: String,
    /// Options of `cargo xtask linux`.
    pub options: Vec<String>,
    /// Extended regular expression of kernel messages that are allowed though they sound like
    /// complaints.
    pub allowed: Option<&'static str>,
    /// The checks; the last one is of the kernels' logs.
    pub checks: Vec<Check>,
    /// Starts what must run beside the guests.
    pub beside: Option<Starter>,
    full: bool,
}

/// Starts something: gives more options of `cargo xtask linux`, and what is dropped when the guests
/// have ended.
pub type Starter = fn() -> io::Result<(Vec<String>, Box<dyn Any>)>;

/// Check: a script for each node, each of which must succeed.
pub struct Check {
    /// Name: the claim that is checked, or the command that shows it.
    pub name: String,
    /// Each node's script, node 0's first. A node without one does nothing.
    pub scripts: Vec<String>,
    /// Time limit of each script, in seconds.
    pub limit: u32,
    /// Texts that the nodes' output must contain, each line with `nodeN: ` before it.
    pub expected: Vec<String>,
    full: bool,
}

impl Group {
    /// Creates a group that plain `cargo xtask test` runs, of guests with these options of `cargo
    /// xtask linux`.
    #[must_use]
    pub fn new(name: &str, options: &[&str]) -> Self {
        Self {
            name: name.into(),
            options: options.iter().map(|&option| option.into()).collect(),
            allowed: None,
            checks: Vec::new(),
            beside: None,
            full: false,
        }
    }

    /// Starts something beside the guests.
    #[must_use]
    pub fn beside(mut self, starter: Starter) -> Self {
        self.beside = Some(starter);
        self
    }

    /// Leaves the group to `cargo xtask test --linux`.
    #[must_use]
    pub fn full(mut self) -> Self {
        self.full = true;
        self
    }

    /// Lets the kernels say what matches this extended regular expression.
    #[must_use]
    pub fn allow(mut self, pattern: &'static str) -> Self {
        self.allowed = Some(pattern);
        self
    }

    /// Adds a check.
    #[must_use]
    pub fn check(mut self, check: Check) -> Self {
        self.checks.push(check);
        self
    }

    /// Adds checks.
    #[must_use]
    pub fn checks(mut self, checks: impl IntoIterator<Item = Check>) -> Self {
        self.checks.extend(checks);
        self
    }

    /// Its guests: as many as any of its checks has scripts for.
    #[must_use]
    pub fn nodes(&self) -> usize {
        let scripts = self.checks.iter().map(|check| check.scripts.len());
        scripts.max().unwrap_or(0).max(1)
    }

    /// Parts the group into what is to be run, with a check of the kernels' logs at its end, and
    /// the number of checks left out.
    ///
    /// With a filter, only checks whose group's or own name holds it are run. Nothing is left of a
    /// group without such a check.
    #[must_use]
    pub fn select(mut self, all: bool, filter: Option<&str>) -> (Option<Self>, usize) {
        // It keeps its guests, even if those that need the most of them are left out.
        let nodes = self.nodes();
        let before = self.checks.len();
        let named = |name: &str| filter.is_none_or(|filter| name.contains(filter));
        let (full, group_named) = (self.full, named(&self.name));
        self.checks
            .retain(|check| (all || !full && !check.full) && (group_named || named(&check.name)));
        let left_out = before - self.checks.len();
        if self.checks.is_empty() {
            return (None, left_out);
        }
        let script = format!("kernel-clean '{}'", self.allowed.unwrap_or_default());
        self.checks.push(Check::new(
            "kernel log clean",
            &vec![script.as_str(); nodes],
        ));
        (Some(self), left_out)
    }

    /// Returns a node's whole command.
    #[must_use]
    pub fn command(&self, node: usize) -> String {
        let mut command = String::from(". /data/guest/checks.sh\n");
        for (number, check) in self.checks.iter().enumerate() {
            let name = check.name.replace('\'', "");
            let script = check.scripts.get(node).map_or("", String::as_str);
            let limit = check.limit;
            command += &format!(
                "check {number} {limit} '{name}' <<'END_OF_CHECK'\n{script}\nEND_OF_CHECK\n"
            );
        }
        command
    }
}

impl Check {
    /// Creates a check of these scripts, node 0's first. They are run by `sh -e`, all at the same
    /// time.
    #[must_use]
    pub fn new(name: &str, scripts: &[&str]) -> Self {
        Self {
            name: name.into(),
            scripts: scripts.iter().map(|&script| script.into()).collect(),
            limit: LIMIT,
            expected: Vec::new(),
            full: false,
        }
    }

    /// Creates a check of a command that listens on a TCP port on node 0, and the same with `node0`
    /// as its last argument on node 1.
    #[must_use]
    pub fn pair(command: &str, port: u16) -> Self {
        let client = format!("await node0 {port}; {command} node0");
        Self::new(command, &[command, &client])
    }

    /// Leaves the check to `cargo xtask test --linux`.
    #[must_use]
    pub fn full(mut self) -> Self {
        self.full = true;
        self
    }

    /// Gives each script this many seconds.
    #[must_use]
    pub fn limit(mut self, seconds: u32) -> Self {
        self.limit = seconds;
        self
    }

    /// Demands that this be found in what the nodes print, each line with `nodeN: ` before it.
    #[must_use]
    pub fn expect(mut self, text: &str) -> Self {
        self.expected.push(text.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> Group {
        Group::new("tools: pingpong", &["--ports", "2"])
            .check(Check::new("two", &["a", "b"]))
            .check(Check::new("one", &["c"]).full())
    }

    fn names(group: &Group) -> Vec<&str> {
        group
            .checks
            .iter()
            .map(|check| check.name.as_str())
            .collect()
    }

    #[test]
    fn what_is_full_is_left_out_unless_asked_for() {
        let (some, left_out) = group().select(false, None);
        assert_eq!(names(&some.expect("a check")), ["two", "kernel log clean"]);
        assert_eq!(left_out, 1);
        let (all, left_out) = group().select(true, None);
        assert_eq!(
            names(&all.expect("checks")),
            ["two", "one", "kernel log clean"]
        );
        assert_eq!(left_out, 0);
        assert!(group().full().select(false, None).0.is_none());
    }

    #[test]
    fn a_filter_names_groups_or_checks() {
        let (group_named, _) = group().select(true, Some("tools"));
        assert_eq!(group_named.expect("checks").checks.len(), 3);
        let (check_named, left_out) = group().select(true, Some("one"));
        let check_named = check_named.expect("a check");
        assert_eq!(names(&check_named), ["one", "kernel log clean"]);
        assert_eq!(left_out, 1);
        assert_eq!(
            check_named.nodes(),
            2,
            "the kernels of both nodes are looked at"
        );
        assert!(group().select(true, Some("none")).0.is_none());
    }

    #[test]
    fn each_node_has_all_checks_in_order() {
        let command = group().command(1);
        let first = command
            .find("check 0 60 'two' <<'END_OF_CHECK'\nb\nEND")
            .expect("its part");
        let second = command
            .find("check 1 60 'one' <<'END_OF_CHECK'\n\nEND")
            .expect("nothing to do");
        assert!(first < second);
    }
}
