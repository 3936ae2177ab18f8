//! Signatures for Secure Boot, by `sbsign`.
//!
//! Firmware with Secure Boot starts a program only if a certificate of its database `db` has signed
//! it. The signature covers the whole loader: the image and the command line in it, but no file
//! beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::{read, write};
use crate::debian::{Bundle, TRIXIE};
use crate::ipxe;
use crate::tools::{find, need, quiet};

const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const PROGRAM: &str = "usr/bin/sbsign";

const BUNDLE: Bundle<'_> = Bundle {
    name: "sbsigntool-1",
    release: TRIXIE,
    packages: &["sbsigntool"],
    dependencies: true,
    backports: false,
    files: &[LOADER, PROGRAM],
};

/// A key, its certificate, and the program that signs with them.
#[derive(Debug)]
pub(crate) struct Signer {
    program: Vec<PathBuf>,
    key: PathBuf,
    certificate: PathBuf,
}

impl Signer {
    /// Takes a key and its certificate, both PEM, and gets the program.
    ///
    /// # Errors
    ///
    /// If a file is missing, or `sbsign` can't be had.
    pub(crate) fn of(files: &[PathBuf]) -> Result<Self> {
        let [key, certificate] = files else {
            bail!("a signature needs a key and a certificate");
        };
        for file in files {
            ensure!(file.is_file(), "there is no file {}", file.display());
        }
        Ok(Self {
            program: obtain()?,
            key: key.clone(),
            certificate: certificate.clone(),
        })
    }

    /// Takes Debian's test key, which the firmware of a test knows. `folder` is to hold it.
    ///
    /// # Errors
    ///
    /// If `openssl`, which takes its password away, or `sbsign` can't be had.
    pub(crate) fn for_tests(folder: &Path) -> Result<Self> {
        let root = ipxe::obtain()?.join("usr/share/ovmf");
        let key = folder.join("test.key");
        let openssl = need("openssl", "`apt-get install openssl`")?;
        let mut command = Command::new(openssl);
        command
            .args(["pkey", "-passin", "pass:snakeoil", "-in"])
            .arg(root.join("PkKek-1-snakeoil.key"))
            .arg("-out")
            .arg(&key);
        quiet(&mut command).context("can't read Debian's test key")?;
        Self::of(&[key, root.join("PkKek-1-snakeoil.pem")])
    }

    /// Returns the program of UEFI with its signature. Files beside `near` are used meanwhile.
    pub(super) fn sign(&self, program: &[u8], near: &Path) -> Result<Vec<u8>> {
        let file = |extension: &str| {
            let mut name = near.as_os_str().to_owned();
            name.push(extension);
            PathBuf::from(name)
        };
        let (plain, signed) = (file(".unsigned"), file(".signed"));
        write(&plain, program)?;
        let mut command = Command::new(&self.program[0]);
        command
            .args(&self.program[1..])
            .arg("--key")
            .arg(&self.key)
            .arg("--cert")
            .arg(&self.certificate)
            .arg("--output")
            .arg(&signed)
            .arg(&plain);
        let result = quiet(&mut command)
            .context("can't sign the loader")
            .and_then(|_| read(&signed));
        for file in [plain, signed] {
            // One may be missing, if it failed. They hold the cluster's key.
            let _ = std::fs::remove_file(file);
        }
        result
    }
}

/// Returns `sbsign`: the system's, or one fetched from Debian now or before.
fn obtain() -> Result<Vec<PathBuf>> {
    if let Some(program) = find("sbsign") {
        return Ok(vec![program]);
    }
    let root = BUNDLE
        .obtain()
        .context("`sbsign` is missing: `apt-get install sbsigntool`")?;
    Ok(vec![
        root.join(LOADER),
        "--library-path".into(),
        root.join("usr/lib/x86_64-linux-gnu"),
        root.join(PROGRAM),
    ])
}
