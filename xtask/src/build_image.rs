//! `build-image`: the unikernels, as files that QEMU boots.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::project::{self, BARE, cargo};
use crate::tools::{shown, step};

/// Builds the unikernels into target/images
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The one to build
    #[arg(long, value_enum, default_value_t = Choice::All)]
    role: Choice,
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
        for role in Role::ALL.into_iter().filter(wanted) {
            let image = build(role)?;
            let size = fs::metadata(&image)
                .with_context(|| format!("can't read {}", image.display()))?
                .len();
            println!("{}\t{size} bytes\t{}", role.name(), image.display());
        }
        Ok(())
    }
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
    project::need_bare_target()?;
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
        fs::create_dir_all(&images).with_context(|| format!("can't make the folder {}", images.display()))?;
        let image = images.join(format!("{name}.elf"));
        let mut bytes = fs::read(&built).with_context(|| format!("can't read {}", built.display()))?;
        // For the backtrace of a panic.
        ksyms::embed(&mut bytes).with_context(|| format!("no place for symbols in {}", built.display()))?;
        fs::write(&image, bytes).with_context(|| format!("can't write {}", image.display()))?;
        Ok(image)
    })
}
