//! A process of the cluster: in a group of its own, so that Ctrl-C reaches it through us only, and
//! ended on every path.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// Time that a process may take to end when asked, before it is killed.
const GRACE: Duration = Duration::from_secs(2);
/// Poll interval of a process that should end.
const PAUSE: Duration = Duration::from_millis(5);

/// Command that starts a VM so that it dies with us, whatever ends us. Part of util-linux.
pub(crate) const LAUNCHER: [&str; 3] = ["setpriv", "--pdeathsig", "KILL"];

/// A process that is ended when this is dropped.
pub(crate) struct Process {
    /// Name of the process, for errors.
    pub(crate) name: String,
    /// File with its standard error.
    pub(crate) stderr: PathBuf,
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts a command. Its standard error goes to `NAME.err` in `folder`.
    pub(crate) fn start(name: &str, mut command: Command, folder: &Path) -> Result<Self> {
        let stderr = folder.join(format!("{name}.err"));
        let file =
            File::create(&stderr).with_context(|| format!("can't make {}", stderr.display()))?;
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name}: can't start `{program}`"))?;
        Ok(Self {
            name: name.into(),
            stderr,
            child,
            status: None,
        })
    }

    /// Returns the child, for its pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Returns the exit status; `None` while the process runs.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self
                .child
                .try_wait()
                .with_context(|| format!("can't look at {}", self.name))?;
        }
        Ok(self.status)
    }

    /// Asks it to end: by its signal, and by closing its standard input.
    pub(crate) fn ask_to_end(&mut self) {
        drop(self.child.stdin.take());
        if matches!(self.ended(), Ok(None)) {
            // It may end by itself at this moment; then there is nothing to signal.
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            // A stopped one hears of it when it goes on.
            let _ = kill_process(Pid::from_child(&self.child), Signal::CONT);
        }
    }

    /// Stops it where it is, or lets it go on.
    pub(crate) fn stop(&self, stop: bool) -> Result<()> {
        let signal = if stop { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("can't send {} a signal", self.name))
    }

    /// Ends it at once, as a loss of power would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child
            .kill()
            .with_context(|| format!("can't kill {}", self.name))
    }

    fn end(&mut self) {
        self.ask_to_end();
        let deadline = Instant::now() + GRACE;
        while matches!(self.ended(), Ok(None)) {
            if Instant::now() >= deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Returns the command without input or output.
pub(crate) fn silent(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn start(script: &str) -> Process {
        let folder = std::env::temp_dir();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let name = format!("tessera-process-{}-{}", std::process::id(), script.len());
        Process::start(&name, silent(command), &folder).expect("sh starts")
    }

    fn is_alive(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}/stat")).exists()
    }

    #[test]
    fn a_dropped_process_has_ended() {
        let mut process = start("exec sleep 100");
        let pid = process.child().id();
        assert!(is_alive(pid));
        std::fs::remove_file(&process.stderr).expect("stderr");
        drop(process);
        assert!(!is_alive(pid));
    }

    #[test]
    fn a_stopped_process_ends_without_being_killed() {
        let mut process = start("trap 'exit 7' TERM; while true; do sleep 0.01; done");
        std::fs::remove_file(&process.stderr).expect("stderr");
        process.stop(true).expect("stop");
        process.ask_to_end();
        let status = process.child().wait().expect("wait");
        assert!(status.signal() != Some(9), "{status}");
    }

    #[test]
    fn a_process_that_ends_by_itself_tells_its_status() {
        let mut process = start("exit 5");
        std::fs::remove_file(&process.stderr).expect("stderr");
        let status = process.child().wait().expect("wait");
        assert_eq!(status.code(), Some(5));
        assert_eq!(process.ended().expect("ended"), Some(status));
    }
}
