//! e2fsprogs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// Finds a program of Debian's e2fsprogs, which the tests need.
fn program(name: &str) -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&folders).chain(["/usr/sbin".into(), "/sbin".into()]);
    let mut found = folders
        .map(|folder| folder.join(name))
        .filter(|path| path.exists());
    found
        .next()
        .unwrap_or_else(|| panic!("{name} is missing: `apt-get install e2fsprogs`"))
}

/// A file of its own, removed when dropped.
pub(crate) struct Image(pub(crate) PathBuf);

static NUMBER: AtomicU64 = AtomicU64::new(0);

impl Image {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() {
            memory.to_owned()
        } else {
            std::env::temp_dir()
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("tessera-ext4-{}-{number}", std::process::id()));
        fs::write(&path, bytes).expect("the image is written");
        Self(path)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs::read(&self.0).expect("the image is read")
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Initial content of free blocks: stale bytes that no file may show.
const STALE: u8 = 0xa5;

/// Makes an ext4 file system of Debian's default features and these options.
pub(crate) fn mke2fs(size: usize, options: &[&str]) -> Vec<u8> {
    let image = Image::new(&vec![STALE; size]);
    let made = Command::new(program("mke2fs"))
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-E",
            "nodiscard,hash_seed=6f3ad25c-66a1-4a31-a1b5-90b4ec1ab6f1",
        ])
        .args(options)
        .arg(&image.0)
        .output()
        .expect("mke2fs runs");
    assert!(
        made.status.success(),
        "mke2fs: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    image.bytes()
}

fn e2fsck_with(image: &Image, how: &str) -> (Option<i32>, String) {
    let ran = Command::new(program("e2fsck"))
        .args([how, "-f"])
        .arg(&image.0)
        .output();
    let ran = ran.expect("e2fsck runs");
    let mut text = String::from_utf8_lossy(&ran.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&ran.stderr));
    (ran.status.code(), text)
}

/// Returns what `e2fsck -fn` finds wrong.
pub(crate) fn e2fsck(image: &[u8]) -> Result<(), String> {
    match e2fsck_with(&Image::new(image), "-n") {
        (Some(0), _) => Ok(()),
        (_, text) => Err(text),
    }
}

/// Lets e2fsck replay the journal; returns the image. Fails if it had to repair anything else.
pub(crate) fn replay(image: &[u8]) -> Result<Vec<u8>, String> {
    let image = Image::new(image);
    let (code, text) = e2fsck_with(&image, "-p");
    if !matches!(code, Some(0 | 1)) {
        return Err(text);
    }
    let replayed = image.bytes();
    e2fsck(&replayed)?;
    Ok(replayed)
}

/// Lets e2fsck index directories anew.
pub(crate) fn reindex(image: &Image) {
    let ran = Command::new(program("e2fsck"))
        .args(["-fyD"])
        .arg(&image.0)
        .output();
    let code = ran.expect("e2fsck runs").status.code();
    assert!(matches!(code, Some(0 | 1)), "e2fsck -D: {code:?}");
}

/// Runs commands of debugfs on an image; returns what they print.
pub(crate) fn debugfs(image: &Image, commands: &[&str], write: bool) -> String {
    let script = Image::new(commands.join("\n").as_bytes());
    let mut run = Command::new(program("debugfs"));
    if write {
        run.arg("-w");
    }
    let ran = run
        .arg("-f")
        .arg(&script.0)
        .arg(&image.0)
        .output()
        .expect("debugfs runs");
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

/// Reads a file by debugfs.
pub(crate) fn debugfs_cat(image: &Image, path: &str) -> Vec<u8> {
    let ran = Command::new(program("debugfs"))
        .args(["-R", &format!("cat \"{path}\"")])
        .arg(&image.0)
        .output();
    ran.expect("debugfs runs").stdout
}
