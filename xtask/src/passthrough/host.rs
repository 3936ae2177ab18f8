//! The host as sysfs shows it (Linux `Documentation/ABI/testing/sysfs-bus-pci`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::bdf::Bdf;

/// Folders of the host, which tests replace.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) sysfs: PathBuf,
    pub(crate) dev: PathBuf,
    pub(crate) proc: PathBuf,
}

/// Writer of sysfs's attributes.
pub(crate) trait Kernel {
    /// Writes an attribute, by one call.
    fn write(&self, attribute: &Path, text: &str) -> io::Result<()>;
}

/// The running kernel.
pub(crate) struct Linux;

impl Kernel for Linux {
    fn write(&self, attribute: &Path, text: &str) -> io::Result<()> {
        // An attribute is never made: opening one that is missing is an error.
        let mut file = fs::OpenOptions::new().write(true).open(attribute)?;
        io::Write::write_all(&mut file, text.as_bytes())
    }
}

impl Host {
    /// Returns the folder of a PCI function.
    pub(crate) fn device(&self, bdf: Bdf) -> PathBuf {
        self.sysfs.join("bus/pci/devices").join(bdf.to_string())
    }

    /// Returns the folder of a driver.
    pub(crate) fn driver_folder(&self, driver: &str) -> PathBuf {
        self.sysfs.join("bus/pci/drivers").join(driver)
    }

    /// Returns the name of the driver that a function is bound to.
    pub(crate) fn driver(&self, device: &Path) -> Option<String> {
        let target = fs::read_link(device.join("driver")).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// Returns the NUMA node of a function; `None` if the machine has one node only.
    pub(crate) fn numa_node(&self, bdf: Bdf) -> Option<u32> {
        // -1 stands for none.
        text(&self.device(bdf).join("numa_node"))?.parse().ok()
    }

    /// Returns the cores near a function.
    pub(crate) fn near_cores(&self, bdf: Bdf) -> Vec<usize> {
        let list = text(&self.device(bdf).join("local_cpulist"));
        list.and_then(|list| cores(&list)).unwrap_or_default()
    }

    /// Returns the free pages of a size in KiB, on a NUMA node or on the whole machine.
    pub(crate) fn free_pages(&self, kib: u64, node: Option<u32>) -> Option<u64> {
        text(&self.pages_folder(kib, node).join("free_hugepages"))?
            .parse()
            .ok()
    }

    /// Returns the folder about huge pages of a size in KiB.
    pub(crate) fn pages_folder(&self, kib: u64, node: Option<u32>) -> PathBuf {
        let of = match node {
            Some(node) => format!("devices/system/node/node{node}/hugepages"),
            None => "kernel/mm/hugepages".into(),
        };
        self.sysfs.join(of).join(format!("hugepages-{kib}kB"))
    }
}

/// Returns a small file's text; `None` if it can't be read.
pub(crate) fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// Returns a number that sysfs writes as `0x15b3`.
pub(crate) fn number(path: &Path) -> Option<u32> {
    u32::from_str_radix(text(path)?.strip_prefix("0x")?, 16).ok()
}

/// Returns the names in a folder, sorted; none if it can't be listed.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Reads a list of cores such as `0-3,8`; `None` if it is none.
pub(crate) fn cores(list: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        // Of what the kernel's interface for affinity takes.
        if first > last || last >= rustix::thread::CpuSet::MAX_CPU {
            return None;
        }
        cores.extend(first..=last);
    }
    Some(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read() {
        assert_eq!(cores("0-2,8"), Some(vec![0, 1, 2, 8]));
        assert_eq!(cores("5"), Some(vec![5]));
        for text in ["", "a", "2-1", "0-", "0,,1", "0-99999999999", "1024"] {
            assert_eq!(cores(text), None, "{text:?}");
        }
    }
}
