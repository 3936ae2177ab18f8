//! Node's own options on the command line, beside those that every node reads itself.

use fit::Role;
use libos::{CommandLine, Error};

/// The most tasks that call one peer.
const MAX_CALLERS: u16 = 16;
const ROLES: [Role; 3] = [Role::Processor, Role::Memory, Role::Storage];

/// Node's task beside being a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Answers.
    Serve,
    /// Answers no calls, only reports.
    Watch,
    /// Calls every other member, at a steady pace, and answers.
    Call,
    /// Measures calls to one member.
    Profile,
}

/// The options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The node's role.
    pub role: Role,
    /// Its part.
    pub part: Part,
    /// The role of those who are called; of any if not given.
    pub to: Option<Role>,
    /// Calls to be made in all, or of each combination; without end if not given.
    pub calls: Option<u32>,
    /// Tasks that call each peer.
    pub callers: u16,
    /// Milliseconds between a task's calls.
    pub pace_ms: u64,
    /// Milliseconds after which a call has failed.
    pub timeout_ms: u64,
}

impl Options {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// The first invalid option.
    pub fn read(line: &CommandLine) -> Result<Self, Error> {
        let wrong = |key: &str| Error::OptionValue {
            key: key.into(),
            value: line.value(key).unwrap_or_default().into(),
        };
        let role = |key: &str| match line.value(key) {
            None => Ok(None),
            Some(name) => {
                let known = ROLES.into_iter().find(|role| role.name() == name);
                known.map(Some).ok_or_else(|| wrong(key))
            }
        };
        let callers = line.parsed("callers")?.unwrap_or(1);
        if !(1..=MAX_CALLERS).contains(&callers) {
            return Err(wrong("callers"));
        }
        let part = match line.value("part") {
            None | Some("serve") => Part::Serve,
            Some("watch") => Part::Watch,
            Some("call") => Part::Call,
            Some("profile") => Part::Profile,
            Some(_) => return Err(wrong("part")),
        };
        Ok(Self {
            role: role("role")?.unwrap_or(Role::Memory),
            part,
            to: role("to")?,
            calls: line.parsed("calls")?,
            callers,
            pace_ms: line.parsed("pace")?.unwrap_or(100),
            timeout_ms: line.parsed("timeout")?.unwrap_or(10_000),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Options, Error> {
        Options::read(&CommandLine::parse(line.as_bytes()).expect("a command line"))
    }

    #[test]
    fn without_options_a_node_serves_as_memory() {
        let options = read("cluster=test key=00 keepalive=500").expect("options");
        assert_eq!(
            (options.part, options.role, options.to),
            (Part::Serve, Role::Memory, None)
        );
        assert_eq!((options.callers, options.calls), (1, None));
    }

    #[test]
    fn each_option_is_read() {
        let options =
            read("part=call role=processor to=storage callers=4 calls=9 pace=5 timeout=60000");
        let expected = Options {
            role: Role::Processor,
            part: Part::Call,
            to: Some(Role::Storage),
            calls: Some(9),
            callers: 4,
            pace_ms: 5,
            timeout_ms: 60_000,
        };
        assert_eq!(options, Ok(expected));
    }

    #[test]
    fn an_option_that_makes_no_sense_is_named() {
        for (line, key) in [
            ("part=none", "part"),
            ("role=monitor", "role"),
            ("to=", "to"),
            ("callers=17", "callers"),
            ("callers=0", "callers"),
            ("calls=-1", "calls"),
            ("pace=x", "pace"),
        ] {
            assert!(
                matches!(read(line), Err(Error::OptionValue { key: named, .. }) if named == key),
                "{line}"
            );
        }
    }
}
