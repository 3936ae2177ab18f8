//! A card that is bound to vfio-pci, and given back when this is dropped.
//!
//! ```text
//! driver_override = vfio-pci, unbind, probe ──► Bound ──► unbind, driver_override as before, bind
//! ```
//!
//! `driver_override` binds this one function, where `new_id` would bind all of its kind (Linux
//! `Documentation/ABI/testing/sysfs-bus-pci`).

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::bdf::Bdf;
use super::check::VFIO;
use super::host::{self, Host, Kernel};

/// A bound card.
pub(crate) struct Bound<'a> {
    host: &'a Host,
    kernel: &'a dyn Kernel,
    bdf: Bdf,
    /// State before; `None` once it has been restored, or if it was vfio-pci already.
    before: Option<Before>,
}

/// State of a card that the host uses.
struct Before {
    driver: Option<String>,
    /// Text for `driver_override`; a line without a word clears it.
    override_text: String,
}

impl<'a> Bound<'a> {
    /// Binds a card to vfio-pci.
    ///
    /// # Errors
    ///
    /// If the kernel refuses a step; what was done is undone.
    pub(crate) fn new(host: &'a Host, kernel: &'a dyn Kernel, bdf: Bdf) -> Result<Self> {
        let device = host.device(bdf);
        let driver = host.driver(&device);
        if driver.as_deref() == Some(VFIO) {
            return Ok(Self {
                host,
                kernel,
                bdf,
                before: None,
            });
        }
        // The kernel writes "(null)" for none.
        let old = host::text(&device.join("driver_override")).filter(|old| old != "(null)");
        let before = Before {
            driver,
            override_text: old.unwrap_or_default() + "\n",
        };
        let bound = Self {
            host,
            kernel,
            bdf,
            before: Some(before),
        };
        // From here on a drop restores the state.
        bound.bind()?;
        Ok(bound)
    }

    fn bind(&self) -> Result<()> {
        let device = self.host.device(self.bdf);
        self.write(&device.join("driver_override"), &format!("{VFIO}\n"))?;
        self.unbind()?;
        self.write(&self.probe(), &self.bdf.to_string())?;
        match self.host.driver(&device).as_deref() {
            Some(VFIO) => Ok(()),
            other => bail!(
                "vfio-pci did not take {}, which is bound to {}: dmesg tells why",
                self.bdf,
                other.unwrap_or("no driver")
            ),
        }
    }

    /// Gives the card back to the driver that it had.
    ///
    /// # Errors
    ///
    /// If that driver does not take it; the error says how to do it by hand.
    pub(crate) fn give_back(mut self) -> Result<()> {
        self.restore()
    }

    fn restore(&mut self) -> Result<()> {
        let Some(before) = self.before.take() else {
            return Ok(());
        };
        self.restore_to(&before).with_context(|| {
            let probe = self.probe();
            format!(
                "{} was not given back to {}; `echo {} > {}` may do it",
                self.bdf,
                before.driver.as_deref().unwrap_or("no driver"),
                self.bdf,
                probe.display()
            )
        })
    }

    fn restore_to(&self, before: &Before) -> Result<()> {
        let device = self.host.device(self.bdf);
        // First, so that no probe takes the card for vfio-pci again.
        self.write(&device.join("driver_override"), &before.override_text)?;
        if self.host.driver(&device) == before.driver {
            return Ok(());
        }
        self.unbind()?;
        let Some(driver) = &before.driver else {
            return Ok(());
        };
        let bind = self.host.driver_folder(driver).join("bind");
        // The driver's module may have been loaded anew, or taken away.
        let place = if bind.exists() { bind } else { self.probe() };
        self.write(&place, &self.bdf.to_string())?;
        match self.host.driver(&device) {
            Some(now) if now == *driver => Ok(()),
            now => bail!(
                "it is bound to {} now",
                now.as_deref().unwrap_or("no driver")
            ),
        }
    }

    /// Takes the card from its driver, if it has one.
    fn unbind(&self) -> Result<()> {
        let device = self.host.device(self.bdf);
        match self.host.driver(&device) {
            Some(_) => self.write(&device.join("driver/unbind"), &self.bdf.to_string()),
            None => Ok(()),
        }
    }

    fn probe(&self) -> std::path::PathBuf {
        self.host.sysfs.join("bus/pci/drivers_probe")
    }

    fn write(&self, attribute: &Path, text: &str) -> Result<()> {
        let written = self.kernel.write(attribute, text);
        written.with_context(|| format!("can't write {:?} to {}", text.trim(), attribute.display()))
    }
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            eprintln!("error: {error:#}");
        }
    }
}
