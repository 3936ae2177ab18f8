//! Unmodified programs: byte for byte the same output as on the host.

use std::path::PathBuf;
use std::sync::OnceLock;

use testbed_tests::{Ran, Run, native, program};

const TEXT: &str = "/data/text";

/// Makes a text of a few hundred kilobytes, the same on every machine.
fn text() -> &'static PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let mut state = 7u32;
        let mut text = String::new();
        for line in 0..20_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            text += &format!("{} {:x} words\n", state % 5_000, line % 97);
        }
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("text");
        std::fs::write(&path, text).expect("write");
        path
    })
}

/// Runs busybox on the cluster and here, on the same file.
fn busybox(options: &[&str], args: &[&str]) -> (Ran, Ran) {
    let text = text();
    let here = native(
        program("busybox"),
        &[args, &[text.to_str().expect("text")]].concat(),
        b"",
    );
    let there = Run::new(options)
        .add(text, TEXT)
        .run(&[&["/bin/busybox"], args, &[TEXT]].concat());
    (there, here)
}

/// Checks that a tool gives the same exit status and output on the cluster as on the host, but for
/// the name of its file, which lies elsewhere there.
fn assert_same(there: &Ran, here: &Ran) {
    let name = text().to_str().expect("text").as_bytes();
    let mut expected = here.stdout.clone();
    if let Some(at) = expected
        .windows(name.len())
        .position(|window| window == name)
    {
        expected.splice(at..at + name.len(), TEXT.bytes());
    }
    assert_eq!(there.code, here.code, "{}", there.stderr);
    assert!(
        there.stdout == expected,
        "the output differs:\n{}",
        there.stderr
    );
}

#[test]
fn busybox_sha256sum() {
    let (there, here) = busybox(&["--pcache", "4M"], &["sha256sum"]);
    assert_same(&there, &here);
}

#[test]
fn busybox_wc() {
    let (there, here) = busybox(&["--pcache", "4M"], &["wc"]);
    assert_same(&there, &here);
}

#[test]
fn busybox_sort_unique() {
    let (there, here) = busybox(&["--pcache", "4M"], &["sort", "-u"]);
    assert_same(&there, &here);
}

#[test]
fn busybox_bzip2() {
    let (there, here) = busybox(&["--pcache", "4M"], &["bzip2", "-c"]);
    assert_same(&there, &here);
}

#[test]
fn a_second_glibc_program() {
    let script = "for ((i = 0; i < 20000; i++)); do ((sum += i * i % 7)); a[i % 500]=$sum; done; echo ${a[*]}; exit 3";
    let here = native(program("bash"), &["-c", script], b"");
    let there = Run::new(&["--pcache", "4M"])
        .add(program("bash"), "/bin/bash")
        .run(&["/bin/bash", "-c", script]);
    assert_eq!(here.code, Some(3));
    assert_eq!(
        (there.code, there.stdout),
        (here.code, here.stdout),
        "{}",
        there.stderr
    );
}

#[test]
fn a_musl_program_that_sorts_more_than_the_cache_holds() {
    let here = native(program("work"), &["sort", "6"], b"");
    let there = Run::new(&["--pcache", "4M"])
        .add(program("work"), "/bin/work")
        .run(&["/bin/work", "sort", "6"]);
    assert_eq!(here.code, Some(0));
    assert_eq!(
        (there.code, there.stdout),
        (here.code, here.stdout),
        "{}",
        there.stderr
    );
}

/// Memory lost behind a larger mapping, page tables that never came back, a walk over 64 TB of
/// nothing.
#[test]
fn memory_keeps_linux_s_promises() {
    let here = native(program("memory"), &[], b"");
    let there = Run::new(&["--pcache", "8M"])
        .add(program("memory"), "/bin/memory")
        .run(&["/bin/memory"]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(text(&there.stdout), text(&here.stdout), "{}", there.stderr);
    assert_eq!((there.code, here.code), (Some(0), Some(0)));
}

/// Compares with Linux on one core and on two, with a third of the pages in the cache.
#[test]
fn threads_processes_and_signals_do_what_linux_does() {
    let here = native(program("threads"), &[], b"");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for cpus in ["1", "2"] {
        let there = Run::new(&["--cpus", cpus, "--pcache", "4M"])
            .add(program("threads"), "/bin/threads")
            .run(&["/bin/threads"]);
        assert_eq!(
            text(&there.stdout),
            text(&here.stdout),
            "{cpus}: {}",
            there.stderr
        );
        assert_eq!((there.code, here.code), (Some(0), Some(0)));
    }
}

/// Mutexes with `PTHREAD_PRIO_INHERIT` by glibc, robust ones and condition variables among them,
/// and the calls under them.
#[test]
fn locks_with_priority_inheritance_do_what_linux_does() {
    let here = native(program("priority"), &[], b"");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for cpus in ["1", "2"] {
        let there = Run::new(&["--cpus", cpus, "--pcache", "4M"])
            .add(program("priority"), "/bin/priority")
            .run(&["/bin/priority"]);
        assert_eq!(text(&there.stdout), text(&here.stdout), "{}", there.stderr);
        assert_eq!((there.code, here.code), (Some(0), Some(0)));
    }
}

/// Edges of small calls, each as Linux has it.
#[test]
fn calls_do_what_linux_does() {
    let here = native(program("calls"), &[], b"");
    let there = Run::new(&["--pcache", "4M"])
        .add(program("calls"), "/bin/calls")
        .run(&["/bin/calls"]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(text(&there.stdout), text(&here.stdout), "{}", there.stderr);
    assert_eq!((there.code, here.code), (Some(0), Some(0)));
}

/// Sockets, locks, pipes, files without a name and watches.
#[test]
fn sockets_and_what_goes_with_them_do_what_linux_does() {
    let here = native(program("sockets"), &[], b"");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let there = Run::new(&["--pcache", "8M"])
        .add(program("sockets"), "/bin/sockets")
        .run(&["/bin/sockets"]);
    assert_eq!(text(&there.stdout), text(&here.stdout), "{}", there.stderr);
    assert_eq!((there.code, here.code), (Some(0), Some(0)));
}

/// Shared memory, semaphores and message queues of System V between a process and its children.
#[test]
fn system_v_s_communication_does_what_linux_does() {
    let here = native(program("ipc"), &[], b"");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let there = Run::new(&["--cpus", "2", "--pcache", "4M"])
        .add(program("ipc"), "/bin/ipc")
        .run(&["/bin/ipc"]);
    assert_eq!(text(&there.stdout), text(&here.stdout), "{}", there.stderr);
    assert_eq!((there.code, here.code), (Some(0), Some(0)));
}

/// More threads than cores count in each core's counter, without atomic instructions.
#[test]
fn restartable_sequences_lose_no_count() {
    let here = native(program("rseq"), &[], b"");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for cpus in ["1", "2"] {
        let there = Run::new(&["--cpus", cpus])
            .add(program("rseq"), "/bin/rseq")
            .run(&["/bin/rseq"]);
        assert_eq!(text(&there.stdout), text(&here.stdout), "{}", there.stderr);
        assert_eq!((there.code, here.code), (Some(0), Some(0)));
    }
}

/// Debian's own dynamic programs, several processes at once, and files that they make in `/tmp`.
#[test]
fn a_debian_root_runs_its_own_tools() {
    const SCRIPT: &str = r#"cd /tmp; mkdir a
for i in $(seq 20); do echo "line $i" > a/f$i; done
tar cf a.tar a; gzip a.tar; rm -r a; tar xzf a.tar.gz
cat a/* | sort -k2n | tail -2; find a -type f | wc -l
sha256sum < a/f3; awk 'BEGIN { print 6 * 7 }'; grep -r 'line 7' a
(exit 3); echo $?; kill -9 $BASHPID & wait $!; echo $?
for r in /tmp/root /srv/root; do
  mkdir -p $r/usr; cp -a /bin /lib /lib64 $r
  mkdir -p $r/usr/bin $r/usr/lib64 $r/usr/lib; ls $r
  for f in /bin/bash /bin/cat /bin/pwd $(for p in bash cat; do /lib64/ld-linux-x86-64.so.2 --list /bin/$p; done | grep -o '/[^ ]*'); do
    [ -e $r$f ] || { mkdir -p $r$(dirname $f); cp -L $f $r$f; }
  done
  ln -s ../../../usr/bin/cat $r/c
  printf '#!/bin/bash\necho $0 $1; /c </name; cd usr/../..; pwd -P; /bin/cat /etc/passwd\n' > $r/s
  echo inside $r > $r/name; chmod +x $r/s
  /usr/sbin/chroot $r /s one 2>&1; echo $?
done"#;
    let there = Run::new(&["--root", "trixie", "--cpus", "2", "--pcache", "16M"]).run(&[
        "/bin/bash",
        "-c",
        SCRIPT,
    ]);
    let expected = "line 19\nline 20\n20\n\
        9c60bc932a19cda85d74a5852c20d89262ecdb0ee2e3c28464fd17df0f885439  -\n42\na/f7:line 7\n3\n137\n\
        bin\nlib\nlib64\nusr\n/s one\ninside /tmp/root\n/\ncat: /etc/passwd: No such file or directory\n1\n\
        bin\nlib\nlib64\nusr\n/s one\ninside /srv/root\n/\ncat: /etc/passwd: No such file or directory\n1\n";
    assert_eq!(
        String::from_utf8_lossy(&there.stdout),
        expected,
        "{}",
        there.stderr
    );
    assert_eq!(there.code, Some(0));
}

/// Each program lies elsewhere, unless it was asked not to (`ADDR_NO_RANDOMIZE`); by a seed each
/// run of the cluster has the same places.
#[test]
fn programs_lie_in_random_places_or_in_those_of_a_seed() {
    const SCRIPT: &str = r#"cd /tmp
for i in 1 2; do cat /proc/self/maps > $i; done
for i in 3 4; do /bin/fixed /bin/cat /proc/self/maps > $i; done
cat /proc/sys/kernel/randomize_va_space
for i in 1 2 3 4; do
  awk '!n++ || /heap|stack|vdso|libc/ { printf "%s ", $1 } END { print "" }' $i
done"#;
    let run = |options: &[&str]| {
        let root = ["--root", "trixie", "--cpus", "2", "--pcache", "16M"];
        let there = Run::new(&[&root[..], options].concat())
            .add(program("fixed"), "/bin/fixed")
            .run(&["/bin/bash", "-c", SCRIPT]);
        assert_eq!(there.code, Some(0), "{}", there.stderr);
        let text = String::from_utf8(there.stdout).expect("text");
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let by_seed = run(&["--boot", "processor:aslr=7"]);
    let [setting, one, two, three, four] = &by_seed[..] else {
        panic!("not five lines: {by_seed:?}");
    };
    assert_eq!(setting, "2");
    assert!(one != two && one != three, "{by_seed:?}");
    assert_eq!(three, four);
    assert!(three.starts_with("555555400000-"), "{three}");
    assert_eq!(run(&["--boot", "processor:aslr=7"]), by_seed);
    let random = run(&[]);
    assert_eq!(random[3], *three);
    assert_ne!(random[1], *one);
}

/// Debian's compiler, build tool, databases and version control, with several processes at once.
/// Its packages are some 150 MB, so it runs when asked for: `cargo test -p testbed_tests --test
/// programs -- --ignored`.
#[test]
#[ignore = "fetches a compiler; see docs/testing.md"]
fn debian_s_tools_build_store_and_keep_versions() {
    const SCRIPT: &str = r#"cd /tmp
printf '#include <stdio.h>\nint main(void) { puts("compiled"); return 7; }\n' > a.c
gcc -O1 -o a a.c && ./a; echo $?
perl -e 'my %h; $h{$_ % 7}++ for 1..1000; print join(",", map {"$_=$h{$_}"} sort keys %h), "\n"'
sqlite3 t.db "create table t(a int, b text);
with recursive n(x) as (select 1 union all select x+1 from n where x<20000) insert into t select x, 'row '||x from n;
select count(*), sum(a) from t; pragma integrity_check;"
mkdir p; cd p; printf 'all: a b c d\n%%:\n\techo $@ > $@\n' > Makefile; make -s -j4; cat a b c d | tr '\n' ' '; cd ..
git init -q r; cd r; git config user.email a@b; git config user.name n; seq 100 > f; git add f; git commit -qm one; cd ..
git clone -q r s; wc -l < s/f; git -C s fsck
tar cJf x.tar.xz p; tar tJf x.tar.xz | sort | head -2"#;
    let packages = "gcc,libc6-dev,perl,sqlite3,git,make,xz-utils";
    let root = ["--root", "trixie", "--packages", packages];
    let machine = ["--cpus", "2", "--memory", "2G", "--pcache", "64M"];
    let there = Run::new(&[&root[..], &machine[..]].concat()).run(&["/bin/bash", "-c", SCRIPT]);
    let expected = "compiled\n7\n0=142,1=143,2=143,3=143,4=143,5=143,6=143\n20000|200010000\nok\n\
        a b c d 100\np/\np/Makefile\n";
    assert_eq!(
        String::from_utf8_lossy(&there.stdout),
        expected,
        "{}",
        there.stderr
    );
}

/// Each of the 5,120 sets may have a line on its way to M: far more than FIT carries at once.
#[test]
fn write_backs_wait_for_room_where_a_cache_has_many_sets() {
    let run = Run::new(&["--pcache", "80M", "--ways", "4"]).add(program("work"), "/bin/work");
    let ran = run.run(&["/bin/work", "walk", "120"]);
    assert_eq!(
        String::from_utf8_lossy(&ran.stdout),
        "30720 pages, 0 wrong\n",
        "{}",
        ran.stderr
    );
}

/// M on two cores with a task each that polls and runs handlers, S with workers and interrupts, P
/// polling for good.
#[test]
fn how_components_poll_and_who_runs_their_handlers_changes_no_output() {
    let boot = [
        "memory:pollers=2",
        "memory:workers=0",
        "storage:workers=4",
        "storage:polling=interrupt",
        "processor:polling=busy",
    ];
    let options: Vec<&str> = boot.iter().flat_map(|option| ["--boot", option]).collect();
    let (there, here) = busybox(
        &[&["--pcache", "4M"], &options[..]].concat(),
        &["sort", "-u"],
    );
    assert_same(&there, &here);
}

/// The emulator keeps translations of code that a device has overwritten; libos makes it look
/// again.
#[test]
fn code_that_came_by_rdma_runs_as_it_is() {
    let run = Run::new(&["--pcache", "1M"]).add(program("work"), "/bin/work");
    let ran = run.run(&["/bin/work", "code", "1000"]);
    assert_eq!(
        String::from_utf8_lossy(&ran.stdout),
        "1000 functions, 0 wrong\n",
        "{}",
        ran.stderr
    );
}

#[test]
fn memory_and_registers_hold_through_a_cache_of_small_sets() {
    let here = native(program("stress"), &[], b"");
    let there = Run::new(&["--pcache", "1M", "--ways", "4"])
        .add(program("stress"), "/bin/stress")
        .run(&["/bin/stress"]);
    assert_eq!(here.code, Some(0));
    assert_eq!(
        (there.code, String::from_utf8_lossy(&there.stdout)),
        (here.code, String::from_utf8_lossy(&here.stdout)),
        "{}",
        there.stderr
    );
    assert!(
        there.sum(&["counter", "nr_pcache_eviction_dirty"]) > 256,
        "{}",
        there.stderr
    );
}

#[test]
fn folders_links_and_times_are_the_originals() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("folder");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(folder.join("sub/deep")).expect("a folder");
    std::fs::write(folder.join("sub/deep/a file"), "text\n").expect("a file");
    std::os::unix::fs::symlink("sub/deep", folder.join("link")).expect("a link");
    let name = folder.to_str().expect("text");
    let walk = format!(
        "cd {name}/link; pwd; pwd -P; cd -P ..; pwd; read line < 'deep/a file'; echo $line; echo */*"
    );
    let (file, sub) = (format!("{name}/sub/deep/a file"), format!("{name}/sub"));
    let status = ["stat", "-c", "%n %Y %f", &file, &sub];
    for args in [&["sh", "-c", &walk][..], &status] {
        let here = native(program("busybox"), args, b"");
        let there = Run::new(&[])
            .add(&folder, name)
            .run(&[&["/bin/busybox"], args].concat());
        assert_eq!(
            (there.code, String::from_utf8_lossy(&there.stdout)),
            (here.code, String::from_utf8_lossy(&here.stdout)),
            "{}",
            there.stderr
        );
    }
}

#[test]
fn input_passes_through_to_both_outputs() {
    let text = std::fs::read(text()).expect("the text");
    let here = native(program("work"), &["echo"], &text);
    let there = Run::new(&[])
        .add(program("work"), "/bin/work")
        .input(&text)
        .run(&["/bin/work", "echo"]);
    assert_eq!(there.code, Some(0), "{}", there.stderr);
    assert!(there.stdout == here.stdout, "{}", there.stderr);
    assert!(
        there.stderr.contains(here.stderr.trim()),
        "{}",
        there.stderr
    );
}

#[test]
fn the_trace_shows_what_arguments_lead_to() {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("trace.txt");
    let option = format!("--strace={}", file.display());
    let there =
        Run::new(&[&option]).run(&["/bin/sh", "-c", "ls -l /bin/busybox; (exit 3); exit 4"]);
    assert_eq!(there.code, Some(4), "{}", there.stderr);
    let text = std::fs::read_to_string(&file).expect("the file");
    let size = std::fs::metadata(program("busybox"))
        .expect("busybox")
        .len();
    for part in [
        &format!("\"/bin/busybox\", {{st_mode=S_IFREG|0755, st_size={size}, ...}}"),
        "arch_prctl(ARCH_SET_FS, 0x",
        "uname({sysname=\"Linux\", nodename=\"tessera\", ...}) = 0 <",
        "[{WIFEXITED(s) && WEXITSTATUS(s) == 3}], 0, NULL) = ",
        "+++ exited with 3 +++",
        "-1 ENOTTY (Inappropriate ioctl for device)",
        "rt_sigaction(SIGQUIT, NULL, {sa_handler=SIG_DFL, sa_mask=[], sa_flags=0",
        "100.00 ",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn snapshots_name_what_runs() {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("top.tsv");
    let option = format!("--top={}", file.display());
    let there = Run::new(&[&option]).run(&[
        "/bin/sh",
        "-c",
        "/bin/busybox sleep 4 & /bin/busybox sleep 5 & wait",
    ]);
    assert_eq!(there.code, Some(0), "{}", there.stderr);
    let text = std::fs::read_to_string(&file).expect("the file");
    let snapshots: Vec<_> = text.split_inclusive("\nend\n").collect();
    assert!(snapshots.len() >= 2, "a second passes between two:\n{text}");
    let names = |snapshot: &str| -> Vec<String> {
        let processes = snapshot
            .lines()
            .filter(|line| line.starts_with("process\t"));
        let names = processes.filter_map(|line| line.split('\t').next_back());
        names.map(str::to_owned).collect()
    };
    // The run's end may cut the last.
    for snapshot in &snapshots[..snapshots.len() - 1] {
        assert!(snapshot.ends_with("\nend\n"), "it is whole:\n{snapshot}");
        assert!(snapshot.contains("counter\tnr_pcache_lines\t2048\n"));
    }
    // Some come before the programs have begun, or after they have ended.
    let both = snapshots.iter().any(|snapshot| {
        let names = names(snapshot);
        names.len() == 3 && names.iter().filter(|name| *name == "busybox").count() == 2
    });
    assert!(
        both,
        "no snapshot has the shell and its two programs:\n{text}"
    );
}

#[test]
fn arguments_and_environment_arrive_as_they_were_given() {
    let run = Run::new(&["--env", "TESSERA_TEST=a b=%20"]).add(program("work"), "/bin/work");
    let there = run.run(&["/bin/work", "args", "a b", "", "100%", "--", "ü"]);
    assert_eq!(
        String::from_utf8_lossy(&there.stdout),
        "[a b][][100%][--][ü]a b=%20\n",
        "{}",
        there.stderr
    );
}

#[test]
fn the_cache_size_changes_counters_but_no_output() {
    let sizes = ["4M", "16M", "64M"];
    let runs = sizes.map(|size| {
        Run::new(&["--pcache", size])
            .add(program("work"), "/bin/work")
            .run(&["/bin/work", "walk", "24"])
    });
    for run in &runs {
        assert_eq!(
            String::from_utf8_lossy(&run.stdout),
            "6144 pages, 0 wrong\n",
            "{}",
            run.stderr
        );
    }
    let evictions = runs
        .each_ref()
        .map(|run| run.sum(&["counter", "nr_pcache_eviction_triggered"]));
    let fills = runs
        .each_ref()
        .map(|run| run.sum(&["counter", "nr_pcache_fill_from_memory"]));
    let rpcs = runs.each_ref().map(|run| run.sum(&["rpc"]));
    assert!(
        evictions[0] > 6144,
        "a cache of a sixth must evict: {evictions:?}"
    );
    assert_eq!(evictions[2], 0, "a cache that holds all must not");
    assert!(fills[0] > 1000 + fills[2], "fills {fills:?}");
    assert!(
        rpcs[0] <= rpcs[2] + 8,
        "RPCs {rpcs:?} grow with fills {fills:?}"
    );
}

#[test]
fn the_demonstration_matches_and_is_quick() {
    let ran = Run::new(&[]).run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("match: all "), "{}", ran.stderr);
}

/// No machine has a virtio device: P's streams go over a serial port, and S's disk is NVMe.
#[test]
fn a_program_runs_on_machines_without_virtio() {
    let input: Vec<u8> = (0..100_000_u32)
        .map(|at| (at * 7 / 3).to_le_bytes()[0])
        .collect();
    let script = "sha256sum /bin/busybox; tee /tmp/copy; sha256sum /tmp/copy >&2; exit 7";
    let run = |options: &[&str]| {
        Run::new(options)
            .input(&input)
            .run(&["/bin/busybox", "sh", "-c", script])
    };
    let usual = run(&[]);
    let ran = run(&["--streams", "serial", "--disk-device", "nvme"]);
    assert_eq!((ran.code, usual.code), (Some(7), Some(7)), "{}", ran.stderr);
    assert!(ran.stdout == usual.stdout && ran.stdout.ends_with(&input));
    let sum = |stderr: &str| {
        stderr
            .lines()
            .find(|line| line.ends_with("/tmp/copy"))
            .map(str::to_owned)
    };
    assert!(sum(&ran.stderr).is_some(), "{}", ran.stderr);
    assert_eq!(sum(&ran.stderr), sum(&usual.stderr));
}
