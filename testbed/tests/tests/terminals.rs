//! Interactive programs: they have the host's terminal, with job control, and it is restored in any
//! case.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use testbed_tests::terminal::Terminal;
use testbed_tests::xtask;

const PROMPT: &str = "READY> ";

/// `xtask run` with bash from Debian.
fn bash(options: &[&str], args: &[&str]) -> Command {
    let mut command = xtask();
    command
        .args(["run", "--quiet", "--root", "trixie", "--env", "PS1=READY> "])
        .args(options);
    command.args(["--", "bash", "--norc"]).args(args);
    command
}

/// Types a line at bash's prompt; returns what it shows until the next.
fn say(terminal: &mut Terminal, line: &str) -> String {
    terminal.keys(&format!("{line}\n"));
    terminal.expect(&format!("{line}\r\n"));
    terminal.expect(PROMPT).replace("\r\n", "\n")
}

#[test]
fn snapshots_keep_to_the_lowest_lines() {
    let mut terminal = Terminal::start(&bash(&["--top"], &["-i"]));
    terminal.expect(PROMPT);
    terminal.keys("stty size\n");
    terminal.expect("\n10 80\r\n");
    terminal.keys("sleep 1000\n");
    terminal.expect("CPU 0 % of 1 cores");
    terminal.expect("PID   PPID");
    terminal.expect(" sleep");
    terminal.keys("\x03");
    terminal.expect(PROMPT);
    terminal.keys("exit\n");
    // The whole terminal scrolls again.
    terminal.expect("\x1b[r\x1b[11;1H\x1b[J");
    terminal.end();
    assert!(terminal.is_cooked());
}

#[test]
fn an_interactive_shell_has_job_control() {
    let mut terminal = Terminal::start(&bash(&["--cpus", "2"], &["-i"]));
    terminal.expect(PROMPT);
    assert!(!terminal.is_cooked());
    assert_eq!(
        say(
            &mut terminal,
            "test -t 0 && test -t 1 && test -t 2 && echo yes"
        ),
        "yes\n"
    );
    assert_eq!(say(&mut terminal, "stty size"), "24 80\n");
    terminal.resize(30, 100);
    // The host's size is looked at now and then.
    let end = Instant::now() + Duration::from_secs(30);
    while say(&mut terminal, "stty size") != "30 100\n" {
        assert!(Instant::now() < end, "the size does not come through");
    }
    // A stopped job, one in the background, and one that reads from there.
    terminal.keys("sleep 1000\n");
    terminal.expect("sleep 1000\r\n");
    std::thread::sleep(Duration::from_secs(2));
    terminal.keys("\x1a");
    assert!(terminal.expect(PROMPT).contains("Stopped"), "Ctrl-Z");
    let jobs = say(&mut terminal, "sleep 2000 & cat & sleep 1; jobs");
    assert!(
        jobs.contains("Running") && jobs.matches("Stopped").count() >= 2,
        "{jobs}"
    );
    let jobs = say(&mut terminal, "kill %2; kill -9 %3; sleep 1; jobs");
    assert!(
        jobs.contains("Terminated") && jobs.contains("Killed"),
        "{jobs}"
    );
    terminal.keys("fg %1\n");
    terminal.expect("sleep 1000\r\n");
    std::thread::sleep(Duration::from_secs(2));
    terminal.keys("\x03");
    terminal.expect(PROMPT);
    assert_eq!(say(&mut terminal, "echo $?"), "130\n", "Ctrl-C");
    // Ctrl-D ends a line of input, and a shell.
    // The shell has given the terminal its modes back before it runs anything.
    terminal.keys("echo ready; cat\n");
    terminal.expect("cat\r\nready\r\n");
    terminal.keys("typed\n\x04");
    terminal.expect("typed\r\ntyped\r\n");
    terminal.expect(PROMPT);
    terminal.keys("exit 7\n");
    assert_eq!(terminal.end().code(), Some(7));
    assert!(terminal.is_cooked(), "the terminal is as it was");
}

#[test]
fn the_terminal_is_given_back_when_the_run_is_ended() {
    for (signal, code) in [(Signal::TERM, Some(130)), (Signal::KILL, None)] {
        let mut terminal = Terminal::start(&bash(&[], &["-i"]));
        terminal.expect(PROMPT);
        assert!(!terminal.is_cooked());
        let pid = i32::try_from(terminal.pid()).expect("a number");
        kill_process(Pid::from_raw(pid).expect("a number"), signal).expect("kill");
        let status = terminal.end();
        if code.is_some() {
            assert_eq!(status.code(), code);
        }
        let end = Instant::now() + Duration::from_secs(10);
        while !terminal.is_cooked() {
            assert!(
                Instant::now() < end,
                "the terminal stays raw after {signal:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Ctrl-] three times ends a run whose program takes no notice of anything.
#[test]
fn a_run_can_be_ended_from_the_keyboard() {
    let script = "stty raw; echo deaf; while :; do :; done";
    let mut terminal = Terminal::start(&bash(&[], &["-c", script]));
    terminal.expect("deaf");
    terminal.keys("\x03\x1d\x1d\x1d");
    assert_eq!(terminal.end().code(), Some(130));
    assert!(terminal.is_cooked());
}
