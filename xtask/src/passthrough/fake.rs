//! A sysfs in a temporary folder for tests, with a kernel that does what Linux does on writes.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::host::{Host, Kernel};

/// The card that a new host has.
pub(crate) const CARD: &str = "0000:04:00.0";

/// A host in a temporary folder, removed at the end.
pub(crate) struct Fake {
    pub(crate) folder: PathBuf,
    writes: RefCell<Vec<String>>,
    /// Driver whose probe fails.
    pub(crate) broken: Option<&'static str>,
}

impl Fake {
    /// Returns a host that has everything: a card with mlx4_core, alone with a bridge in its group.
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("tessera-passthrough-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&folder);
        let fake = Self {
            folder,
            writes: RefCell::default(),
            broken: None,
        };
        for driver in ["vfio-pci", "mlx4_core", "pcieport", "nvme"] {
            let driver = format!("sys/bus/pci/drivers/{driver}");
            fake.put(&format!("{driver}/bind"), "");
            fake.put(&format!("{driver}/unbind"), "");
        }
        fake.put("sys/bus/pci/drivers_probe", "");
        fake.device(CARD, "0x1003", "0x020700", Some("mlx4_core"));
        fake.device("0000:00:03.0", "0x2f08", "0x060400", Some("pcieport"));
        fake.put("sys/class/iommu/dmar0/x", "");
        fake.put(
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            "9",
        );
        fake.put(
            "sys/devices/system/node/node1/hugepages/hugepages-2048kB/free_hugepages",
            "64",
        );
        let pages = "sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";
        fake.put(pages, "66\n");
        fake.put("sys/devices/system/cpu/online", "0-11\n");
        fake.put("dev/kvm", "");
        fake
    }

    pub(crate) fn host(&self) -> Host {
        let at = |name: &str| self.folder.join(name);
        Host {
            sysfs: at("sys"),
            dev: at("dev"),
            proc: at("proc"),
        }
    }

    pub(crate) fn put(&self, path: &str, text: &str) {
        let path = self.folder.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    pub(crate) fn remove(&self, path: &str) {
        let path = self.folder.join(path);
        let removed = if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        removed.expect("it was there");
    }

    pub(crate) fn at(&self, bdf: &str) -> PathBuf {
        self.folder.join("sys/bus/pci/devices").join(bdf)
    }

    /// Adds a function to the card's group.
    pub(crate) fn device(&self, bdf: &str, device: &str, class: &str, driver: Option<&str>) {
        self.device_in(7, bdf, device, class, driver);
    }

    /// Adds a function to a group.
    pub(crate) fn device_in(
        &self,
        group: u32,
        bdf: &str,
        device: &str,
        class: &str,
        driver: Option<&str>,
    ) {
        let folder = format!("sys/bus/pci/devices/{bdf}");
        for (name, text) in [
            ("vendor", "0x15b3\n"),
            ("device", device),
            ("class", class),
            ("numa_node", "1\n"),
            ("local_cpulist", "8-15\n"),
            ("driver_override", "(null)\n"),
        ] {
            self.put(&format!("{folder}/{name}"), text);
        }
        let group = self
            .folder
            .join(format!("sys/kernel/iommu_groups/{group}/devices"));
        fs::create_dir_all(&group).expect("made");
        symlink(self.at(bdf), group.join(bdf)).expect("a member");
        let group = group.parent().expect("a folder");
        symlink(group, self.at(bdf).join("iommu_group")).expect("a group");
        self.bind(bdf, driver);
    }

    pub(crate) fn bind(&self, bdf: &str, driver: Option<&str>) {
        let link = self.at(bdf).join("driver");
        let _ = fs::remove_file(&link);
        if let Some(driver) = driver {
            let driver = self.folder.join("sys/bus/pci/drivers").join(driver);
            symlink(driver, link).expect("bound");
        }
    }

    pub(crate) fn driver(&self, bdf: &str) -> Option<String> {
        self.host().driver(&self.at(bdf))
    }

    pub(crate) fn writes(&self) -> Vec<String> {
        self.writes.take()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Kernel for Fake {
    fn write(&self, attribute: &Path, text: &str) -> io::Result<()> {
        // As Linux opens them: through links, and none is made.
        let real = fs::canonicalize(attribute)?;
        let real = real
            .strip_prefix(&fs::canonicalize(&self.folder)?)
            .map_err(io::Error::other)?;
        let real = real.display().to_string().replace("sys/bus/pci/", "");
        self.writes
            .borrow_mut()
            .push(format!("{real}={}", text.trim()));
        let refused = || Err(io::ErrorKind::NotFound.into());
        let bdf = text.trim();
        match real.rsplit('/').next().unwrap_or_default() {
            "driver_override" => {
                fs::write(attribute, if bdf.is_empty() { "(null)\n" } else { text })
            }
            "unbind" => {
                let driver = self.driver(bdf);
                if driver.is_none_or(|driver| !real.starts_with(&format!("drivers/{driver}/"))) {
                    return refused();
                }
                self.bind(bdf, None);
                Ok(())
            }
            "bind" | "drivers_probe" => {
                let wanted = fs::read_to_string(self.at(bdf).join("driver_override"))?;
                let wanted = match wanted.trim() {
                    "(null)" => "mlx4_core",
                    wanted => wanted,
                };
                let right = real == "drivers_probe" || real == format!("drivers/{wanted}/bind");
                if self.driver(bdf).is_some() || !right {
                    return refused();
                }
                // A probe that fails is no error of the write to drivers_probe.
                if self.broken != Some(wanted) {
                    self.bind(bdf, Some(wanted));
                }
                Ok(())
            }
            _ => refused(),
        }
    }
}
