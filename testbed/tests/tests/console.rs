//! Tests of `xtask run` in a shell: streams, statuses, arguments and refusals are those of a native
//! run.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::{Command, Output, Stdio};

use testbed_tests::{Run, xtask};

/// Prepares a run with the given streams and only the program's own output on standard error.
fn run(options: &[&str], program: &[&str]) -> Command {
    let mut command = xtask();
    command
        .args(["run", "--timeout", "300"])
        .args(options)
        .arg("--")
        .args(program);
    command.stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn end_of(mut command: Command) -> (Option<i32>, String, String) {
    said(&command.output().expect("xtask starts"))
}

#[test]
fn an_input_that_is_a_folder_fails_as_natively() {
    let mut command = run(&[], &["busybox", "cat"]);
    command.stdin(File::open("/").expect("a folder"));
    let said = "cat: read error: Is a directory\n";
    assert_eq!(end_of(command), (Some(1), String::new(), said.into()));
}

#[test]
fn a_full_output_fails_as_natively() {
    let mut command = run(&[], &["busybox", "echo", "lost"]);
    command.stdout(
        File::options()
            .write(true)
            .open("/dev/full")
            .expect("/dev/full"),
    );
    let said = "echo: write error: No space left on device\n";
    assert_eq!(end_of(command), (Some(1), String::new(), said.into()));
}

/// Checks that a program's two outputs keep their order where both go to one descriptor of the
/// host.
#[test]
fn both_outputs_keep_their_order_where_they_go_to_one_place() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("both");
    let mut both = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .expect("a file");
    let script = "i=0; while [ $i -lt 200 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";
    let mut command = run(&[], &["/bin/sh", "-c", script]);
    let shared = || both.try_clone().expect("a descriptor");
    let status = command
        .stdout(shared())
        .stderr(shared())
        .status()
        .expect("xtask starts");
    let mut written = String::new();
    both.seek(SeekFrom::Start(0))
        .and_then(|_| both.read_to_string(&mut written))
        .expect("text");
    let expected: String = (0..200).map(|i| format!("out {i}\nerr {i}\n")).collect();
    assert_eq!((status.code(), written), (Some(0), expected));
}

/// Reads no more of its input than the program asks for, in pieces of 64 KB.
#[test]
fn input_that_the_program_does_not_read_stays_where_it_is() {
    let script = r#""$@"; read line; echo "left: $line""#;
    let mut command = Command::new("sh");
    let own = xtask();
    command
        .args(["-c", script, "sh"])
        .arg(own.get_program())
        .args(own.get_args());
    command.args(["run", "--", "busybox", "true"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("sh starts");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(b"one\ntwo\n")
        .expect("sh reads");
    let output = child.wait_with_output().expect("its output");
    assert_eq!(text(&output.stdout), "left: one\n");
}

/// Checks a reader that pauses: the program waits, and neither a file nor memory grows without
/// bound.
#[test]
fn a_slow_reader_holds_the_program_and_loses_nothing() {
    let mut command = run(&[], &["busybox", "seq", "300000"]);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .expect("xtask starts");
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut first = [0; 2];
    stdout.read_exact(&mut first).expect("output");
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(
        child.try_wait().expect("wait").is_none(),
        "it waits for its reader"
    );
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("text");
    let expected: String = (1..=300_000).map(|i| format!("{i}\n")).collect();
    assert!(text(&first) + &rest == expected, "{} bytes", rest.len());
    assert!(child.wait().expect("wait").success());
}

#[test]
fn arguments_and_environment_are_as_long_as_linux_allows() {
    let long = "x".repeat(100_000);
    let variable = format!("LONG={long}");
    let mut program = vec![
        "/bin/sh",
        "-c",
        r#"for a; do echo ${#a}; done; echo ${#LONG}"#,
        "sh",
    ];
    program.extend([long.as_str(); 5]);
    let (code, stdout, stderr) = end_of(run(&["--env", &variable], &program));
    assert_eq!((code, stdout), (Some(0), "100000\n".repeat(6)), "{stderr}");
}

#[test]
fn programs_are_found_as_a_shell_finds_them() {
    let (code, stdout, _) = end_of(run(&["--workdir", "/usr"], &["../bin/busybox", "pwd"]));
    assert_eq!((code, stdout.as_str()), (Some(0), "/usr\n"));
    let (code, stdout, _) = end_of(run(
        &["--env", "PATH=/none:/bin", "--env", "HOME=/h"],
        &["busybox", "env"],
    ));
    assert_eq!(
        (code, stdout.as_str()),
        (Some(0), "PATH=/none:/bin\nHOME=/h\n")
    );
    for (program, options, code, word) in [
        ("nonesuch", &[][..], 127, "not found in PATH"),
        ("/usr", &[], 126, "is a folder"),
        ("busybox", &["--workdir", "/none"], 125, "--workdir"),
        ("busybox", &["--user", "nobody-here"], 125, "--user"),
    ] {
        let (ended, stdout, stderr) = end_of(run(options, &[program]));
        assert_eq!((ended, stdout.as_str()), (Some(code), ""), "{stderr}");
        assert!(
            stderr.contains(word) && stderr.lines().count() == 1,
            "{stderr}"
        );
    }
}

/// The disk has no `/etc/passwd`: numbers need none.
#[test]
fn a_program_runs_as_the_user_that_is_asked_for() {
    let script = "id -u; id -g; echo $HOME; >/file";
    let (code, stdout, stderr) = end_of(run(
        &["--user", "1000:44"],
        &["busybox", "sh", "-c", script],
    ));
    assert_eq!((code, stdout.as_str()), (Some(1), "1000\n44\n/\n"));
    assert!(stderr.contains("Permission denied"), "{stderr}");
}

#[test]
fn wrong_options_are_refused_at_once_with_the_remedy() {
    let long = format!("/tmp/{}", "x".repeat(90));
    for (option, value, word) in [
        ("--boot", "memory:foo", "workers"),
        ("--boot", "all:policy=clock", "polling"),
        ("--ways", "3", "4..=64"),
        ("--memory", "64M", "at least 96M"),
        ("--workdir", "relative", "absolute"),
        ("--env", "NOTHING", "NAME=VALUE"),
    ] {
        let (code, _, stderr) = end_of(run(&[option, value], &["busybox", "true"]));
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(word), "{stderr}");
    }
    let mut command = run(&[], &["busybox", "true"]);
    command.env("TMPDIR", long);
    let (code, _, stderr) = end_of(command);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("TMPDIR"), "{stderr}");
}

/// A table comes only where it is asked for; a crash leaves one line.
#[test]
fn standard_error_is_the_program_s_alone() {
    let (_, _, stderr) = end_of(run(&[], &["/bin/sh", "-c", "echo mine >&2; exit 3"]));
    assert_eq!(stderr, "mine\n");
    let (_, _, stderr) = end_of(run(&["--stats"], &["busybox", "true"]));
    assert!(stderr.contains("nr_pgfault"), "{stderr}");
    let run = Run::new(&[]).add(testbed_tests::program("work"), "/bin/work");
    let ran = run.run(&["/bin/work", "null"]);
    assert_eq!(ran.code, Some(139), "{}", ran.stderr);
    let line =
        "the program was ended by SIGSEGV (invalid memory access) at address 0x0, instruction 0x";
    assert!(
        ran.stderr.contains(line) && ran.stderr.lines().count() == 1,
        "{}",
        ran.stderr
    );
}
