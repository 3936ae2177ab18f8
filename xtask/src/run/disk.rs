//! S's disk: an ext4 file system made of Debian's files and the user's.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use crate::debian::{Bundle, TRIXIE};
use crate::tools::{need, quiet, say, step};

/// The program and the text that each disk holds.
const BUNDLE: Bundle<'_> = Bundle {
    name: "disk-1",
    release: TRIXIE,
    packages: &["busybox-static", "wamerican-huge", "miscfiles"],
    dependencies: false,
    backports: false,
    files: &[
        "usr/bin/busybox",
        "usr/share/dict/american-english-huge",
        "usr/share/dict/web2",
    ],
};

/// Paths of the word lists on the disk.
pub(crate) const WORDS: [&str; 2] = [
    "/usr/share/dict/web2",
    "/usr/share/dict/american-english-huge",
];
/// The only user, for programs that show names.
const USERS: [(&str, &str); 2] = [
    ("passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("group", "root:x:0:\n"),
];
/// Path of busybox on the disk.
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// Returns the host's path of the program that each disk holds.
pub(crate) fn busybox() -> Result<PathBuf> {
    Ok(BUNDLE.obtain()?.join("usr/bin/busybox"))
}

/// Returns the host's paths of the word lists that each disk holds.
pub(crate) fn word_lists() -> Result<[PathBuf; 2]> {
    let debian = BUNDLE.obtain()?;
    Ok(WORDS.map(|path| debian.join(path.trim_start_matches('/'))))
}

/// A file or folder of the host to put on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Add {
    /// Path on the host.
    pub(crate) host: PathBuf,
    /// Its absolute path in the guest.
    pub(crate) guest: PathBuf,
}

impl FromStr for Add {
    type Err = anyhow::Error;

    /// Reads `HOST[:GUEST]`. A colon belongs to the host's path unless an absolute path follows.
    fn from_str(text: &str) -> Result<Self> {
        let (host, guest) = match text.rsplit_once(":/") {
            Some((host, guest)) if !host.is_empty() => {
                (PathBuf::from(host), Path::new("/").join(guest))
            }
            _ => {
                let host = PathBuf::from(text);
                let full =
                    std::path::absolute(&host).with_context(|| format!("{text:?} is no path"))?;
                let name = full
                    .file_name()
                    .with_context(|| format!("{text:?} has no name: give `:GUEST`"))?;
                let guest = Path::new("/data").join(name);
                (host, guest)
            }
        };
        let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        ensure!(
            guest.components().all(plain),
            "the guest path {} must not hold `..`",
            guest.display()
        );
        Ok(Self { host, guest })
    }
}

/// Lays out the disk's files in a new folder: those of `root` if there is one, else busybox and
/// what it needs; then what the user adds.
pub(crate) fn stage(folder: &Path, root: Option<&Path>, adds: &[Add]) -> Result<()> {
    match root {
        Some(root) => put(root, folder, Copy::Linked)
            .with_context(|| format!("can't lay out the files of {}", root.display()))?,
        None => stage_busybox(folder)?,
    }
    for name in ["data", "dev", "etc", "proc", "root", "tmp"] {
        fs::create_dir_all(folder.join(name))
            .with_context(|| format!("can't make the folder {name}"))?;
    }
    for (name, text) in USERS {
        let path = folder.join("etc").join(name);
        if fs::symlink_metadata(&path).is_err() {
            fs::write(path, text).with_context(|| format!("can't make /etc/{name}"))?;
        }
    }
    for add in adds {
        // A folder is added to the one that a link names; a file replaces a link.
        let put_there = within(folder, &add.guest, add.host.is_dir());
        let put_there = put_there.and_then(|to| put(&add.host, &to, Copy::Whole));
        put_there.with_context(|| {
            format!(
                "can't add {} as {}",
                add.host.display(),
                add.guest.display()
            )
        })?;
    }
    Ok(())
}

fn stage_busybox(folder: &Path) -> Result<()> {
    let debian = BUNDLE.obtain()?;
    let files = [
        (debian.join("usr/bin/busybox"), BUSYBOX),
        (debian.join("usr/share/dict/web2"), WORDS[0]),
        (
            debian.join("usr/share/dict/american-english-huge"),
            WORDS[1],
        ),
    ];
    for (host, guest) in files {
        put(
            &host,
            &within(folder, Path::new(guest), false)?,
            Copy::Whole,
        )?;
    }
    symlink("busybox", folder.join("bin/sh")).context("can't make /bin/sh")
}

/// Symbolic links that are followed on one way.
const MAX_LINKS: usize = 40;

/// Returns the place of a guest's path within the folder. Links on the way are followed as the
/// guest would follow them, so that no path leaves the folder; one at the end only if `follow`.
fn within(folder: &Path, guest: &Path, follow: bool) -> Result<PathBuf> {
    let mut rest: Vec<PathBuf> = parts(guest);
    let mut at = PathBuf::new();
    let mut links = 0;
    while let Some(part) = rest.pop() {
        if part == Path::new("..") {
            at.pop();
            continue;
        }
        at.push(part);
        let link = fs::read_link(folder.join(&at)).ok();
        let link = link.filter(|_| follow || !rest.is_empty());
        if let Some(target) = link {
            links += 1;
            ensure!(
                links <= MAX_LINKS,
                "too many symbolic links on the way to {}",
                guest.display()
            );
            at.pop();
            if target.is_absolute() {
                at = PathBuf::new();
            }
            rest.extend(parts(&target));
        }
    }
    Ok(folder.join(at))
}

/// Returns a path's parts, the last one first.
fn parts(path: &Path) -> Vec<PathBuf> {
    let named = |part: Component<'_>| match part {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        _ => None,
    };
    path.components().rev().filter_map(named).collect()
}

/// The way that a file is put in another place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Copy {
    /// Its bytes are copied.
    Whole,
    /// By a hard link, where the file system can: nothing writes to the place afterwards.
    Linked,
}

/// Copies a file, a folder with all it holds, or a symbolic link below the top. What is in the way
/// of a file or link is replaced.
fn put(host: &Path, to: &Path, how: Copy) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("can't make {}", parent.display()))?;
    }
    let kind = fs::metadata(host).with_context(|| format!("can't read {}", host.display()))?;
    if !kind.is_dir() {
        ensure!(
            kind.is_file(),
            "{} is neither a file nor a folder",
            host.display()
        );
        make_way(to)?;
        if how == Copy::Linked && fs::hard_link(host, to).is_ok() {
            return Ok(());
        }
        fs::copy(host, to).with_context(|| format!("can't copy {}", host.display()))?;
        return same_times(&kind, to);
    }
    if fs::symlink_metadata(to).is_ok_and(|there| !there.is_dir()) {
        make_way(to)?;
    }
    fs::create_dir_all(to).with_context(|| format!("can't make {}", to.display()))?;
    for entry in fs::read_dir(host).with_context(|| format!("can't list {}", host.display()))? {
        let entry = entry.with_context(|| format!("can't list {}", host.display()))?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry
            .file_type()
            .with_context(|| format!("can't read {}", from.display()))?;
        if kind.is_symlink() {
            let target =
                fs::read_link(&from).with_context(|| format!("can't read {}", from.display()))?;
            make_way(&to)?;
            symlink(target, &to).with_context(|| format!("can't make {}", to.display()))?;
        } else if kind.is_dir() || kind.is_file() {
            put(&from, &to, how)?;
        } else {
            say(&format!(
                "{} is left out: it is no file, folder or link",
                from.display()
            ));
        }
    }
    same_times(&kind, to)
}

/// Removes a file or link; a folder stays, and is an error of whoever wants a file there.
fn make_way(place: &Path) -> Result<()> {
    match fs::symlink_metadata(place) {
        Ok(there) if !there.is_dir() => {
            fs::remove_file(place).with_context(|| format!("can't replace {}", place.display()))
        }
        _ => Ok(()),
    }
}

/// Gives a copy the times of its original: programs show them and compare them.
fn same_times(original: &Metadata, copy: &Path) -> Result<()> {
    let times = || {
        let times = FileTimes::new()
            .set_accessed(original.accessed()?)
            .set_modified(original.modified()?);
        // Opened to read: a file that nobody may write, and a folder, can be opened no other way.
        File::open(copy)?.set_times(times)
    };
    times().with_context(|| format!("can't set the times of {}", copy.display()))
}

/// Inodes of a new file system besides those in use.
const SPARE_INODES: u64 = 16_384;
/// MiB of the journal: what S keeps of it in its memory is bounded by this.
const JOURNAL: &str = "size=16";

/// Makes the file system, with `room` bytes to spare.
pub(crate) fn make(staged: &Path, image: &Path, room: u64) -> Result<()> {
    let mke2fs = need(
        "mke2fs",
        "`apt-get install e2fsprogs`, or your system's package of that name",
    )?;
    let (bytes, files) = measure(staged)?;
    // An eighth for the tables of the file system, and some for the journal.
    let kib = (bytes + bytes / 8 + room) / 1024 + files + 32_768;
    // A larger image that is there would keep its length.
    match fs::remove_file(image) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("can't replace {}", image.display()));
        }
        _ => {}
    }
    step(&format!("Making S's disk: {} MiB", kib / 1024), || {
        let mut command = Command::new(mke2fs);
        command.args([
            "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", "tessera",
        ]);
        command.args(["-J", JOURNAL, "-E", "root_owner=0:0"]);
        command.arg("-N").arg((files + SPARE_INODES).to_string());
        command
            .arg("-d")
            .arg(staged)
            .arg(image)
            .arg(format!("{kib}k"));
        quiet(&mut command)?;
        Ok(())
    })
}

/// Bytes, each file's rounded up to blocks, and number of files and folders.
fn measure(folder: &Path) -> Result<(u64, u64)> {
    let (mut bytes, mut files) = (4096, 1);
    for entry in fs::read_dir(folder).with_context(|| format!("can't list {}", folder.display()))? {
        let entry = entry.with_context(|| format!("can't list {}", folder.display()))?;
        let meta = entry
            .metadata()
            .with_context(|| format!("can't read {}", entry.path().display()))?;
        let more = if meta.is_dir() {
            measure(&entry.path())?
        } else {
            (meta.len().next_multiple_of(4096), 1)
        };
        bytes += more.0;
        files += more.1;
    }
    Ok((bytes, files))
}

/// Checks what a user gave as `NAME=VALUE`.
pub(crate) fn check_environment(variable: &OsStr) -> Result<()> {
    match variable.as_bytes().iter().position(|&byte| byte == b'=') {
        None | Some(0) => bail!("{variable:?} is no NAME=VALUE"),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn add(text: &str) -> Option<(String, String)> {
        let add = text.parse::<Add>().ok()?;
        Some((
            add.host.display().to_string(),
            add.guest.display().to_string(),
        ))
    }

    #[test]
    fn additions_name_their_place_or_go_under_data() {
        assert_eq!(
            add("/tmp/x:/bin/x"),
            Some(("/tmp/x".into(), "/bin/x".into()))
        );
        assert_eq!(add("some/x"), Some(("some/x".into(), "/data/x".into())));
        assert_eq!(add("a:b"), Some(("a:b".into(), "/data/a:b".into())));
        assert_eq!(add("/"), None);
        assert_eq!(add("x:/../etc"), None);
    }

    #[test]
    fn a_folder_goes_to_the_disk_with_its_links() {
        let scratch = std::env::temp_dir().join(format!("tessera-disk-{}", std::process::id()));
        let (from, to) = (scratch.join("from"), scratch.join("to"));
        fs::create_dir_all(from.join("sub")).expect("folder");
        fs::write(from.join("sub/file"), "text").expect("file");
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000_500);
        let times = FileTimes::new().set_modified(long_ago);
        for name in ["sub/file", "sub"] {
            File::open(from.join(name))
                .and_then(|file| file.set_times(times))
                .expect("times");
        }
        symlink("sub/file", from.join("link")).expect("link");
        put(&from, &to.join("a/b"), Copy::Whole).expect("put");
        assert_eq!(
            fs::read_link(to.join("a/b/link")).expect("link"),
            Path::new("sub/file")
        );
        assert_eq!(fs::read(to.join("a/b/link")).expect("file"), b"text");
        for name in ["a/b/sub/file", "a/b/sub"] {
            let copied = fs::metadata(to.join(name)).expect("a copy");
            assert_eq!(copied.modified().expect("a time"), long_ago, "{name}");
        }
        assert!(put(&scratch.join("none"), &to.join("c"), Copy::Whole).is_err());
        fs::remove_dir_all(scratch).expect("remove");
    }

    #[test]
    fn nothing_is_written_through_a_link_out_of_the_disk_s_folder() {
        let scratch = std::env::temp_dir().join(format!("tessera-links-{}", std::process::id()));
        let (disk, victim, new) = (
            scratch.join("disk"),
            scratch.join("victim"),
            scratch.join("new"),
        );
        fs::create_dir_all(disk.join("usr/lib")).expect("folder");
        fs::create_dir_all(&victim).expect("folder");
        fs::write(victim.join("x"), "old").expect("file");
        fs::write(&new, "new").expect("file");
        // To the outside by an absolute path, by dots, at the end, and in a circle; and one within.
        symlink(&victim, disk.join("away")).expect("link");
        symlink("../../victim", disk.join("dots")).expect("link");
        symlink(victim.join("x"), disk.join("end")).expect("link");
        symlink("circle", disk.join("circle")).expect("link");
        symlink("usr/lib", disk.join("lib")).expect("link");
        for (guest, lands) in [
            ("/end", "end"),
            ("/dots/x", "victim/x"),
            ("/lib/x", "usr/lib/x"),
            ("/lib/../lib/y", "usr/lib/y"),
        ] {
            let place = within(&disk, Path::new(guest), false).expect("a place");
            assert_eq!(place, disk.join(lands), "{guest}");
            put(&new, &place, Copy::Whole).expect("put");
        }
        let away = within(&disk, Path::new("/away/x"), false).expect("a place");
        assert!(away.starts_with(&disk));
        assert!(within(&disk, Path::new("/circle/x"), false).is_err());
        assert_eq!(
            within(&disk, Path::new("/lib"), true).expect("a place"),
            disk.join("usr/lib")
        );
        assert_eq!(fs::read(victim.join("x")).expect("file"), b"old");
        // A hard link to a cached file is replaced, not written.
        fs::hard_link(victim.join("x"), disk.join("hard")).expect("link");
        put(&new, &disk.join("hard"), Copy::Whole).expect("put");
        assert_eq!(fs::read(victim.join("x")).expect("file"), b"old");
        fs::remove_dir_all(scratch).expect("remove");
    }
}
