//! iPXE with its own driver of the card, which tests the model independently of Linux's, and the
//! firmware that starts it.

use std::path::PathBuf;

use anyhow::Result;

use crate::debian::{Bundle, TRIXIE};

/// Debian 12's iPXE does not know the card.
const BUNDLE: Bundle<'_> = Bundle {
    name: "ipxe-1",
    release: TRIXIE,
    packages: &["ipxe", "ovmf"],
    dependencies: false,
    backports: false,
    files: &[
        PROGRAM,
        "usr/share/OVMF/OVMF_CODE_4M.fd",
        "usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
        "usr/share/OVMF/OVMF_VARS_4M.fd",
        "usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd",
        "usr/share/ovmf/PkKek-1-snakeoil.key",
        "usr/share/ovmf/PkKek-1-snakeoil.pem",
    ],
};

/// iPXE as a program of UEFI, within the folder.
pub(crate) const PROGRAM: &str = "usr/lib/ipxe/ipxe-amd64.efi";

/// Returns the folder with both, fetched if they are missing.
pub(crate) fn obtain() -> Result<PathBuf> {
    BUNDLE.obtain()
}
