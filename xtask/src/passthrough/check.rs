//! The conditions of a passthrough, each looked at whatever the others say.

use std::fmt;
use std::path::Path;

use rustix::fs::{Access, access};

use super::bdf::Bdf;
use super::host::{self, Host};

/// Vendor of the cards, and their devices: ConnectX-3 and ConnectX-3 Pro
/// (`drivers/mlx4/hw/src/regs.rs`).
const VENDOR: u32 = 0x15b3;
const CARDS: [u32; 2] = [0x1003, 0x1007];
/// Virtual function of both.
const VIRTUAL: u32 = 0x1004;
/// Class of a bridge between PCI buses, without its programming interface (PCI Code and ID
/// Assignment Specification, section 1.7).
const BRIDGE: u32 = 0x0604;
/// Driver that gives a function to a program.
pub(crate) const VFIO: &str = "vfio-pci";

/// Needs of the machine that is to have the card.
pub(crate) struct Needs {
    pub(crate) bdf: Bdf,
    /// Bytes of its memory.
    pub(crate) memory: u64,
    /// KiB of a huge page.
    pub(crate) page: u64,
    /// NUMA node of its memory.
    pub(crate) node: Option<u32>,
}

/// State of one condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// It holds.
    Holds(String),
    /// It holds, and the user should know something about it.
    Note(String),
    /// It does not hold.
    Fails {
        /// The fault.
        fault: String,
        /// The way to make it hold.
        remedy: String,
    },
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Name of the condition.
    pub(crate) name: &'static str,
    pub(crate) state: State,
}

impl Finding {
    /// Returns whether it keeps the card from being passed through.
    pub(crate) fn fails(&self) -> bool {
        matches!(self.state, State::Fails { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        match &self.state {
            State::Holds(text) => write!(f, "{:<9}{name:<13}{text}", "ok"),
            State::Note(text) => write!(f, "{:<9}{name:<13}{text}", "note"),
            State::Fails { fault, remedy } => {
                write!(f, "{:<9}{name:<13}{fault}: {remedy}", "MISSING")
            }
        }
    }
}

fn holds(text: impl Into<String>) -> State {
    State::Holds(text.into())
}

fn fails(fault: impl Into<String>, remedy: impl Into<String>) -> State {
    State::Fails {
        fault: fault.into(),
        remedy: remedy.into(),
    }
}

/// Looks at all conditions that the host's folders show.
pub(crate) fn all(host: &Host, needs: &Needs) -> Vec<Finding> {
    let device = host.device(needs.bdf);
    let mut found: Vec<(&'static str, State)> = vec![("device", of_device(host, needs.bdf))];
    if device.exists() {
        found.push(("function", of_function(&device)));
        found.push(("IOMMU", of_iommu(host, &device)));
        found.push(("IOMMU group", of_group(host, needs.bdf)));
        found.push(("driver", of_driver(host, &device)));
        found.push(("interfaces", of_interfaces(&device)));
        found.push(("rights", of_rights(&device)));
    } else {
        found.push(("IOMMU", of_iommu(host, &device)));
    }
    found.push((VFIO, of_vfio(host)));
    found.push(("huge pages", of_pages(host, needs)));
    found.push(("KVM", of_kvm(host)));
    found
        .into_iter()
        .map(|(name, state)| Finding { name, state })
        .collect()
}

/// Looks whether there is a QEMU, or whether Debian's can be fetched.
pub(crate) fn of_qemu(found: Option<&Path>, fetchable: bool) -> Finding {
    let state = match found {
        Some(path) => holds(path.display().to_string()),
        None if fetchable => State::Note("Debian's is fetched, and not installed".into()),
        None => fails(
            "there is no qemu-system-x86_64",
            "install QEMU 10.1 or later",
        ),
    };
    let name = "QEMU";
    Finding { name, state }
}

fn of_device(host: &Host, bdf: Bdf) -> State {
    let device = host.device(bdf);
    let id = |device: &Path| {
        Some((
            host::number(&device.join("vendor"))?,
            host::number(&device.join("device"))?,
        ))
    };
    let all = host.sysfs.join("bus/pci/devices");
    let cards = || {
        let is_card = |name: &String| {
            id(&all.join(name))
                .is_some_and(|(vendor, device)| vendor == VENDOR && CARDS.contains(&device))
        };
        let cards: Vec<String> = host::names(&all).into_iter().filter(is_card).collect();
        if cards.is_empty() {
            return "this host has no ConnectX-3: see that its slot is on in the setup".to_owned();
        }
        format!("this host's ConnectX-3 are {}", cards.join(", "))
    };
    match id(&device) {
        Some((VENDOR, device)) if CARDS.contains(&device) => {
            holds(format!("{bdf} is a ConnectX-3 (15b3:{device:04x})"))
        }
        Some((VENDOR, VIRTUAL)) => fails(
            format!("{bdf} is a virtual function (15b3:{VIRTUAL:04x})"),
            "pass the physical function through; the images' driver has no part for virtual ones",
        ),
        Some((vendor, device)) => fails(
            format!("{bdf} is no ConnectX-3 but {vendor:04x}:{device:04x}"),
            cards(),
        ),
        None => fails(format!("there is no PCI device {bdf}"), cards()),
    }
}

fn of_function(device: &Path) -> State {
    if device.join("physfn").exists() {
        return fails(
            "it is a virtual function",
            "pass the physical function through",
        );
    }
    match host::text(&device.join("sriov_numvfs")).as_deref() {
        None | Some("0") => holds("physical, without virtual functions"),
        Some(count) => fails(
            format!("it has {count} virtual functions, which go with it"),
            format!("echo 0 > {}", device.join("sriov_numvfs").display()),
        ),
    }
}

fn of_iommu(host: &Host, device: &Path) -> State {
    let remedy = "turn on VT-d or AMD-Vi in the firmware's setup and boot Linux with \
                  intel_iommu=on iommu=pt (Intel) or iommu=pt (AMD)";
    let units = host::names(&host.sysfs.join("class/iommu"));
    if units.is_empty() {
        return fails("this host has no IOMMU, or it is off", remedy);
    }
    if device.exists() && !device.join("iommu_group").exists() {
        return fails("the card is behind none of this host's IOMMUs", remedy);
    }
    holds(format!("on: {}", units.join(", ")))
}

/// All members of a group must belong to the machine, as they reach each other's memory (Linux
/// `Documentation/driver-api/vfio.rst`, "Groups, Devices, and IOMMUs").
fn of_group(host: &Host, bdf: Bdf) -> State {
    let group = host.device(bdf).join("iommu_group/devices");
    let members = host::names(&group);
    if members.is_empty() {
        return fails("the card is in no group", "see the line on the IOMMU");
    }
    let own = bdf.to_string();
    let strangers: Vec<String> = members
        .iter()
        .filter(|name| **name != own)
        .filter_map(|name| {
            let member = group.join(name);
            let bridge =
                host::number(&member.join("class")).is_some_and(|class| class >> 8 == BRIDGE);
            let driver = host
                .driver(&member)
                .filter(|driver| !bridge && driver != VFIO)?;
            Some(format!("{name} ({driver})"))
        })
        .collect();
    if strangers.is_empty() {
        return holds(format!(
            "{} members, none with a driver of the host's",
            members.len()
        ));
    }
    fails(
        format!("it is shared with {}", strangers.join(", ")),
        "move the card to a slot of its own group (one behind a port with ACS), or unbind those",
    )
}

fn of_driver(host: &Host, device: &Path) -> State {
    match host.driver(device).as_deref() {
        None => holds("none; the card is left without one again at the end"),
        Some(VFIO) => holds("vfio-pci already; it stays so at the end"),
        Some(driver) => State::Note(format!(
            "{driver} loses the card while the machine runs, and gets it back"
        )),
    }
}

fn of_interfaces(device: &Path) -> State {
    let folder = device.join("net");
    let up = |name: &String| {
        host::text(&folder.join(name).join("operstate")).is_some_and(|state| state == "up")
    };
    let up: Vec<String> = host::names(&folder).into_iter().filter(up).collect();
    match up.is_empty() {
        true => holds("none of the card's is up"),
        false => fails(
            format!("{} of the card carry this host's traffic", up.join(", ")),
            format!("ip link set {} down", up.join(" down; ip link set ")),
        ),
    }
}

fn of_rights(device: &Path) -> State {
    match access(device.join("driver_override"), Access::WRITE_OK) {
        Ok(()) => holds("this user may bind the card"),
        Err(_) => fails("this user may not bind the card", "run it as root"),
    }
}

fn of_vfio(host: &Host) -> State {
    match host.driver_folder(VFIO).exists() {
        true => holds("loaded"),
        false => fails("the driver is not loaded", "modprobe vfio-pci"),
    }
}

fn of_pages(host: &Host, needs: &Needs) -> State {
    let Needs {
        memory, page, node, ..
    } = *needs;
    let wanted = memory.div_ceil(page << 10);
    let place = node.map_or(String::new(), |node| format!(" on NUMA node {node}"));
    let folder = host.pages_folder(page, node);
    let Some(free) = host.free_pages(page, node) else {
        return fails(
            format!("this host has no huge pages of {page} KiB{place}"),
            "choose another --huge-pages; 1G needs `hugepagesz=1G` on Linux's command line",
        );
    };
    if free >= wanted {
        return holds(format!(
            "{wanted} of {page} KiB{place}, and {free} are free"
        ));
    }
    let count = folder.join("nr_hugepages");
    let all: u64 = host::text(&count)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    fails(
        format!("{wanted} of {page} KiB are needed{place}, and {free} are free"),
        format!(
            "echo {} > {}, or a smaller --memory",
            all.saturating_add(wanted - free),
            count.display()
        ),
    )
}

/// Looks whether there are cores of the host for the virtual CPUs; without any they are not pinned.
pub(crate) fn of_cores(host: &Host, cores: &[usize]) -> Finding {
    let online = host::text(&host.sysfs.join("devices/system/cpu/online"));
    let online = online
        .and_then(|list| host::cores(&list))
        .unwrap_or_default();
    let named = |cores: &[usize]| {
        let cores: Vec<String> = cores.iter().map(usize::to_string).collect();
        cores.join(", ")
    };
    let off: Vec<usize> = cores
        .iter()
        .copied()
        .filter(|core| !online.contains(core))
        .collect();
    let state = if !off.is_empty() {
        fails(
            format!("cores {} are not online", named(&off)),
            "choose others by --cores",
        )
    } else if cores.is_empty() {
        State::Note("no: too few cores near the card; --cores names some".into())
    } else {
        holds(format!("virtual CPUs on cores {}", named(cores)))
    };
    let name = "pinning";
    Finding { name, state }
}

fn of_kvm(host: &Host) -> State {
    let kvm = host.dev.join("kvm");
    if !kvm.exists() {
        return fails(
            format!("there is no {}", kvm.display()),
            "turn on VT-x or AMD-V in the firmware's setup; modprobe kvm_intel or kvm_amd",
        );
    }
    match access(&kvm, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => holds(kvm.display().to_string()),
        Err(_) => fails(
            format!("{} is not ours to use", kvm.display()),
            "join the group kvm, or run it as root",
        ),
    }
}
