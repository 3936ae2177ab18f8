//! `lint`: checks the house rules that no compiler checks.
//!
//! * The crate graph (`docs/architecture.md`) has none of the forbidden edges.
//! * No source file has more than [`MAX_LINES`] lines.
//! * Doc summaries say what an item is, and comments have at most 100 columns ([`prose`]).
//! * Links and file names in the documentation exist ([`links`]).
//! * Unsafe code is only where it is allowed, and every other crate forbids it.

mod links;
mod prose;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::project;

/// Longest source file.
const MAX_LINES: usize = 700;
/// Crates that may hold unsafe code.
const MAY_BE_UNSAFE: [&str; 4] = ["libos", "selftest", "hca_server", "uefi_loader"];
/// Images are programs: what they forbid is what their `main.rs` and library say.
const TESTBED: [&str; 11] = [
    "fabric",
    "fit_node",
    "fuzz",
    "harness",
    "hca_model",
    "hca_server",
    "interleave",
    "nvme_model",
    "probe",
    "sim",
    "testbed_tests",
];
const IMAGES: [&str; 6] = [
    "processor",
    "memory",
    "storage",
    "selftest",
    "probe",
    "fit_node",
];

/// Checks dependencies between crates, lengths of files, and where unsafe code may be
#[derive(clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let crates = crates(&project::metadata()?)?;
        let mut faults: Vec<String> = crates
            .iter()
            .flat_map(|(of, _)| forbidden_edges(of, &crates))
            .collect();
        for (krate, folder) in &crates {
            faults.extend(long_files(&folder.join("src"))?);
            for part in ["src", "tests"].map(|part| folder.join(part)) {
                for file in part
                    .exists()
                    .then(|| sources(&part))
                    .transpose()?
                    .into_iter()
                    .flatten()
                {
                    faults.extend(prose::faults(&file)?);
                }
            }
            faults.extend(unsafe_not_forbidden(&krate.name, folder)?);
        }
        faults.extend(links::faults(project::root())?);
        if faults.is_empty() {
            return Ok(());
        }
        bail!("{} rules broken:\n  {}", faults.len(), faults.join("\n  "))
    }
}

/// A crate of the workspace and what it needs, tests aside.
struct Crate {
    name: String,
    needs: Vec<String>,
}

fn crates(metadata: &Value) -> Result<Vec<(Crate, PathBuf)>> {
    let packages = metadata["packages"]
        .as_array()
        .context("`cargo metadata` lists no packages")?;
    packages
        .iter()
        .map(|package| {
            let name = package["name"]
                .as_str()
                .context("a package without a name")?
                .to_owned();
            let manifest = package["manifest_path"]
                .as_str()
                .context("a package without a manifest")?;
            let folder = Path::new(manifest)
                .parent()
                .context("a manifest without a folder")?
                .to_owned();
            let needs = package["dependencies"]
                .as_array()
                .context("a package without dependencies")?;
            let needs = needs
                .iter()
                .filter(|need| need["kind"].is_null() && need["path"].is_string())
                .filter_map(|need| need["name"].as_str().map(str::to_owned))
                .collect();
            Ok((Crate { name, needs }, folder))
        })
        .collect()
}

fn forbidden_edges(of: &Crate, crates: &[(Crate, PathBuf)]) -> Vec<String> {
    let ours = |name: &str| crates.iter().any(|(other, _)| other.name == name);
    let forbidden = |need: &str| match of.name.as_str() {
        "ext4" | "hal" | "mlx4_hw" | "nvme_hw" | "ksyms" | "handover" | "metrics" | "mutants"
        | "console" => ours(need),
        // Layouts of what the host and an image exchange, and a list of names.
        "xtask" => ours(need) && !matches!(need, "ksyms" | "console" | "mutants"),
        "libos" => !matches!(need, "hal" | "ksyms" | "handover"),
        "uefi_loader" => need != "handover",
        "leases" => need != "hal",
        "mad" | "verbs" | "messages" => !matches!(need, "hal" | "verbs" | "mad"),
        "pcache" => !matches!(need, "hal" | "locks" | "metrics" | "mutants"),
        "nvme" => !matches!(need, "hal" | "nvme_hw"),
        "nvme_model" => !matches!(need, "hal" | "harness" | "hca_model" | "nvme_hw"),
        "mlx4" => {
            matches!(need, "libos" | "fit" | "messages" | "pcache") || TESTBED.contains(&need)
        }
        "fit" => {
            matches!(need, "libos" | "mlx4" | "mlx4_hw" | "messages" | "pcache")
                || TESTBED.contains(&need)
        }
        "fabric" => !matches!(need, "hal" | "mad" | "verbs"),
        "hca_model" => matches!(
            need,
            "mlx4" | "libos" | "fit" | "messages" | "pcache" | "harness" | "hca_server"
        ),
        // Feeds bytes to whatever takes some apart.
        "fuzz" => matches!(need, "probe" | "sim" | "testbed_tests" | "xtask"),
        // What all images do first; part of each, and of no other.
        "node" => TESTBED.contains(&need) || IMAGES.contains(&need),
        name if IMAGES.contains(&name) => TESTBED.contains(&need) || IMAGES.contains(&need),
        _ => IMAGES.contains(&need) || matches!(need, "libos" | "node"),
    };
    let broken = of.needs.iter().filter(|need| forbidden(need));
    broken
        .map(|need| format!("{} must not depend on {need}", of.name))
        .collect()
}

/// Lists the Rust files under a folder.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("can't list {}", folder.display()))? {
        let path = entry
            .with_context(|| format!("can't list {}", folder.display()))?
            .path();
        if path.is_dir() {
            files.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

fn long_files(folder: &Path) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for file in sources(folder)? {
        let text =
            fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
        let lines = text.lines().count();
        if lines > MAX_LINES {
            faults.push(format!(
                "{} has {lines} lines; a file has at most {MAX_LINES}",
                file.display()
            ));
        }
    }
    Ok(faults)
}

/// Checks that a crate's root forbids unsafe code, unless the crate may hold it.
fn unsafe_not_forbidden(name: &str, folder: &Path) -> Result<Vec<String>> {
    if MAY_BE_UNSAFE.contains(&name) {
        return Ok(Vec::new());
    }
    let mut faults = Vec::new();
    let library = folder.join("src/lib.rs");
    let root = if library.exists() {
        library
    } else {
        folder.join("src/main.rs")
    };
    let text =
        fs::read_to_string(&root).with_context(|| format!("can't read {}", root.display()))?;
    if !text.contains("#![forbid(unsafe_code)]") {
        faults.push(format!(
            "{} must say #![forbid(unsafe_code)]",
            root.display()
        ));
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(of: &str, needs: &[&str]) -> usize {
        let all = [
            "hal",
            "libos",
            "mlx4",
            "mlx4_hw",
            "fit",
            "pcache",
            "verbs",
            "hca_model",
            "metrics",
            "node",
            "xtask",
            "processor",
            "handover",
            "uefi_loader",
        ];
        let plain = |name: &str| {
            (
                Crate {
                    name: name.into(),
                    needs: Vec::new(),
                },
                PathBuf::new(),
            )
        };
        let crates: Vec<_> = all.into_iter().map(plain).collect();
        let needs = needs.iter().map(|&need| need.to_owned()).collect();
        forbidden_edges(
            &Crate {
                name: of.into(),
                needs,
            },
            &crates,
        )
        .len()
    }

    #[test]
    fn edges_against_the_layers_are_found() {
        assert_eq!(edges("mlx4", &["libos", "hal", "hca_model"]), 2);
        assert_eq!(edges("fit", &["mlx4", "verbs"]), 1);
        assert_eq!(edges("hca_model", &["mlx4", "mlx4_hw"]), 1);
        assert_eq!(edges("xtask", &["hal"]), 1);
        assert_eq!(
            edges(
                "processor",
                &["libos", "mlx4", "fit", "pcache", "hca_model"]
            ),
            1
        );
        assert_eq!(edges("libos", &["hal"]), 0);
        assert_eq!(edges("metrics", &["hal"]), 1);
        assert_eq!(edges("ext4", &["hal"]), 1);
        assert_eq!(edges("pcache", &["hal", "metrics", "fit"]), 1);
        assert_eq!(edges("node", &["libos", "mlx4", "fit", "processor"]), 1);
        assert_eq!(edges("fit", &["metrics", "mlx4"]), 1);
        assert_eq!(edges("uefi_loader", &["handover", "libos"]), 1);
    }

    #[test]
    fn the_workspace_keeps_the_rules() {
        Args {}.run().expect("the rules hold");
    }
}
