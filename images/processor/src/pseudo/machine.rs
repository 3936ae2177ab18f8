//! `/proc`: what is told of the machine.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use messages::CHUNK_SIZE;

use super::{Entry, FOLDER, LINK, Name, REGULAR, Step, Text, missing, number};
use crate::error::Result;
use crate::kernel::{MAX_PID, MAX_THREADS};
use crate::locks::{LockInfo, Mode, Owner};
use crate::pipe::USER_PAGES;
use crate::platform::{Memory, Platform};
use crate::process::Node;
use crate::syscall::{device_of, device_parts};
use crate::thread::Thread;

/// A file that is made anew each time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    CpuInfo,
    HostName,
    LoadAvg,
    Locks,
    MemInfo,
    RandomizeVaSpace,
    Stat,
    Uptime,
    Uuid,
    FileNr,
}

const FILES: [(&[u8], Kind); 6] = [
    (b"cpuinfo", Kind::CpuInfo),
    (b"loadavg", Kind::LoadAvg),
    (b"locks", Kind::Locks),
    (b"meminfo", Kind::MemInfo),
    (b"stat", Kind::Stat),
    (b"uptime", Kind::Uptime),
];

const CONSTANTS: [(&[u8], &[u8]); 8] = [
    (
        b"cgroups",
        b"#subsys_name\thierarchy\tnum_cgroups\tenabled\n",
    ),
    (b"cmdline", b"tessera\n"),
    (
        b"devices",
        b"Character devices:\n  1 mem\n  5 /dev/tty\n136 pts\n\nBlock devices:\n254 virtblk\n",
    ),
    (b"diskstats", b""),
    (
        b"filesystems",
        b"nodev\tproc\nnodev\tsysfs\nnodev\tdevtmpfs\nnodev\ttmpfs\n\text4\n",
    ),
    (b"partitions", b"major minor  #blocks  name\n\n"),
    (
        b"swaps",
        b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
    ),
    (
        b"version",
        b"Linux version 6.1.0-tessera (tessera) #1 SMP Tessera\n",
    ),
];

/// `/proc/PID/mounts`.
pub(super) const MOUNTS: &[u8] = b"/dev/root / ext4 ro,relatime 0 0\n\
proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0\n\
sysfs /sys sysfs ro,nosuid,nodev,noexec,relatime 0 0\n\
devtmpfs /dev devtmpfs rw,nosuid 0 0\n\
tmpfs /dev/shm tmpfs rw,nosuid,nodev 0 0\n\
tmpfs /tmp tmpfs rw 0 0\n\
tmpfs /run tmpfs rw,nosuid,nodev 0 0\n";

/// `/proc/PID/mountinfo`.
pub(super) const MOUNTINFO: &[u8] = b"1 0 254:0 / / ro,relatime - ext4 /dev/root ro\n\
2 1 0:24 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw\n\
3 1 0:24 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro\n\
4 1 0:24 / /dev rw,nosuid - devtmpfs devtmpfs rw\n\
5 4 0:23 / /dev/shm rw,nosuid,nodev - tmpfs tmpfs rw\n\
6 1 0:23 / /tmp rw - tmpfs tmpfs rw\n\
7 1 0:23 / /run rw,nosuid,nodev - tmpfs tmpfs rw\n";

/// `/proc/sys`: the settings that programs read, none of which can be changed.
const SETTINGS: [(&str, &[u8]); 24] = [
    ("fs/file-max", b"1048576\n"),
    ("fs/nr_open", b"65536\n"),
    ("fs/pipe-max-size", b"1048576\n"),
    ("fs/pipe-user-pages-hard", b"0\n"),
    ("fs/pipe-user-pages-soft", b"16384\n"),
    ("fs/inotify/max_queued_events", b"16384\n"),
    ("fs/inotify/max_user_instances", b"128\n"),
    ("fs/inotify/max_user_watches", b"65536\n"),
    ("kernel/cap_last_cap", b"40\n"),
    ("kernel/core_pattern", b"core\n"),
    ("kernel/ngroups_max", b"65536\n"),
    ("kernel/osrelease", b"6.1.0-tessera\n"),
    ("kernel/ostype", b"Linux\n"),
    ("kernel/overflowgid", b"65534\n"),
    ("kernel/overflowuid", b"65534\n"),
    ("kernel/pid_max", b"32768\n"),
    ("kernel/random/entropy_avail", b"256\n"),
    ("kernel/random/poolsize", b"256\n"),
    ("kernel/threads-max", b"4096\n"),
    ("kernel/version", b"#1 SMP Tessera\n"),
    ("vm/max_map_count", b"65530\n"),
    ("vm/mmap_min_addr", b"65536\n"),
    ("vm/overcommit_memory", b"2\n"),
    ("vm/swappiness", b"60\n"),
];

const _: () = assert!(USER_PAGES == 16_384);
const _: () = assert!(MAX_PID == 32_768 && MAX_THREADS == 4096);

/// Makes the text of `/proc/locks` (Linux `fs/locks.c`, `lock_get_status`).
fn locks(list: &[LockInfo]) -> String {
    let (mut text, mut number) = (String::new(), 0);
    for told in list {
        number += u32::from(!told.waits);
        let waits = if told.waits { " ->" } else { "" };
        let (kind, pid) = match told.range.map(|lock| lock.owner) {
            Some(Owner::Process(pid)) => ("POSIX ", pid.cast_signed()),
            Some(Owner::File(_)) => ("OFDLCK", -1),
            None => ("FLOCK ", told.pid.cast_signed()),
        };
        let mode = match told.mode {
            Mode::Read => "READ",
            Mode::Write => "WRITE",
        };
        let [major, minor] = device_parts(device_of(told.file));
        let start = told.range.map_or(0, |lock| lock.range.start);
        let end = match told.range.map(|lock| lock.range.end) {
            None | Some(u64::MAX) => "EOF".into(),
            Some(end) => format!("{}", end - 1),
        };
        let _ = writeln!(
            text,
            "{number}:{waits} {kind} ADVISORY  {mode} {pid} {major:02x}:{minor:02x}:{} {start} {end}",
            told.file
        );
    }
    text
}

impl<N: Node> Thread<N> {
    /// Walks `/proc`.
    pub(super) fn proc(&self, parts: &[&[u8]]) -> Result<Step<N>> {
        let link = |target: String, rest: &[&[u8]]| Ok(Step::Link(target.into_bytes(), rest.len()));
        match parts {
            [] => Ok(Step::Entry(Entry::Folder(self.proc_names()))),
            [b"self", rest @ ..] => link(format!("{}", self.pid()), rest),
            [b"thread-self", rest @ ..] => {
                link(format!("{}/task/{}", self.pid(), self.tid()), rest)
            }
            [b"mounts", rest @ ..] => link("self/mounts".into(), rest),
            [b"net", rest @ ..] => link("self/net".into(), rest),
            [b"sys", rest @ ..] => self.proc_sys(rest),
            [first, rest @ ..] => {
                if let Some(pid) = number(first) {
                    return self.proc_pid(pid, rest);
                }
                if let Some((_, text)) = CONSTANTS.iter().find(|(name, _)| name == first) {
                    return Step::constant(text);
                }
                match FILES.iter().find(|(name, _)| name == first) {
                    Some((_, kind)) if rest.is_empty() => {
                        Ok(Step::Entry(Entry::Text(Text::Machine(*kind))))
                    }
                    _ => missing(),
                }
            }
        }
    }

    fn proc_names(&self) -> Vec<Name> {
        let mut names: Vec<Name> = Vec::new();
        for pid in self.node.kernel().pids() {
            names.push((format!("{pid}").into_bytes(), FOLDER));
        }
        names.push((b"sys".to_vec(), FOLDER));
        let links: [&[u8]; 4] = [b"self", b"thread-self", b"mounts", b"net"];
        names.extend(links.map(|name| (name.to_vec(), LINK)));
        names.extend(FILES.iter().map(|(name, _)| (name.to_vec(), REGULAR)));
        names.extend(CONSTANTS.iter().map(|(name, _)| (name.to_vec(), REGULAR)));
        names
    }

    /// Walks `/proc/sys`.
    fn proc_sys(&self, parts: &[&[u8]]) -> Result<Step<N>> {
        let made: [(&str, Kind); 5] = [
            ("fs/file-nr", Kind::FileNr),
            ("kernel/hostname", Kind::HostName),
            ("kernel/random/boot_id", Kind::Uuid),
            ("kernel/random/uuid", Kind::Uuid),
            ("kernel/randomize_va_space", Kind::RandomizeVaSpace),
        ];
        let mut path = String::new();
        for part in parts {
            let Ok(part) = core::str::from_utf8(part) else {
                return missing();
            };
            path.push_str(part);
            path.push('/');
        }
        let file = path.trim_end_matches('/');
        if let Some((_, text)) = SETTINGS.iter().find(|(name, _)| *name == file) {
            return Step::constant(text);
        }
        if let Some((_, kind)) = made.iter().find(|(name, _)| *name == file) {
            return Ok(Step::Entry(Entry::Text(Text::Machine(*kind))));
        }
        let all = SETTINGS
            .iter()
            .map(|(name, _)| *name)
            .chain(made.iter().map(|(name, _)| *name));
        let mut names: Vec<Name> = Vec::new();
        for rest in all.filter_map(|name| name.strip_prefix(&*path)) {
            let (name, kind) = match rest.split_once('/') {
                Some((folder, _)) => (folder, FOLDER),
                None => (rest, REGULAR),
            };
            if !names.iter().any(|(known, _)| known == name.as_bytes()) {
                names.push((name.as_bytes().to_vec(), kind));
            }
        }
        if names.is_empty() {
            missing()
        } else {
            Ok(Step::Entry(Entry::Folder(names)))
        }
    }

    /// Makes the text of a file of the machine.
    pub(super) async fn machine_text(&self, kind: Kind) -> Result<Vec<u8>> {
        let text = match kind {
            Kind::CpuInfo => self.cpu_info(),
            Kind::HostName => {
                let name = self.node.kernel().host_name.lock().clone();
                return Ok([&name[..], b"\n"].concat());
            }
            Kind::LoadAvg => {
                let (running, all) = self.node.kernel().count_threads();
                let last = self.node.kernel().last_id();
                format!("0.00 0.00 0.00 {running}/{all} {last}\n")
            }
            Kind::Locks => locks(&self.node.kernel().locks.list()),
            Kind::MemInfo => self.memory_info().await?,
            Kind::RandomizeVaSpace => {
                let random = self.node.kernel().layouts.are_random();
                if random { "2\n" } else { "0\n" }.into()
            }
            Kind::Stat => self.machine_stat(),
            Kind::Uptime => {
                let up = self.now().nanos;
                let cores = self.node.cores() as u64;
                let idle =
                    (up * cores).saturating_sub(self.node.kernel().cores.busy(self.node.cores()));
                let show = |nanos: u64| {
                    format!("{}.{:02}", nanos / 1_000_000_000, nanos / 10_000_000 % 100)
                };
                format!("{} {}\n", show(up), show(idle))
            }
            Kind::Uuid => {
                let mut bytes = [0; 16];
                self.node.platform().random(&mut bytes);
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                format!(
                    "{}-{}-{}-{}-{}\n",
                    &hex[..8],
                    &hex[8..12],
                    &hex[12..16],
                    &hex[16..20],
                    &hex[20..]
                )
            }
            Kind::FileNr => "0\t0\t1048576\n".into(),
        };
        Ok(text.into_bytes())
    }

    /// Makes the text of `cpuinfo`, as far as programs look for it.
    fn cpu_info(&self) -> String {
        let mut text = String::new();
        let count = self.node.cores();
        let facts = self.node.platform().cpu();
        for core in 0..count {
            let _ = write!(
                text,
                "processor\t: {core}\nvendor_id\t: {}\ncpu family\t: {}\nmodel\t\t: {}\nmodel name\t: {}\nstepping\t: {}\n\
                 cpu MHz\t\t: {}.000\nphysical id\t: 0\nsiblings\t: {count}\ncore id\t\t: {core}\ncpu cores\t: {count}\n\
                 fpu\t\t: yes\nflags\t\t: {}\nclflush size\t: 64\ncache_alignment\t: 64\n\
                 address sizes\t: 40 bits physical, 48 bits virtual\n\n",
                facts.vendor,
                facts.family,
                facts.model,
                facts.name,
                facts.stepping,
                facts.megahertz,
                facts.flags
            );
        }
        text
    }

    /// Makes the text of `meminfo`: M's memory, as programs' pages are there. What no peer was
    /// promised counts as free.
    async fn memory_info(&self) -> Result<String> {
        let (total, free) = self.memory_of_all().await?;
        let cache = self.node.cache().geometry().usable_bytes();
        let committed = self.node.supply().committed() * messages::PAGE_SIZE;
        let mut text = String::new();
        for (name, bytes) in [
            ("MemTotal", total),
            ("MemFree", free),
            ("MemAvailable", free),
            ("Buffers", 0),
            ("Cached", cache.min(total - free)),
            ("SwapCached", 0),
            ("Active", total - free),
            ("Inactive", 0),
            ("SwapTotal", 0),
            ("SwapFree", 0),
            ("Dirty", 0),
            ("Writeback", 0),
            ("AnonPages", total - free),
            ("Mapped", 0),
            ("Shmem", 0),
            ("Slab", 0),
            ("CommitLimit", total),
            ("Committed_AS", committed),
            ("VmallocTotal", 0),
            ("VmallocUsed", 0),
        ] {
            let _ = writeln!(text, "{:<16}{:>8} kB", format!("{name}:"), bytes / 1024);
        }
        text.push_str(
            "HugePages_Total:       0\nHugePages_Free:        0\nHugepagesize:       2048 kB\n",
        );
        Ok(text)
    }

    /// Returns M's memory, and what of it can still be had, in bytes.
    pub(crate) async fn memory_of_all(&self) -> Result<(u64, u64)> {
        let capacity = self.node.memory().capacity().await?;
        let total = u64::from(capacity.total) * CHUNK_SIZE;
        Ok((total, (u64::from(capacity.free) * CHUNK_SIZE).min(total)))
    }

    fn machine_stat(&self) -> String {
        const TICK_NANOS: u64 = 10_000_000;
        let (up, kernel) = (self.now().nanos, self.node.kernel());
        let line = |name: &str, busy: u64, up: u64| {
            let (busy, idle) = (busy / TICK_NANOS, up.saturating_sub(busy) / TICK_NANOS);
            format!("{name} {busy} 0 0 {idle} 0 0 0 0 0 0\n")
        };
        let count = self.node.cores();
        let mut text = line("cpu ", kernel.cores.busy(count), up * count as u64);
        for core in 0..count {
            text.push_str(&line(&format!("cpu{core}"), kernel.cores.busy_of(core), up));
        }
        let (running, _) = kernel.count_threads();
        let booted = self.node.platform().wall_clock().as_secs() - up / 1_000_000_000;
        let _ = write!(
            text,
            "intr 0\nctxt 0\nbtime {booted}\nprocesses {}\nprocs_running {running}\nprocs_blocked 0\nsoftirq 0\n",
            kernel.last_id()
        );
        text
    }
}
