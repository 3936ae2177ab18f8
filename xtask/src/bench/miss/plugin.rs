//! The counting plugin: built from `plugin/counts.c` for each run, with the options by which QEMU
//! loads it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::project;
use crate::qemu::Qemu;
use crate::tools::{need, quiet};

/// The first QEMU whose plugin interface is of the version that `plugin/qemu.h` declares.
const FIRST: (u32, u32) = (11, 1);

/// Builds the plugin in `folder` and returns its path.
///
/// # Errors
/// As [`build_source`].
pub(crate) fn build(qemu: &Qemu, folder: &Path) -> Result<PathBuf> {
    build_source(qemu, folder, "miss/plugin/counts.c")
}

/// Builds the plugin of a source file among the benchmarks and returns its path.
///
/// # Errors
/// If QEMU is too old for it, or the compiler is missing or fails.
pub(in crate::bench) fn build_source(qemu: &Qemu, folder: &Path, source: &str) -> Result<PathBuf> {
    let version =
        version(&qemu.version).with_context(|| format!("QEMU's version: {:?}", qemu.version))?;
    ensure!(
        version >= FIRST,
        "counting needs QEMU {}.{} or later, whose plugins have version 7 of the interface; this is {}.{}: take the \
         system's QEMU out of PATH, and Debian's is fetched",
        FIRST.0,
        FIRST.1,
        version.0,
        version.1
    );
    let cc = need("cc", "`apt-get install gcc`")?;
    let source = project::root().join("xtask/src/bench").join(source);
    let plugin = folder.join("plugin.so");
    quiet(
        Command::new(cc)
            .args([
                "-O2",
                "-Wall",
                "-shared",
                "-fPIC",
                "-fvisibility=hidden",
                "-pthread",
                "-o",
            ])
            .arg(&plugin)
            .arg(&source),
    )
    .with_context(|| format!("can't build {}", source.display()))?;
    Ok(plugin)
}

/// Returns the plugin with its arguments, as `--plugin` of `run` and `linux` takes it.
///
/// `hold_us` is how long a core stops after a store to the adapter; `seen` are addresses that
/// follow a completion.
pub(crate) fn option(node: &str, plugin: &Path, out: &Path, hold_us: u64, seen: &[u64]) -> String {
    let mut text = format!("{node}:{},out={}", plugin.display(), out.display());
    if hold_us > 0 {
        text += &format!(",hold={hold_us}");
    }
    for address in seen {
        text += &format!(",seen={address:x}");
    }
    text
}

/// Returns the first two numbers of a version, from `QEMU emulator version 11.1.0 (Debian
/// 1:11.1.0+ds-1)`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text
        .strip_prefix("QEMU emulator version ")?
        .split(['.', ' ', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_version_is_read() {
        assert_eq!(
            version("QEMU emulator version 11.1.2 (Debian 1:11.1.2+ds-1)"),
            Some((11, 1))
        );
        assert_eq!(version("QEMU emulator version 9.2.0"), Some((9, 2)));
        assert_eq!(version("qemu 9.2"), None);
    }

    #[test]
    fn an_option_names_what_is_wanted_only() {
        let (plugin, out) = (Path::new("/a.so"), Path::new("/o"));
        assert_eq!(
            option("processor", plugin, out, 0, &[]),
            "processor:/a.so,out=/o"
        );
        assert_eq!(
            option("node1", plugin, out, 5, &[0xab]),
            "node1:/a.so,out=/o,hold=5,seen=ab"
        );
    }

    #[test]
    fn the_plugins_compile() {
        if crate::tools::find("cc").is_none() {
            return;
        }
        for source in ["miss/plugin/counts.c", "boot/stages.c"] {
            let mut cc = Command::new("cc");
            cc.args(["-Wall", "-Wextra", "-Werror", "-fsyntax-only"])
                .arg(project::root().join("xtask/src/bench").join(source));
            quiet(&mut cc).expect("it compiles");
        }
    }
}
