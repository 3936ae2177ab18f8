//! `build-image`: the unikernels, as files that QEMU and firmware boot.
//!
//! * [`elf`]: the image without symbols. * [`pe`]: the UEFI loader with the image in it. *
//!   [`disk`], [`iso`]: media that hold that. [`sizes`]: an image's bytes by
//!   crate and symbol. [`sign`]: for Secure Boot.

pub(crate) mod disk;
mod elf;
mod iso;
mod pe;
pub(crate) mod sign;
mod sizes;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use self::disk::ExtraFile;
use self::pe::Pe;
use self::sign::Signer;

use crate::project::{self, BARE, cargo};
use crate::tools::{shown, step};

/// Builds the unikernels into target/images
///
/// `elf` is for QEMU's -kernel; `efi` is a program for UEFI firmware, `disk` and `iso` hold it
/// where firmware looks for it. The same sources, options and folder give the same bytes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The role to build
    #[arg(value_enum, default_value_t = Choice::All)]
    role: Choice,
    /// Format of the file
    #[arg(long, value_enum, default_value_t = Format::Elf)]
    format: Format,
    /// The kernel command line, built into the file. Whoever can read the file can read the
    /// cluster's key in it
    #[arg(long, value_name = "OPTIONS")]
    cmdline: Option<String>,
    /// Signs the loader with this key and certificate (PEM), for firmware with Secure Boot
    #[arg(long, num_args = 2, value_names = ["KEY", "CERT"])]
    sign: Option<Vec<PathBuf>>,
    /// Prints this many of the largest crates and symbols, too
    #[arg(long, value_name = "N", default_value_t = 0)]
    sizes: usize,
}

/// Format of the file that is made of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Format {
    /// An ELF file with a PVH entry, without symbols
    Elf,
    /// A program for UEFI firmware
    Efi,
    /// A hybrid ISO
    Iso,
    /// A raw disk: GPT, EFI system partition
    Disk,
}

impl Format {
    fn extension(self) -> &'static str {
        match self {
            Self::Elf => "stripped.elf",
            Self::Efi => "efi",
            Self::Iso => "iso",
            Self::Disk => "img",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    Processor,
    Memory,
    Storage,
    All,
}

/// Role of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Keeps files.
    Storage,
    /// Lends memory.
    Memory,
    /// Runs programs.
    Processor,
}

impl Role {
    /// All, in the order in which they start.
    pub(crate) const ALL: [Self; 3] = [Self::Storage, Self::Memory, Self::Processor];

    /// Its name, also that of its package.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Storage => "storage",
            Self::Memory => "memory",
            Self::Processor => "processor",
        }
    }
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let wanted = |role: &Role| match self.role {
            Choice::All => true,
            Choice::Processor => *role == Role::Processor,
            Choice::Memory => *role == Role::Memory,
            Choice::Storage => *role == Role::Storage,
        };
        ensure!(
            self.format != Format::Elf || self.cmdline.is_none(),
            "an ELF file holds no command line: give it to QEMU by -append, or choose another --format"
        );
        let signer = self.sign.as_deref().map(Signer::of).transpose()?;
        ensure!(
            self.format != Format::Elf || signer.is_none(),
            "firmware checks no signature of an ELF file: choose another --format"
        );
        for role in Role::ALL.into_iter().filter(wanted) {
            let image = build(role)?;
            let path = image.with_extension(self.format.extension());
            let contents = Contents {
                cmdline: self.cmdline.as_deref(),
                signer: signer.as_ref(),
                ..Contents::default()
            };
            pack(&image, self.format, &contents, &path)?;
            let size = |path: &Path| -> Result<u64> {
                Ok(fs::metadata(path)
                    .with_context(|| format!("can't read {}", path.display()))?
                    .len())
            };
            println!(
                "{}\t{} bytes\t{}",
                role.name(),
                size(&path)?,
                path.display()
            );
            let bytes = read(&image)?;
            for (section, len) in elf::sections(&bytes)? {
                println!("\t{section}\t{len}");
            }
            if self.sizes > 0 {
                let sizes = sizes::symbols(&bytes, ksyms::demangled)?;
                let crates = sizes.crates.iter().take(self.sizes);
                let symbols = sizes.symbols.iter().take(self.sizes);
                for (name, len) in crates.chain(symbols) {
                    println!("\t{len}\t{name}");
                }
            }
        }
        Ok(())
    }
}

/// Additions to an image in a file for firmware.
#[derive(Default)]
pub(crate) struct Contents<'a> {
    /// The kernel command line, which is built in.
    pub(crate) cmdline: Option<&'a str>,
    /// Files for the root folder of a volume.
    pub(crate) beside: &'a [ExtraFile<'a>],
    /// The key that signs the loader.
    pub(crate) signer: Option<&'a Signer>,
}

/// Makes a file for QEMU or firmware of a built image.
pub(crate) fn pack(
    image: &Path,
    format: Format,
    contents: &Contents<'_>,
    path: &Path,
) -> Result<()> {
    let stripped = elf::strip(&read(image)?).with_context(|| image.display().to_string())?;
    if format == Format::Elf {
        return write(path, &stripped);
    }
    let mut pe = Pe::new(read(&build_loader()?)?)?;
    pe.add(*b".tessera", &stripped)?;
    if let Some(line) = contents.cmdline {
        pe.add(*b".cmdline", line.as_bytes())?;
    }
    let mut loader = pe.finish();
    if let Some(signer) = contents.signer {
        loader = signer.sign(&loader, path)?;
    }
    let volume = |smallest| disk::volume(&loader, contents.beside, smallest);
    match format {
        Format::Elf | Format::Efi => write(path, &loader),
        Format::Disk => disk::write(path, &volume(false)?),
        Format::Iso => iso::write(path, &volume(true)?),
    }
}

/// Makes a disk from which UEFI firmware starts another program than our loader.
pub(crate) fn foreign_disk(program: &Path, beside: &[ExtraFile<'_>], path: &Path) -> Result<()> {
    disk::write(path, &disk::volume(&read(program)?, beside, false)?)
}

/// Builds the loader for UEFI firmware, for who will need it soon.
pub(crate) fn prepare_loader() -> Result<()> {
    build_loader().map(drop)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("can't read {}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("can't write {}", path.display()))
}

/// Builds the loader for UEFI firmware, without an image yet, and gives its path.
fn build_loader() -> Result<PathBuf> {
    project::need_target(project::UEFI)?;
    step("Building the UEFI loader", || {
        let args = [
            "build",
            "--quiet",
            "--release",
            "--locked",
            "--target",
            project::UEFI,
        ];
        let package = ["--package", "uefi_loader", "--bin", "uefi_loader"];
        // A path of debug information would be part of the file.
        let plain = [
            "--config",
            "profile.release.strip=true",
            "--config",
            "profile.release.debug=false",
        ];
        shown(cargo().args(args).args(package).args(plain))?;
        Ok(project::target_folder()?
            .join(project::UEFI)
            .join("release/uefi_loader.efi"))
    })
}

/// Builds one component's image and gives its path.
pub(crate) fn build(role: Role) -> Result<PathBuf> {
    build_named(role.name())
}

/// Returns the path of a component's image, which must have been built.
pub(crate) fn path(role: Role) -> Result<PathBuf> {
    Ok(project::target_folder()?
        .join("images")
        .join(format!("{}.elf", role.name())))
}

/// Builds the image that speaks to Linux's tools in tests, and gives its path.
pub(crate) fn build_probe() -> Result<PathBuf> {
    build_named("probe")
}

/// Builds the image of a node of FIT and nothing else, and gives its path.
pub(crate) fn build_fit_node() -> Result<PathBuf> {
    build_named("fit_node")
}

/// Builds the image of a package.
fn build_named(name: &str) -> Result<PathBuf> {
    project::need_target(BARE)?;
    step(&format!("Building the image of {name}"), || {
        // By itself: features of the host's tests must not reach an image.
        let args = [
            "build",
            "--quiet",
            "--release",
            "--locked",
            "--target",
            BARE,
            "--package",
            name,
            "--bin",
            name,
        ];
        shown(cargo().args(args))?;
        let target = project::target_folder()?;
        let (built, images) = (
            target.join(BARE).join("release").join(name),
            target.join("images"),
        );
        fs::create_dir_all(&images)
            .with_context(|| format!("can't make the folder {}", images.display()))?;
        let image = images.join(format!("{name}.elf"));
        let mut bytes =
            fs::read(&built).with_context(|| format!("can't read {}", built.display()))?;
        // For the backtrace of a panic.
        ksyms::embed(&mut bytes)
            .with_context(|| format!("no place for symbols in {}", built.display()))?;
        fs::write(&image, bytes).with_context(|| format!("can't write {}", image.display()))?;
        Ok(image)
    })
}
