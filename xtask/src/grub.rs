//! GRUB as a BIOS machine's network boot program: it loads an image by Multiboot2.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::debian::{Bundle, TRIXIE};
use crate::tools::quiet;

const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const PROGRAM: &str = "usr/bin/grub-mkimage";
const MODULES: &str = "usr/lib/grub/i386-pc";
const BUNDLE: Bundle<'_> = Bundle {
    name: "grub-1",
    release: TRIXIE,
    packages: &["grub-common", "grub-pc-bin"],
    dependencies: true,
    backports: false,
    files: &[LOADER, PROGRAM, MODULES],
};

/// The file that a BIOS loads, and the image that GRUB loads then.
pub(crate) const BOOT_FILE: &str = "grub.0";
const IMAGE: &str = "image.elf";

/// Makes a folder for TFTP from which a BIOS machine boots `image` with a command line.
pub(crate) fn make(folder: &Path, image: &Path, line: &str) -> Result<()> {
    let root = BUNDLE.obtain()?;
    let problem = || format!("can't make {}", folder.display());
    fs::create_dir_all(folder).with_context(problem)?;
    fs::copy(image, folder.join(IMAGE)).with_context(problem)?;
    let script = folder.join("grub.cfg");
    fs::write(&script, self::script(line)?).with_context(problem)?;
    let mut command = Command::new(root.join(LOADER));
    command
        .arg("--library-path")
        .arg(root.join("usr/lib/x86_64-linux-gnu"))
        .arg(root.join(PROGRAM))
        .arg("--directory")
        .arg(root.join(MODULES))
        .args(["--format=i386-pc-pxe", "--prefix=/", "--config"])
        .arg(&script)
        .arg("--output")
        .arg(folder.join(BOOT_FILE))
        .args(["pxe", "tftp", "multiboot2"]);
    quiet(&mut command)?;
    // It is in the program now.
    fs::remove_file(&script).with_context(problem)
}

/// Returns GRUB's script. Each word is one of GRUB's: it would quote a word that held spaces.
fn script(line: &str) -> Result<String> {
    ensure!(
        !line.contains(['\'', '"', '\\', '\n']),
        "the command line has a quote or a backslash, which GRUB would change"
    );
    let words = line
        .split_ascii_whitespace()
        .map(|word| format!(" '{word}'"));
    Ok(format!(
        "multiboot2 (pxe)/{IMAGE}{}\nboot\n",
        words.collect::<String>()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_image_as_they_are() {
        let script = script("cluster=a env=A=$b  -- /bin/ls").unwrap();
        assert_eq!(
            script,
            "multiboot2 (pxe)/image.elf 'cluster=a' 'env=A=$b' '--' '/bin/ls'\nboot\n"
        );
        for bad in ["a='b'", "a\\b", "a\"b"] {
            assert!(super::script(bad).is_err(), "{bad}");
        }
    }
}
