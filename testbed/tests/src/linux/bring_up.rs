//! Comparison of two drivers' commands, and of the differences with those that `docs/hardware.md`
//! explains.
//!
//! The commands come from a trace (`hca_server --trace`). Compared are, for each command, the
//! values that each of its fields had in all its uses: not how often it was used, and not in which
//! order. Numbers, addresses and sizes that a driver chooses, and what it is answered, are left
//! out. Commands on queue pairs are told apart by the queue pair's service.

use std::collections::{BTreeMap, BTreeSet};

/// Heading of the list in the document.
const HEADING: &str = "## Our driver's commands and Linux's";
/// Field name in the document's list for the command as a whole.
const WHOLE: &str = "the command";

/// Fields that say where something of the driver's is, how large it makes it, or which number it
/// gives it.
const CHOSEN: [&str; 44] = [
    "out",
    "poll",
    "event",
    "token",
    "in.altc",
    "in.auxc",
    "in.buffer",
    "in.cqc",
    "in.dmpt",
    "in.doorbell_record",
    "in.eqc",
    "in.eqn",
    "in.gid",
    "in.groups",
    "in.key",
    "in.len",
    "in.log_group_hash",
    "in.log_groups",
    "in.log_mpts",
    "in.log_page",
    "in.log_size",
    "in.log_uars",
    "in.mtt",
    "in.mtt_offset",
    "in.pd",
    "in.pd.pd",
    "in.qpc",
    "in.size.log_size",
    "in.size.srqn",
    "in.size.uar",
    "in.srqc",
    "in.start",
    "in.transaction",
    "in.context.buffer",
    "in.context.doorbell_record",
    "in.context.local_qpn",
    "in.context.next_send_psn",
    "in.context.pd",
    "in.context.receive_cqn",
    "in.context.remote_qpn",
    "in.context.send_cqn",
    "in.context.srq.srqn",
    "in.context.uar",
    "in.context.primary_path.remote_lid",
];
/// Beginnings of the names of more such fields.
const CHOSEN_PARTS: [&str; 7] = [
    "out.",
    "result",
    "in.block[",
    "in.word[",
    "in.context.receive_psn.next_psn",
    "in.context.receive_queue.",
    "in.context.send_queue.",
];
/// Commands whose modifier is not the number of something that the driver has made, nor a count of
/// its pages.
const MODIFIED: [&str; 8] = [
    "INIT_PORT",
    "MAD_IFC",
    "MOD_STAT_CFG",
    "NOP",
    "QUERY_DEV_CAP",
    "QUERY_FW",
    "QUERY_PORT",
    "SET_PORT",
];
/// Commands whose input is a value, and which one: not the address of a mailbox.
const IMMEDIATE: [&str; 1] = ["MAP_EQ"];

/// Command and field; no field for the command itself.
type Key = (String, String);

/// Values of each field of each command.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Commands(BTreeMap<Key, BTreeSet<String>>);

impl Commands {
    /// Returns the commands of a node in a trace.
    #[must_use]
    pub fn of(trace: &str, node: &str) -> Self {
        let mut commands = Self::default();
        let mut services = BTreeMap::new();
        for line in trace.lines() {
            let parts: Vec<&str> = line.split('\t').collect();
            if let [_, of, "command", name, fields @ ..] = parts.as_slice()
                && *of == node
            {
                commands.add(&full_name(name, fields, &mut services), name, fields);
            }
        }
        commands
    }

    fn add(&mut self, full: &str, name: &str, fields: &[&str]) {
        self.0.entry((full.into(), String::new())).or_default();
        for field in fields {
            let (field, value) = field.split_once('=').unwrap_or((field, ""));
            if is_compared(name, field) {
                let values = self.0.entry((full.into(), field.into())).or_default();
                values.insert(value.into());
            }
        }
    }

    /// Returns whether the command was given. Commands on queue pairs have the service in their
    /// name: `RTR2RTS_QP RC`.
    #[must_use]
    pub fn has(&self, command: &str) -> bool {
        self.0.contains_key(&(command.into(), String::new()))
    }

    fn values(&self, key: &Key) -> String {
        let values: Vec<&str> = self
            .0
            .get(key)
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        if values.is_empty() {
            "-".into()
        } else {
            values.join(", ")
        }
    }

    /// Returns the differences of two drivers: each command that only one gives, and each field
    /// with other values.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let keys: BTreeSet<&Key> = self.0.keys().chain(other.0.keys()).collect();
        let mut found = Vec::new();
        for key in keys {
            let (command, field) = key;
            let both = self.has(command) && other.has(command);
            let differs = if field.is_empty() {
                !both
            } else {
                both && self.0.get(key) != other.0.get(key)
            };
            if differs {
                found.push(Difference {
                    command: command.clone(),
                    field: field.clone(),
                    values: [self.values(key), other.values(key)],
                });
            }
        }
        found
    }
}

/// Returns a command's name, with the service if it is about a queue pair; only the mailboxes of
/// some commands show the service.
fn full_name(name: &str, fields: &[&str], services: &mut BTreeMap<String, String>) -> String {
    if !name.ends_with("_QP") || name == "CONF_SPECIAL_QP" {
        return name.into();
    }
    let value = |wanted: &str| {
        fields
            .iter()
            .find_map(|field| field.strip_prefix(wanted)?.strip_prefix('='))
    };
    let number = value("modifier").unwrap_or_default().to_owned();
    if let Some(service) = value("in.context.flags.service") {
        services.insert(number.clone(), service.into());
    }
    let service = services.get(&number).map_or("", String::as_str);
    format!("{name} {service}").trim_end().into()
}

fn is_compared(command: &str, field: &str) -> bool {
    let address = field == "in" && !IMMEDIATE.contains(&command);
    let number = field == "modifier" && !MODIFIED.contains(&command);
    let chosen = CHOSEN.contains(&field) || CHOSEN_PARTS.iter().any(|part| field.starts_with(part));
    !(address || number || chosen)
}

/// A difference between two drivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The command.
    pub command: String,
    /// The field; none if one of them does not give the command.
    pub field: String,
    /// The field's values, the first driver's and the second's.
    pub values: [String; 2],
}

/// Returns the differences that a document explains, by command and field.
#[must_use]
pub fn explained(document: &str) -> BTreeSet<Key> {
    let mut found = BTreeSet::new();
    let rest = document.split_once(HEADING).map_or("", |(_, rest)| rest);
    let section = rest
        .split_once("\n## ")
        .map_or(rest, |(section, _)| section);
    for row in section.lines().filter_map(|line| line.strip_prefix("| ")) {
        let mut cells = row.split(" | ");
        let (Some(commands), Some(fields)) = (cells.next(), cells.next()) else {
            continue;
        };
        for command in commands.split(", ") {
            for field in fields.split(", ") {
                let field = if field == WHOLE {
                    ""
                } else {
                    field.trim_matches('`')
                };
                found.insert((command.into(), field.into()));
            }
        }
    }
    found
}

/// Compares what differs with what is explained; gives what is wrong, a line each.
///
/// A field that a document explains must differ if both drivers give the command.
#[must_use]
pub fn judge(linux: &Commands, ours: &Commands, document: &str) -> Vec<String> {
    let explained = explained(document);
    let differences = linux.differences(ours);
    let mut faults = Vec::new();
    for Difference {
        command,
        field,
        values: [linux, ours],
    } in &differences
    {
        if !explained.contains(&(command.clone(), field.clone())) {
            let field = if field.is_empty() { WHOLE } else { field };
            faults.push(format!(
                "not explained: | {command} | {field} | {linux} | {ours} |"
            ));
        }
    }
    for (command, field) in explained {
        let differs = differences
            .iter()
            .any(|one| one.command == command && one.field == field);
        if !differs && linux.has(&command) && ours.has(&command) {
            faults.push(format!("explained, but no difference: {command} {field}"));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
0.1\ta\treset
0.2\ta\tcommand\tQUERY_FW\top=0x0\tmodifier=0x0\tin=0x0\tout=0x5000\tpoll=0xffff\tstatus=OK\tout.pages=0x200
0.3\tb\tcommand\tQUERY_FW\top=0x0\tmodifier=0x0\tin=0x0\tout=0x9000\tpoll=0xffff\tstatus=OK\tout.pages=0x200
0.4\ta\tcommand\tINIT_HCA\top=0x0\tin=0x5000\tstatus=OK\tin.version=0x2\tin.flags.qos=0xa
0.5\tb\tcommand\tINIT_HCA\top=0x0\tin=0x9000\tstatus=OK\tin.version=0x2
0.6\ta\tcommand\tRST2INIT_QP\top=0x0\tmodifier=0x40\tstatus=OK\tin.context.flags.service=RC
0.7\ta\tcommand\tQP_2RST\top=0x2\tmodifier=0x40\tstatus=OK
0.8\ta\tcommand\tSQERR2RTS_QP\top=0x0\tmodifier=0x40\tstatus=OK";

    fn key(command: &str, field: &str) -> Key {
        (command.into(), field.into())
    }

    #[test]
    fn what_differs_is_found_and_what_a_driver_chooses_is_not() {
        let differences = Commands::of(TRACE, "a").differences(&Commands::of(TRACE, "b"));
        let keys: Vec<Key> = differences
            .iter()
            .map(|one| key(&one.command, &one.field))
            .collect();
        let expected = [
            key("INIT_HCA", "in.flags.qos"),
            key("QP_2RST", ""),
            key("RST2INIT_QP RC", ""),
            key("SQERR2RTS_QP RC", ""),
        ];
        assert_eq!(keys, expected);
        assert_eq!(differences[0].values, ["0xa".to_owned(), "-".to_owned()]);
    }

    #[test]
    fn a_difference_must_be_explained_and_an_explanation_true() {
        let (a, b) = (Commands::of(TRACE, "a"), Commands::of(TRACE, "b"));
        let document = "## Before\n| QP_2RST | the command | x |\n\n## Our driver's commands and Linux's\n\n\
            | command | field | Linux | ours | why |\n|---|---|---|---|---|\n\
            | INIT_HCA | `in.flags.qos`, in.version | 10 | 8 | smaller |\n\
            | QP_2RST, RST2INIT_QP RC | the command | yes | no | none made |\n\n## After\n";
        let faults = judge(&a, &b, document);
        assert_eq!(
            faults,
            [
                "not explained: | SQERR2RTS_QP RC | the command | - | - |",
                "explained, but no difference: INIT_HCA in.version",
            ]
        );
    }
}
