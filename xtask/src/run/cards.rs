//! `--card`: nodes with real cards of this host's, in machines under KVM, instead of modelled
//! adapters.
//!
//! Conditions, binding and QEMU's command line are those of `passthrough`. The fabric is a real one
//! then, with a subnet manager of its own. No real card has been tried yet.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};

use super::drive::Drive;
use super::media::Source;
use super::{Args, DEFAULT_CACHE, Images};
use crate::bed::machine::{self, Chipset};
use crate::bed::random_key;
use crate::build_image::{self, Role};
use crate::passthrough::bdf::Bdf;
use crate::passthrough::bind::Bound;
use crate::passthrough::check::{self, Finding, Needs};
use crate::passthrough::host::{Host, Kernel};
use crate::passthrough::machine::shown;
use crate::passthrough::pin;
use crate::tools::{find, parse_size};

/// Options about cards.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct CardArgs {
    /// Gives a node a ConnectX-3 of this host's, by its PCI address: `memory:04:00.0`; all three
    /// nodes have one then, and run under KVM (repeatable; docs/user/passthrough.md)
    #[arg(long = "card", value_name = "WHO:BDF")]
    cards: Vec<RoleCard>,
    /// Size of the huge pages that machines with cards are made of: 2M or 1G
    #[arg(long, value_name = "SIZE", default_value = "2M", value_parser = parse_size)]
    huge_pages: u64,
    /// Checks what cards need, prints QEMU's command lines and changes nothing
    #[arg(long, requires = "cards")]
    dry_run: bool,
    /// Folder where sysfs is
    #[arg(long, value_name = "FOLDER", default_value = "/sys", hide = true)]
    sysfs: PathBuf,
}

/// A card of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RoleCard {
    role: Role,
    bdf: Bdf,
}

impl FromStr for RoleCard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "it is WHO:BDF, WHO being processor, memory or storage";
        let (who, bdf) = text.split_once(':').ok_or(form)?;
        let role = Role::ALL.into_iter().find(|role| role.name() == who);
        Ok(Self {
            role: role.ok_or(form)?,
            bdf: bdf.parse()?,
        })
    }
}

/// A card, and the machine that is to have it.
#[derive(Debug, Clone)]
pub(crate) struct Card {
    role: Role,
    pub(super) bdf: Bdf,
    /// NUMA node of the card, and of the machine's memory.
    pub(super) node: Option<u32>,
    /// Bytes of memory, in whole huge pages.
    pub(super) memory: u64,
    /// KiB of a huge page.
    pub(super) page: u64,
    pub(super) cpus: usize,
    /// Cores of the host for the virtual CPUs; none if they are not pinned.
    cores: Vec<usize>,
}

/// The cards of a cluster.
pub(super) struct Cards {
    host: Host,
    cards: Vec<Card>,
}

impl CardArgs {
    /// Returns whether nodes have cards.
    pub(super) fn are_used(&self) -> bool {
        !self.cards.is_empty()
    }

    /// Returns whether nothing is to be done but checks.
    pub(super) fn only_checks(&self) -> bool {
        self.dry_run
    }

    /// Checks the options.
    pub(super) fn check(&self) -> Result<()> {
        if !self.are_used() {
            return Ok(());
        }
        ensure!(
            matches!(self.huge_pages >> 10, 2048 | 1_048_576),
            "--huge-pages is 2M or 1G, the sizes that x86-64 has"
        );
        for role in Role::ALL {
            let count = self.cards.iter().filter(|card| card.role == role).count();
            ensure!(
                count == 1,
                "{} has {count} cards: each of processor, memory and storage needs one --card, as \
                 all three are on one fabric",
                role.name()
            );
        }
        let places: BTreeSet<String> = self.cards.iter().map(|card| card.bdf.to_string()).collect();
        ensure!(
            places.len() == self.cards.len(),
            "two nodes have the same card"
        );
        Ok(())
    }

    /// Returns the cards with the machines that are to have them, of these sizes in bytes and
    /// cores.
    pub(super) fn plan(&self, size: impl Fn(Role) -> (u64, u32)) -> Option<Cards> {
        let host = Host {
            sysfs: self.sysfs.clone(),
            dev: "/dev".into(),
            proc: "/proc".into(),
        };
        self.are_used().then(|| self.plan_on(host, size))
    }

    fn plan_on(&self, host: Host, size: impl Fn(Role) -> (u64, u32)) -> Cards {
        let mut taken = BTreeSet::<usize>::new();
        let card = |&RoleCard { role, bdf }: &RoleCard| {
            let (memory, cpus) = size(role);
            let cpus = usize::try_from(cpus).unwrap_or(1);
            let mut near = host.near_cores(bdf);
            near.retain(|core| !taken.contains(core));
            let cores = pin::choose(None, &near, cpus);
            taken.extend(&cores);
            Card {
                role,
                bdf,
                node: host.numa_node(bdf),
                memory: memory.next_multiple_of(self.huge_pages),
                page: self.huge_pages >> 10,
                cpus,
                cores,
            }
        };
        let cards = self.cards.iter().map(card).collect();
        Cards { host, cards }
    }
}

impl Cards {
    /// Returns the card of a role.
    pub(super) fn of(&self, role: Role) -> Option<&Card> {
        self.cards.iter().find(|card| card.role == role)
    }

    /// Looks at all conditions; machines on one NUMA node share its huge pages.
    fn findings(&self) -> Vec<(Role, Finding)> {
        let of_card = |card: &Card| {
            let near = self.cards.iter().filter(|other| other.node == card.node);
            let needs = Needs {
                bdf: card.bdf,
                memory: near.map(|card| card.memory).sum(),
                page: card.page,
                node: card.node,
            };
            let mut found = check::all(&self.host, &needs);
            if !card.cores.is_empty() {
                found.push(check::of_cores(&self.host, &card.cores));
            }
            let role = card.role;
            found.into_iter().map(move |finding| (role, finding))
        };
        self.cards.iter().flat_map(of_card).collect()
    }

    /// Prints the conditions, each once.
    ///
    /// # Errors
    ///
    /// If some are missing.
    pub(super) fn check(&self) -> Result<()> {
        let findings = self.findings();
        let fetchable = find("apt-get").is_some() && find("dpkg-deb").is_some();
        let qemu = check::of_qemu(find("qemu-system-x86_64").as_deref(), fetchable);
        let mut missing = usize::from(qemu.fails());
        println!("{:<11}{qemu}", "all");
        let mut told = BTreeSet::new();
        for (role, finding) in &findings {
            if told.insert(finding.to_string()) {
                println!("{:<11}{finding}", role.name());
                missing += usize::from(finding.fails());
            }
        }
        if missing > 0 {
            bail!("{missing} conditions are missing; each line says what to do");
        }
        Ok(())
    }

    /// Binds all cards to vfio-pci.
    ///
    /// # Errors
    ///
    /// If the kernel refuses one; those bound before are given back.
    pub(super) fn bind<'a>(&'a self, kernel: &'a dyn Kernel) -> Result<Vec<Bound<'a>>> {
        let cards = self.cards.iter();
        cards
            .map(|card| Bound::new(&self.host, kernel, card.bdf))
            .collect()
    }

    /// Returns the virtual CPUs that are to be pinned, by the machines' processes.
    pub(super) fn pins(&self, machines: &[(Role, u32)]) -> Pins {
        let waiting = machines.iter().filter_map(|&(role, pid)| {
            let card = self.of(role).filter(|card| !card.cores.is_empty())?;
            Some((pid, card.cores.clone()))
        });
        Pins {
            proc: self.host.proc.clone(),
            waiting: waiting.collect(),
        }
    }
}

/// Virtual CPUs that have not begun yet, and their cores.
#[derive(Debug, Default)]
pub(super) struct Pins {
    proc: PathBuf,
    waiting: Vec<(u32, Vec<usize>)>,
}

impl Pins {
    /// Pins those that have begun.
    pub(super) fn look(&mut self) -> Result<()> {
        let Self { proc, waiting } = self;
        let mut result = Ok(());
        waiting.retain(|(pid, cores)| {
            let threads = pin::threads(proc, *pid);
            let begun = threads.len() == cores.len();
            if begun && let Err(error) = pin::pin(&threads, cores) {
                result = Err(error);
            }
            !begun
        });
        result
    }
}

impl Args {
    /// Checks what is asked for about cards.
    pub(super) fn check_cards(&self) -> Result<()> {
        self.cards.check()?;
        if !self.cards.are_used() {
            return Ok(());
        }
        ensure!(
            !self.program.is_empty(),
            "--card needs a program to run: give it after `--`"
        );
        let plain = self.boot_from.is_empty()
            && self.trace.is_none()
            && self.plugin.is_empty()
            && self.screens.is_none()
            && !self.secure_boot
            && self.chipset == Chipset::Q35
            && self.adapter_place == machine::USUAL;
        ensure!(
            plain,
            "--card goes with none of --boot-from, --trace, --plugin, --screens, --secure-boot, \
             --chipset and --adapter-place: machines with cards are q35 under KVM, started by QEMU's own loader"
        );
        Ok(())
    }

    /// Returns the nodes' cards, if they have real ones.
    pub(super) fn plan_cards(&self) -> Option<Cards> {
        let pcache = self.pcache.unwrap_or(DEFAULT_CACHE);
        self.cards.plan(|role| self.size(role, pcache))
    }

    /// Prints QEMU's command lines of nodes with cards.
    pub(super) fn show_machines(&self, cards: &Cards, folder: &Path, drive: &Drive) -> Result<()> {
        let path = |role: Role| Ok((role.name(), build_image::path(role)?));
        let images: Images = Role::ALL.into_iter().map(path).collect::<Result<_>>()?;
        let pcache = self.pcache.unwrap_or(DEFAULT_CACHE);
        let key = random_key()?;
        for role in Role::ALL {
            let line = self.command_line(role, pcache, &key)?;
            let source = Source::Kernel(images[role.name()].clone(), line);
            let vm = self.vm(role, source, pcache, (folder, drive), cards.of(role));
            let mut plain = Command::new("qemu-system-x86_64");
            vm.add_with_card(&mut plain);
            println!("{}", shown(&plain));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::passthrough::fake::{CARD, Fake};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CardArgs,
    }

    const OTHERS: [&str; 2] = ["0000:05:00.0", "0000:81:00.0"];

    fn parsed(words: &str) -> CardArgs {
        let words = ["run"].into_iter().chain(words.split_whitespace());
        let line = Line::try_parse_from(words);
        line.map_err(|error| error.to_string())
            .expect("a line")
            .args
    }

    fn all() -> CardArgs {
        let [second, third] = OTHERS;
        parsed(&format!(
            "--card processor:{CARD} --card memory:{second} --card storage:{third}"
        ))
    }

    /// Returns a host with three cards, each in a group of its own.
    fn host(name: &str) -> Fake {
        let fake = Fake::new(name);
        for (group, bdf) in (8..).zip(OTHERS) {
            fake.device_in(group, bdf, "0x1007", "0x020700", Some("mlx4_core"));
        }
        fake
    }

    fn size(role: Role) -> (u64, u32) {
        match role {
            Role::Processor => (33 << 20, 2),
            _ => (32 << 20, 1),
        }
    }

    #[test]
    fn each_node_has_a_card_of_its_own() {
        assert!(all().check().is_ok() && parsed("").check().is_ok());
        for (words, told) in [
            (
                "--card memory:04:00.0 --card processor:05:00.0",
                "storage has 0 cards",
            ),
            (
                "--card memory:04:00.0 --card processor:04:00.0 --card storage:05:00.0",
                "the same card",
            ),
            (
                "--card memory:04:00.0 --card processor:06:00.0 --card storage:05:00.0 \
                 --card storage:07:00.0",
                "storage has 2 cards",
            ),
            ("--card memory:04:00.0 --huge-pages 4K", "2M or 1G"),
        ] {
            let error = parsed(words).check().expect_err(words).to_string();
            assert!(error.contains(told), "{words}: {error}");
        }
        for text in ["04:00.0", "all:04:00.0", "memory:", "memory:4:0"] {
            assert!(text.parse::<RoleCard>().is_err(), "{text}");
        }
    }

    #[test]
    fn machines_share_the_host() {
        let fake = host("cards");
        let cards = all().plan_on(fake.host(), size);
        let cores: Vec<_> = cards.cards.iter().map(|card| card.cores.clone()).collect();
        assert_eq!(cores, [vec![14, 15], vec![13], vec![12]], "near, each once");
        let processor = cards.of(Role::Processor).expect("a card");
        assert_eq!((processor.memory, processor.node), (34 << 20, Some(1)));
        // Those cores are not online, else nothing is missing.
        fake.put("sys/devices/system/cpu/online", "0-15\n");
        assert!(cards.findings().iter().all(|(_, found)| !found.fails()));
        // 34, 32 and 32 MB are 49 pages of node 1.
        fake.put(
            "sys/devices/system/node/node1/hugepages/hugepages-2048kB/free_hugepages",
            "48",
        );
        let missing = cards
            .findings()
            .into_iter()
            .filter(|(_, found)| found.fails());
        let missing: Vec<_> = missing.map(|(_, found)| found.to_string()).collect();
        assert_eq!(missing.len(), 3, "{missing:?}");
        assert!(
            missing[0].contains("49 of 2048 KiB are needed"),
            "{missing:?}"
        );
    }

    #[test]
    fn a_neighbour_in_one_s_group_is_refused() {
        let fake = host("cards-group");
        fake.device_in(9, "0000:05:00.1", "0x1003", "0x020700", Some("mlx4_core"));
        let cards = all().plan_on(fake.host(), size);
        let missing = cards
            .findings()
            .into_iter()
            .filter(|(_, found)| found.fails());
        let missing: Vec<_> = missing
            .map(|(role, found)| format!("{} {found}", role.name()))
            .filter(|text| text.contains("group"))
            .collect();
        assert_eq!(missing.len(), 1, "{missing:?}");
        assert!(missing[0].starts_with("storage") && missing[0].contains("0000:05:00.1"));
    }

    #[test]
    fn all_cards_are_bound_and_given_back() {
        let fake = host("cards-bind");
        let cards = all().plan_on(fake.host(), size);
        let bound = cards.bind(&fake).expect("bound");
        let drivers = || [CARD, OTHERS[0], OTHERS[1]].map(|bdf| fake.driver(bdf));
        assert_eq!(drivers(), [(); 3].map(|()| Some("vfio-pci".into())));
        drop(bound);
        assert_eq!(drivers(), [(); 3].map(|()| Some("mlx4_core".into())));
    }

    #[test]
    fn cards_that_were_bound_go_back_if_a_later_one_is_refused() {
        let fake = host("cards-refused");
        // Nothing takes it from the first driver.
        fake.remove(&format!(
            "sys/bus/pci/devices/{}/driver_override",
            OTHERS[1]
        ));
        let cards = all().plan_on(fake.host(), size);
        assert!(cards.bind(&fake).is_err());
        let drivers = [CARD, OTHERS[0], OTHERS[1]].map(|bdf| fake.driver(bdf));
        assert_eq!(drivers, [(); 3].map(|()| Some("mlx4_core".into())));
    }
}
