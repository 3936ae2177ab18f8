//! Images of S's disk: their folder, the tools of e2fsprogs, and an end of S without a word.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::descendants;

/// Returns an empty folder of a name in `target`, cargo's folder for the tests' files.
///
/// # Panics
/// If it can't be made.
#[must_use]
pub fn scratch(target: &str, name: &str) -> PathBuf {
    let folder = Path::new(target).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// Returns a path as text.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// Runs a tool of e2fsprogs on an image; returns its exit status and output.
///
/// # Panics
/// If the tool is missing.
#[must_use]
pub fn tool(name: &str, args: &[&str]) -> (i32, String) {
    let places = [
        name.to_owned(),
        format!("/usr/sbin/{name}"),
        format!("/sbin/{name}"),
    ];
    let ran = places
        .iter()
        .find_map(|place| Command::new(place).args(args).output().ok());
    let ran = ran.unwrap_or_else(|| panic!("{name} of e2fsprogs is there"));
    let said = [ran.stdout, ran.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (ran.status.code().expect("an exit status"), said)
}

/// Replays the log and finishes deletions, as a mount does; then nothing may be left to repair.
///
/// # Panics
/// If something is.
pub fn assert_sound(image: &Path) {
    let (status, said) = tool("e2fsck", &["-fp", text(image)]);
    assert!(status <= 1, "e2fsck -fp ended with {status}: {said}");
    let (status, said) = tool("e2fsck", &["-fn", text(image)]);
    assert_eq!(status, 0, "{said}");
}

/// Checks a copy of an image, which keeps its log. Returns whether the log has something to replay.
///
/// # Panics
/// If the image is not sound.
pub fn assert_copy_sound(image: &Path) -> bool {
    let (status, said) = tool("dumpe2fs", &["-h", text(image)]);
    assert_eq!(status, 0, "{said}");
    let copy = image.with_extension("copy");
    fs::copy(image, &copy).expect("a copy");
    assert_sound(&copy);
    fs::remove_file(copy).expect("removed");
    said.contains("needs_recovery")
}

/// Kills the machine of a run whose kernel is the named image.
///
/// # Panics
/// If there is no such machine.
pub fn kill_machine(run: u32, image: &str) {
    let machine = descendants(run)
        .into_iter()
        .find(|(_, line)| line.contains(image))
        .and_then(|(pid, _)| Pid::from_raw(pid))
        .unwrap_or_else(|| panic!("no machine runs {image}"));
    kill_process(machine, Signal::KILL).expect("it is killed");
}
