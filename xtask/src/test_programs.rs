//! `test-programs`: the programs that the tests run on a cluster and on the host.
//!
//! Some come from Debian, linked statically with glibc; the others are ours, built against musl by
//! the specs of Debian's `musl-tools`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::debian::{Bundle, TRIXIE};
use crate::project;
use crate::run::busybox;
use crate::tools::{need, quiet};

/// `musl-tools` depends on a compiler, which the machine must have; its specs and library are in
/// `musl-dev`.
const BUNDLE: Bundle<'_> = Bundle {
    name: "test-programs-1",
    release: TRIXIE,
    packages: &["bash-static", "musl-dev"],
    dependencies: false,
    backports: false,
    files: &[
        "usr/bin/bash-static",
        SPECS,
        "usr/lib/x86_64-linux-musl/libc.a",
    ],
};
/// Compiler specs file of `musl-gcc`.
const SPECS: &str = "usr/lib/x86_64-linux-musl/musl-gcc.specs";

/// Gets and builds the programs that the tests run; prints each one's name and path
#[derive(clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let debian = BUNDLE.obtain()?;
        let programs = [
            ("busybox", busybox()?),
            ("bash", debian.join("usr/bin/bash-static")),
            ("work", build(&debian, "work", "-O1")?),
            ("stress", build(&debian, "stress", "-O1")?),
            ("memory", build(&debian, "memory", "-O1")?),
            ("threads", build(&debian, "threads", "-O1")?),
            ("calls", build(&debian, "calls", "-O1")?),
            ("sockets", build(&debian, "sockets", "-O1")?),
            ("ipc", build(&debian, "ipc", "-O1")?),
            ("rseq", build(&debian, "rseq", "-O1")?),
            ("fixed", build(&debian, "fixed", "-O1")?),
            ("priority", build_with_glibc("priority")?),
            ("checker", build(&debian, "checker", "-O2")?),
            ("many", build(&debian, "many", "-O1")?),
            ("wild", build(&debian, "wild", "-O1")?),
            ("files", build(&debian, "files", "-O1")?),
            ("orders", build(&debian, "orders", "-O1")?),
            ("rights", build(&debian, "rights", "-O1")?),
            ("tree", build(&debian, "tree", "-O1")?),
            ("pages", pages()?),
        ];
        for (name, path) in programs {
            ensure_static(&path)?;
            println!("{name}\t{}", path.display());
        }
        Ok(())
    }
}

/// Builds the program that `bench` runs, and returns its path.
pub(crate) fn pages() -> Result<PathBuf> {
    // Optimized as programs are, for its run time is compared, too.
    build(&BUNDLE.obtain()?, "pages", "-O2")
}

/// Builds the program of `bench latency`, and returns its path.
pub(crate) fn latency() -> Result<PathBuf> {
    build(&BUNDLE.obtain()?, "latency", "-O2")
}

/// Builds the program of `bench files`, and returns its path.
pub(crate) fn disk() -> Result<PathBuf> {
    build(&BUNDLE.obtain()?, "disk", "-O2")
}

/// Builds one of the tests' own programs, as `musl-gcc -static` does.
fn build(debian: &Path, name: &str, optimization: &str) -> Result<PathBuf> {
    let gcc = need("gcc", "`apt-get install gcc`")?;
    let folder = project::target_folder()?.join("test-programs");
    fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    let specs = fs::read_to_string(debian.join(SPECS)).context("can't read musl's specs")?;
    // They name the places that an installation would have.
    let here = |part: &str| debian.join(part).display().to_string();
    let specs = ["usr/include/x86_64-linux-musl", "usr/lib/x86_64-linux-musl"]
        .iter()
        .fold(specs, |specs, part| {
            specs.replace(&format!("/{part}"), &here(part))
        });
    let (file, program) = (folder.join("musl-gcc.specs"), folder.join(name));
    fs::write(&file, specs).context("can't write musl's specs")?;
    let source = project::root().join(format!("testbed/tests/programs/{name}.c"));
    quiet(
        Command::new(gcc)
            .args([optimization, "-static", "-specs"])
            .arg(&file)
            .arg("-o")
            .arg(&program)
            .arg(&source),
    )
    .with_context(|| format!("can't build {}", source.display()))?;
    Ok(program)
}

/// Builds one of the tests' own programs with the host's C library: musl's has less to ask for.
fn build_with_glibc(name: &str) -> Result<PathBuf> {
    let gcc = need("gcc", "`apt-get install gcc libc6-dev`")?;
    let program = project::target_folder()?.join("test-programs").join(name);
    let source = project::root().join(format!("testbed/tests/programs/{name}.c"));
    quiet(
        Command::new(gcc)
            .args(["-O1", "-static", "-pthread", "-o"])
            .arg(&program)
            .arg(&source),
    )
    .with_context(|| format!("can't build {}", source.display()))?;
    Ok(program)
}

/// Checks that a program needs no interpreter: it could not run on P.
fn ensure_static(path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
    ensure!(
        !has_interpreter(&bytes),
        "{} is not linked statically",
        path.display()
    );
    Ok(())
}

/// Returns whether a 64-bit little-endian ELF file has a program header of type `PT_INTERP` (3).
fn has_interpreter(file: &[u8]) -> bool {
    let field = |at: usize, len: usize| -> Option<usize> {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(file.get(at..at.checked_add(len)?)?);
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    // e_phoff, e_phentsize and e_phnum of the ELF specification's Elf64_Ehdr.
    let (Some(start), Some(size), Some(count)) = (field(0x20, 8), field(0x36, 2), field(0x38, 2))
    else {
        return false;
    };
    (0..count).any(|index| start.checked_add(index * size).and_then(|at| field(at, 4)) == Some(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interpreter_is_seen() {
        let mut file = vec![0; 0x40 + 2 * 56];
        file[0x20] = 0x40;
        file[0x36] = 56;
        file[0x38] = 2;
        assert!(!has_interpreter(&file));
        file[0x40 + 56] = 3;
        assert!(has_interpreter(&file));
        assert!(!has_interpreter(&file[..0x30]));
    }
}
