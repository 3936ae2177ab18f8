//! `--boot`: options for the kernel command lines of components.

use crate::bed::cmdline::CommandLine;
use crate::build_image::Role;

/// The options that each component reads; see `docs/architecture.md`.
const ALL: [&str; 8] = [
    "pollers",
    "polling",
    "profile",
    "keepalive",
    "port",
    "log",
    "timer",
    "failure",
];
/// The options that P reads beside them.
const PROCESSOR: [&str; 9] = [
    "aslr",
    "pcache",
    "ways",
    "policy",
    "mechanism",
    "victims",
    "prefetch",
    "clock",
    "streams",
];

/// The options that M reads beside them: P serves nobody.
const MEMORY: [&str; 1] = ["workers"];
/// The options that S reads beside them.
const STORAGE: [&str; 4] = ["workers", "clock", "disk", "leases"];

/// An option for the kernel command line of some components.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BootOption {
    /// None for all.
    role: Option<Role>,
    pub(crate) key: String,
    pub(crate) value: Option<String>,
}

impl BootOption {
    pub(crate) fn is_for(&self, role: Role) -> bool {
        self.role.is_none_or(|only| only == role)
    }

    pub(crate) fn add_to(&self, line: &mut CommandLine) {
        match &self.value {
            Some(value) => line.option(&self.key, value),
            None => line.flag(&self.key),
        }
    }
}

impl std::str::FromStr for BootOption {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            "it is WHO:OPTION or WHO:OPTION=VALUE, WHO being all, processor, memory or storage"
                .to_owned()
        };
        let (who, option) = text.split_once(':').ok_or_else(form)?;
        let role = Role::ALL.into_iter().find(|role| role.name() == who);
        if role.is_none() && who != "all" {
            return Err(form());
        }
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (option, None),
        };
        let more = match role {
            Some(Role::Processor) => &PROCESSOR[..],
            Some(Role::Storage) => &STORAGE,
            Some(Role::Memory) | None => &MEMORY,
        };
        let known = || ALL.iter().chain(more);
        if !known().any(|option| *option == key) {
            let known: Vec<&str> = known().copied().collect();
            return Err(format!(
                "{who} has no option {key:?}, but {}",
                known.join(", ")
            ));
        }
        let key = key.to_owned();
        Ok(Self { role, key, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_options_go_to_whom_they_are_for() {
        let parsed = |text: &str| text.parse::<BootOption>();
        let workers = parsed("memory:workers=4").unwrap();
        assert!(parsed("processor:victims=64").is_ok() && parsed("memory:victims=64").is_err());
        assert!(workers.is_for(Role::Memory) && !workers.is_for(Role::Storage));
        let all = parsed("all:profile").unwrap();
        assert!(Role::ALL.into_iter().all(|role| all.is_for(role)));
        let mut line = CommandLine::default();
        workers.add_to(&mut line);
        all.add_to(&mut line);
        assert_eq!(line.finish().unwrap(), "workers=4 profile");
        for bad in ["workers=4", "disk:workers=4", "memory:", "memory:=4", ""] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn options_that_nobody_reads_are_refused_with_those_that_there_are() {
        assert!("processor:policy=clock".parse::<BootOption>().is_ok());
        assert!("storage:clock=5".parse::<BootOption>().is_ok());
        assert!("storage:disk=nvme".parse::<BootOption>().is_ok());
        assert!("storage:leases=off".parse::<BootOption>().is_ok());
        assert!("processor:workers=1".parse::<BootOption>().is_err());
        let refused = "memory:policy=clock".parse::<BootOption>().unwrap_err();
        assert!(
            refused.contains("memory has no option") && refused.contains("workers"),
            "{refused}"
        );
    }
}
