//! Files of Debian packages, fetched by `apt-get` with a state of its own and unpacked into the
//! user's cache folder.
//!
//! Nothing is installed, nothing needs root, and the machine's own apt state is left alone. The
//! mirror is the one that the machine's apt sources name. See `docs/user/run.md`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::tools::{self, need, quiet};

/// The release that tools are taken from, whatever release the machine runs.
pub(crate) const TRIXIE: &str = "trixie";
/// The release that Linux guests are made of: Debian 12.
pub(crate) const BOOKWORM: &str = "bookworm";
/// Debian's own keys, as the package `debian-archive-keyring` installs them.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];

/// Folder in a bundle with what each package would run when it is installed.
pub(crate) const SCRIPTS: &str = "var/lib/dpkg/scripts";

/// Packages of Debian, and the files needed from them.
pub(crate) struct Bundle<'a> {
    /// Names the folder in the cache. A change of the list changes the version in the name.
    pub(crate) name: &'a str,
    /// The release of Debian.
    pub(crate) release: &'a str,
    /// The packages.
    pub(crate) packages: &'a [&'a str],
    /// Their dependencies are fetched as well.
    pub(crate) dependencies: bool,
    /// They come from backports.
    pub(crate) backports: bool,
    /// Files that must be there, by their path within.
    pub(crate) files: &'a [&'a str],
}

impl<'a> Bundle<'a> {
    /// Returns the folder of the unpacked packages, fetched now if they are missing.
    pub(crate) fn obtain(&self) -> Result<PathBuf> {
        let cache = cache_folder()?;
        fs::create_dir_all(&cache)
            .with_context(|| format!("can't make the folder {}", cache.display()))?;
        let folder = cache.join(self.name);
        // Held until the end: a second run waits here for the first one's download.
        let lock = File::create(cache.join(format!("{}.lock", self.name)))
            .context("can't make a lock file")?;
        lock.lock().context("can't lock the cache folder")?;
        if self.missing(&folder).is_none() {
            return Ok(folder);
        }
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("can't remove {}", folder.display()))?;
        }
        let list = self.packages.join(", ");
        tools::step(
            &format!("Fetching from Debian {}: {list}", self.release),
            || self.fetch(&cache, &folder),
        )?;
        Ok(folder)
    }

    /// Returns the first file that is missing.
    fn missing(&self, folder: &Path) -> Option<&'a str> {
        self.files
            .iter()
            .find(|file| !folder.join(file).exists())
            .copied()
    }

    fn fetch(&self, cache: &Path, folder: &Path) -> Result<()> {
        let work = cache.join(format!("{}.partial", self.name));
        if work.exists() {
            fs::remove_dir_all(&work)
                .with_context(|| format!("can't remove {}", work.display()))?;
        }
        let root = work.join("root");
        fs::create_dir_all(&root)
            .with_context(|| format!("can't make the folder {}", root.display()))?;
        let packages = Apt::new(&work, self.release, self.backports)?.download(self)?;
        let dpkg = need("dpkg-deb", "it comes with Debian's `dpkg`")?;
        for package in packages {
            let unpack = |what: &str, into: &Path| {
                quiet(Command::new(&dpkg).arg(what).arg(&package).arg(into))
                    .with_context(|| format!("can't unpack {}", package.display()))
            };
            unpack("-x", &root)?;
            if let Some(name) = package.file_stem() {
                let scripts = root.join(SCRIPTS);
                fs::create_dir_all(&scripts).context("can't make the scripts' folder")?;
                unpack("-e", &scripts.join(name))?;
            }
        }
        if let Some(file) = self.missing(&root) {
            bail!(
                "Debian's packages {:?} no longer hold {file}",
                self.packages
            );
        }
        fs::rename(&root, folder).with_context(|| format!("can't make {}", folder.display()))?;
        // Only the download remains in there; another try does without it.
        let _ = fs::remove_dir_all(&work);
        Ok(())
    }
}

/// Returns the folder with the unpacked and patched source package `name` of a release; fetches it
/// if the cache lacks it.
///
/// # Errors
/// Fails without `dpkg-source`, or if the package can't be fetched.
pub(crate) fn source(name: &str, release: &str) -> Result<PathBuf> {
    let cache = cache_folder()?;
    fs::create_dir_all(&cache)
        .with_context(|| format!("can't make the folder {}", cache.display()))?;
    let label = format!("source-{release}-{name}");
    let folder = cache.join(&label);
    let lock =
        File::create(cache.join(format!("{label}.lock"))).context("can't make a lock file")?;
    lock.lock().context("can't lock the cache folder")?;
    if folder.exists() {
        return Ok(folder);
    }
    let unpack = need("dpkg-source", "`apt-get install dpkg-dev`")?;
    tools::step(
        &format!("Fetching the source of {name} from Debian {release}"),
        || {
            let work = cache.join(format!("{label}.partial"));
            if work.exists() {
                fs::remove_dir_all(&work)
                    .with_context(|| format!("can't remove {}", work.display()))?;
            }
            let description = Apt::new(&work, release, false)?.download_source(name)?;
            let unpacked = work.join("unpacked");
            quiet(
                Command::new(unpack)
                    .arg("--no-check")
                    .arg("-x")
                    .args([&description, &unpacked]),
            )
            .with_context(|| format!("can't unpack {}", description.display()))?;
            fs::rename(&unpacked, &folder)
                .with_context(|| format!("can't make {}", folder.display()))?;
            // Only the download remains in there; another try does without it.
            let _ = fs::remove_dir_all(&work);
            Ok(())
        },
    )?;
    Ok(folder)
}

/// Returns the user's cache folder of this project.
pub(crate) fn cache_folder() -> Result<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path: &PathBuf| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("tessera"))
        .context("neither XDG_CACHE_HOME nor HOME is set: no place for downloads")
}

/// `apt-get` with a state, a cache and sources of its own.
struct Apt {
    work: PathBuf,
    program: PathBuf,
}

impl Apt {
    fn new(work: &Path, release: &str, backports: bool) -> Result<Self> {
        let program = need(
            "apt-get",
            "packages come from Debian; run on Debian, or see docs/user/run.md",
        )?;
        let mirror = mirror()?;
        let keyring = KEYRINGS
            .into_iter()
            .find(|keyring| Path::new(keyring).is_file())
            .context("Debian's keys are missing: `apt-get install debian-archive-keyring`")?;
        for folder in ["state/lists/partial", "cache/archives/partial", "packages"] {
            fs::create_dir_all(work.join(folder)).context("can't make a folder for apt")?;
        }
        let mut suites = vec![release.to_owned()];
        if backports {
            suites.push(format!("{release}-backports"));
        }
        let sources: String = suites
            .iter()
            .flat_map(|suite| {
                ["deb", "deb-src"]
                    .map(|kind| format!("{kind} [signed-by={keyring}] {mirror} {suite} main\n"))
            })
            .collect();
        fs::write(work.join("sources.list"), sources).context("can't write apt's sources")?;
        fs::write(work.join("status"), "").context("can't write apt's status")?;
        Ok(Self {
            work: work.into(),
            program,
        })
    }

    fn command(&self) -> Command {
        let path = |name: &str| self.work.join(name).display().to_string();
        let mut command = Command::new(&self.program);
        command.current_dir(self.work.join("packages"));
        for option in [
            format!("Dir::Etc::sourcelist={}", path("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".into(),
            "Dir::Etc::preferencesparts=/dev/null".into(),
            format!("Dir::State={}", path("state")),
            format!("Dir::State::status={}", path("status")),
            format!("Dir::Cache={}", path("cache")),
            // apt's own user could not enter the folder.
            format!("APT::Sandbox::User={}", user()),
        ] {
            command.arg("-o").arg(option);
        }
        command.arg("-qq");
        command
    }

    fn download(&self, bundle: &Bundle<'_>) -> Result<Vec<PathBuf>> {
        quiet(self.command().arg("update")).context("can't read Debian's package lists")?;
        let mut command = self.command();
        if bundle.backports {
            command.args(["-t", &format!("{}-backports", bundle.release)]);
        }
        let folder = if bundle.dependencies {
            command.args([
                "-y",
                "--download-only",
                "--no-install-recommends",
                "install",
            ]);
            "cache/archives"
        } else {
            command.arg("download");
            "packages"
        };
        quiet(command.args(bundle.packages)).context("can't download packages")?;
        let mut packages = Vec::new();
        for entry in fs::read_dir(self.work.join(folder)).context("can't list the downloads")? {
            let path = entry.context("can't list the downloads")?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                packages.push(path);
            }
        }
        ensure!(
            packages.len() >= bundle.packages.len(),
            "apt-get left only {} packages",
            packages.len()
        );
        packages.sort();
        Ok(packages)
    }
}

impl Apt {
    /// Downloads a source package; apt checks it against the signed lists. Returns its description.
    fn download_source(&self, name: &str) -> Result<PathBuf> {
        quiet(self.command().arg("update")).context("can't read Debian's package lists")?;
        quiet(self.command().args(["source", "--download-only", name]))
            .context("can't download the source")?;
        let folder = self.work.join("packages");
        let entries = fs::read_dir(&folder).context("can't list the downloads")?;
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "dsc"))
            .with_context(|| format!("apt-get left no description of the source of {name}"))
    }
}

fn user() -> &'static str {
    // For anyone but root apt changes no user, whatever this says.
    "root"
}

/// Returns the Debian mirror that the machine's own apt sources name.
fn mirror() -> Result<String> {
    let folder = Path::new("/etc/apt/sources.list.d");
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir(folder) {
        files.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())));
    }
    files.sort();
    files
        .iter()
        .filter(|file| {
            file.extension()
                .is_some_and(|extension| extension == "list" || extension == "sources")
        })
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|text| mirror_in(&text))
        .context(
            "no apt source of this machine names a Debian mirror with a suite `main`: see docs/user/run.md",
        )
}

/// Returns the first Debian archive that an apt source file names, in the one-line format or in
/// deb822.
///
/// It is known by its path: every full mirror keeps Debian under `/debian`, and security updates
/// elsewhere.
fn mirror_in(text: &str) -> Option<String> {
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'));
    lines
        .filter(|line| {
            line.starts_with("deb ")
                || line.starts_with("deb\t")
                || line.to_lowercase().starts_with("uris:")
        })
        .flat_map(str::split_whitespace)
        .find(|word| word.contains(":/") && word.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_in_both_formats() {
        let deb822 = "Types: deb\n# http://snapshot/archive/debian/2025\nURIs: http://mirror.example/debian\nSuites: x\n";
        assert_eq!(
            mirror_in(deb822).as_deref(),
            Some("http://mirror.example/debian")
        );
        let line = "# deb http://old.example/debian x main\ndeb [signed-by=/k.gpg] https://m.example/debian/ x main\n";
        assert_eq!(
            mirror_in(line).as_deref(),
            Some("https://m.example/debian/")
        );
    }

    #[test]
    fn other_archives_are_not_taken_for_debian() {
        let text = "deb http://x.example/debian-security x main\ndeb https://packages.example/apt cloud main\n\
                    deb-src http://m.example/debian x main\nURIs: http://archive.example/ubuntu\n";
        assert_eq!(mirror_in(text), None);
    }
}
