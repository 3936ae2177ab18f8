//! The links that Debian's packages make when they are installed, by `update-alternatives`: without
//! them `mpirun` and others have no name.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::debian::SCRIPTS;

/// A link that an installed package has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alternative {
    /// Path within the root.
    pub(super) link: String,
    /// Its target.
    pub(super) target: String,
}

/// Returns the links of all packages in a folder of unpacked ones. Where two packages offer one
/// link, that of the higher priority comes last.
pub(super) fn of(root: &Path) -> Result<Vec<Alternative>> {
    let folder = root.join(SCRIPTS);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries =
        fs::read_dir(&folder).with_context(|| format!("can't list {}", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.context("can't list the packages' scripts")?.path();
        // A package without the script has nothing to do.
        let Ok(script) = fs::read(path.join("postinst")) else {
            continue;
        };
        found.extend(parse(&String::from_utf8_lossy(&script)));
    }
    found.sort_by_key(|(priority, _)| *priority);
    let there = |alternative: &Alternative| {
        fs::symlink_metadata(root.join(alternative.target.trim_start_matches('/'))).is_ok()
    };
    Ok(found
        .into_iter()
        .map(|(_, alternative)| alternative)
        .filter(there)
        .collect())
}

/// Returns the links that a script makes, each with its priority: `--install LINK NAME TARGET
/// PRIORITY`, then `--slave LINK NAME TARGET` for those that come with it. Words that the shell
/// would have to expand are passed over.
fn parse(script: &str) -> Vec<(i32, Alternative)> {
    let text = script.replace("\\\n", " ");
    let mut found = Vec::new();
    for line in text
        .lines()
        .filter(|line| line.contains("update-alternatives"))
    {
        let mut words = line.split_whitespace();
        let mut priority = 0;
        while let Some(word) = words.next() {
            let is_slave = word == "--slave";
            if !is_slave && word != "--install" {
                continue;
            }
            let (Some(link), Some(_), Some(target)) = (words.next(), words.next(), words.next())
            else {
                break;
            };
            if !is_slave {
                priority = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            }
            let plain = |path: &str| path.starts_with('/') && !path.contains(['$', '"', '`']);
            if plain(link) && plain(target) {
                let alternative = Alternative {
                    link: link.trim_start_matches('/').into(),
                    target: target.into(),
                };
                found.push((priority, alternative));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_come_with_their_slaves_and_priority() {
        // As in Debian's openmpi-bin.
        let script = "#!/bin/sh\nif [ \"$1\" = configure ]; then\n    update-alternatives --install /usr/bin/mpirun mpirun \\\n  \
            /usr/bin/mpirun.openmpi 50 \\\n  --slave /usr/bin/mpiexec mpiexec /usr/bin/mpiexec.openmpi\n\
            update-alternatives --install $LINK x /usr/bin/x 3\n  fi\n";
        let link = |link: &str, target: &str| {
            let (link, target) = (link.into(), target.into());
            (50, Alternative { link, target })
        };
        assert_eq!(
            parse(script),
            [
                link("usr/bin/mpirun", "/usr/bin/mpirun.openmpi"),
                link("usr/bin/mpiexec", "/usr/bin/mpiexec.openmpi"),
            ]
        );
    }

    #[test]
    fn a_link_of_a_file_that_is_there_is_found_and_the_best_is_last() {
        let root = std::env::temp_dir().join(format!("alternatives-{}", std::process::id()));
        let script = |package: &str, text: &str| {
            let folder = root.join(SCRIPTS).join(package);
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join("postinst"), text).expect("a script");
        };
        script(
            "good",
            "update-alternatives --install /bin/x x /usr/bin/good 20",
        );
        script(
            "fair",
            "update-alternatives --install /bin/x x /usr/bin/fair 10",
        );
        script(
            "gone",
            "update-alternatives --install /bin/x x /usr/bin/gone 30",
        );
        fs::create_dir_all(root.join("usr/bin")).expect("a folder");
        for program in ["good", "fair"] {
            fs::write(root.join("usr/bin").join(program), "").expect("a program");
        }
        let targets: Vec<_> = of(&root)
            .expect("links")
            .into_iter()
            .map(|link| link.target)
            .collect();
        fs::remove_dir_all(&root).expect("removed");
        assert_eq!(targets, ["/usr/bin/fair", "/usr/bin/good"]);
    }
}
