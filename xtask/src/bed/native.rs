//! Programs of a root file system on this machine's Linux, for comparison: by `chroot`, in
//! namespaces of their own.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use rustix::process::getuid;

use super::process::LAUNCHER;
use crate::tools::{find, need};

/// Script that enters `chroot`: with file systems that P has of its own, and no capability by which
/// a program could change this machine, such as its clock.
const ENTER: &str = r#"set -e
root=$1; ip=$2; shift 2
mount -t proc proc "$root/proc"; mount --rbind /dev "$root/dev"; mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/dev/shm"; mount -t tmpfs tmpfs "$root/run"
[ -z "$ip" ] || "$ip" link set lo up
caps=-all,+chown,+dac_override,+dac_read_search,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+sys_chroot
caps=$caps,+net_bind_service,+net_raw,+ipc_lock,+ipc_owner,+sys_nice,+sys_resource,+sys_ptrace,+setfcap
exec setpriv --bounding-set="$caps" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" "$@"
"#;

/// Returns the command that runs a program of `root`, given by its path there, with its arguments.
/// It ends with this program.
///
/// # Errors
/// Names a tool that this machine lacks.
pub(crate) fn command(root: &Path, words: &[&str]) -> Result<Command> {
    let unshare = need("unshare", "it comes with util-linux")?;
    let mut command = Command::new(need(LAUNCHER[0], "it comes with util-linux")?);
    command.args(&LAUNCHER[1..]).arg(unshare);
    if !getuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args([
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--net",
        "--ipc",
        "--uts",
    ]);
    command.args(["sh", "-c", ENTER, "sh"]).arg(root);
    command.arg(find("ip").unwrap_or_default());
    command.args(words);
    Ok(command)
}
