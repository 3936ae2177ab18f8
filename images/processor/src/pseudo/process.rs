//! `/proc/PID`: what is told of a process (Linux `fs/proc/`, `Documentation/filesystems/proc.rst`).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write as _;

use messages::PAGE_SIZE;
use pcache::Rights;

use super::{Entry, FOLDER, LINK, Name, REGULAR, Step, Text, missing, number};
use crate::error::{Result, errno};
use crate::files::{Kind as FileKind, OpenFile};
use crate::limits::{INFINITY, Limit};
use crate::mm::Heap;
use crate::mm::vma::{Backing, Vmas};
use crate::process::{Node, Process};
use crate::thread::{Shared, Thread};

/// A file of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    CmdLine,
    Comm,
    Environ,
    Io,
    Limits,
    Maps,
    Personality,
    OomScoreAdj,
    Smaps,
    SmapsRollup,
    Stat,
    Statm,
    Status,
}

/// The files that are made anew each time, by name.
const FILES: [(&[u8], Kind); 13] = [
    (b"cmdline", Kind::CmdLine),
    (b"comm", Kind::Comm),
    (b"environ", Kind::Environ),
    (b"io", Kind::Io),
    (b"limits", Kind::Limits),
    (b"maps", Kind::Maps),
    (b"oom_score_adj", Kind::OomScoreAdj),
    (b"personality", Kind::Personality),
    (b"smaps", Kind::Smaps),
    (b"smaps_rollup", Kind::SmapsRollup),
    (b"stat", Kind::Stat),
    (b"statm", Kind::Statm),
    (b"status", Kind::Status),
];

/// The files that always say the same.
const CONSTANTS: [(&[u8], &[u8]); 7] = [
    (b"cgroup", b"0::/\n"),
    (b"loginuid", b"4294967295"),
    (b"mountinfo", super::machine::MOUNTINFO),
    (b"mounts", super::machine::MOUNTS),
    (b"oom_score", b"0\n"),
    (b"sessionid", b"4294967295"),
    (b"wchan", b"0"),
];

/// Clock ticks a second (`USER_HZ`).
const TICK_NANOS: u64 = 10_000_000;

/// Names of limits, with their units, in the order of their numbers.
const LIMITS: [(&str, &str); 16] = [
    ("Max cpu time", "seconds"),
    ("Max file size", "bytes"),
    ("Max data size", "bytes"),
    ("Max stack size", "bytes"),
    ("Max core file size", "bytes"),
    ("Max resident set", "bytes"),
    ("Max processes", "processes"),
    ("Max open files", "files"),
    ("Max locked memory", "bytes"),
    ("Max address space", "bytes"),
    ("Max file locks", "locks"),
    ("Max pending signals", "signals"),
    ("Max msgqueue size", "bytes"),
    ("Max nice priority", ""),
    ("Max realtime priority", ""),
    ("Max realtime timeout", "us"),
];

/// The relations of a process, as far as they are told.
struct Related {
    parent: u32,
    group: u32,
    session: u32,
    ended: bool,
}

fn numbers(thread: &Shared, kind: u32) -> Vec<Name> {
    let Some(files) = thread.places().files.upgrade() else {
        return Vec::new();
    };
    let table = files.lock();
    let names = table
        .iter()
        .map(|(fd, _)| (format!("{fd}").into_bytes(), kind));
    names.collect()
}

/// Returns an open file of a thread, those that stand for their place only among them.
fn file_named(thread: &Shared, fd: &[u8]) -> Result<Arc<OpenFile>> {
    let fd = number(fd).ok_or(errno::ENOENT)?;
    let files = thread.places().files.upgrade().ok_or(errno::ENOENT)?;
    let file = files.lock().get(fd.into());
    file.map_err(|_| errno::ENOENT.into())
}

/// Walks `/proc/PID/fd/N`: a file that has a path is found by it, others are themselves.
fn proc_fd<N: Node>(thread: &Shared, fd: &[u8], rest: &[&[u8]]) -> Result<Step<N>> {
    let file = file_named(thread, fd)?;
    match file.kind {
        FileKind::File(_)
        | FileKind::Folder(_)
        | FileKind::TmpFolder(_)
        | FileKind::Listing(..) => Ok(Step::Link(file.path.clone(), rest.len())),
        _ if rest.is_empty() => Ok(Step::Entry(Entry::Open(file))),
        _ => Err(errno::ENOTDIR.into()),
    }
}

impl<N: Node> Thread<N> {
    /// Walks `/proc/PID`.
    pub(super) fn proc_pid(&self, pid: u32, parts: &[&[u8]]) -> Result<Step<N>> {
        let process = self.node.kernel().process_of(pid).ok_or(errno::ENOENT)?;
        let thread = {
            let threads = process.threads.lock();
            let own = threads.get(&pid).or_else(|| threads.values().next());
            own.cloned()
        };
        let Some(thread) = thread else {
            // It has ended, and nobody has asked how.
            return self.proc_ended(&process, parts);
        };
        match parts {
            [b"task"] => {
                let tids: Vec<u32> = process.threads.lock().keys().copied().collect();
                let names = tids
                    .iter()
                    .map(|tid| (format!("{tid}").into_bytes(), FOLDER));
                Ok(Step::Entry(Entry::Folder(names.collect())))
            }
            [b"task", tid, rest @ ..] => {
                let tid = number(tid).ok_or(errno::ENOENT)?;
                let thread = process.threads.lock().get(&tid).cloned();
                self.proc_thread(&process, &thread.ok_or(errno::ENOENT)?, rest)
            }
            rest => self.proc_thread(&process, &thread, rest),
        }
    }

    /// Walks the folder of a process that has ended.
    fn proc_ended(&self, process: &Arc<Process<N>>, parts: &[&[u8]]) -> Result<Step<N>> {
        let related = self.related(process)?;
        let comm = process.last_name();
        match parts {
            [] => Step::folder(&[], &[&b"cmdline"[..], b"comm", b"stat"]),
            [b"cmdline"] => Step::constant(b""),
            [b"comm"] => Ok(Step::Entry(Entry::Text(Text::Made(
                [&comm[..], b"\n"].concat(),
            )))),
            [b"stat"] => {
                let text = self.stat_line(process, &comm, process.pid(), &related, [0; 4]);
                Ok(Step::Entry(Entry::Text(Text::Made(text))))
            }
            _ => missing(),
        }
    }

    fn proc_thread(
        &self,
        process: &Arc<Process<N>>,
        thread: &Arc<Shared>,
        parts: &[&[u8]],
    ) -> Result<Step<N>> {
        let link = |target: Vec<u8>, rest: &[&[u8]]| Ok(Step::Link(target, rest.len()));
        let own = process.pid() == self.pid();
        // The folders themselves can be listed by their names.
        let hidden = matches!(
            parts,
            [b"exe" | b"cwd" | b"root", ..] | [b"fd" | b"fdinfo", ..]
        );
        if hidden && !own && !self.creds().may_inspect(&thread.creds()) {
            return Err(errno::EACCES.into());
        }
        match parts {
            [] => Ok(Step::Entry(Entry::Folder(folder()))),
            [b"exe", rest @ ..] => link(process.exec_path.lock().clone(), rest),
            [b"cwd", rest @ ..] => {
                let fs = thread.places().fs.upgrade().ok_or(errno::ENOENT)?;
                let cwd = fs.lock().cwd.clone();
                link(cwd, rest)
            }
            [b"root", rest @ ..] => {
                let fs = thread.places().fs.upgrade().ok_or(errno::ENOENT)?;
                let root = fs.lock().root.clone();
                link(root, rest)
            }
            [b"fd"] => Ok(Step::Entry(Entry::Folder(numbers(thread, LINK)))),
            [b"fdinfo"] => Ok(Step::Entry(Entry::Folder(numbers(thread, REGULAR)))),
            [b"fd", fd, rest @ ..] => proc_fd(thread, fd, rest),
            [b"fdinfo", fd] => {
                let file = file_named(thread, fd)?;
                let offset = file.offset.load(core::sync::atomic::Ordering::Relaxed);
                let text = format!("pos:\t{offset}\nflags:\t0{:o}\nmnt_id:\t1\n", file.flags());
                Ok(Step::Entry(Entry::Text(Text::Made(text.into_bytes()))))
            }
            [b"net"] => Step::folder::<&[u8]>(&[], &[]),
            [name] => {
                if let Some((_, text)) = CONSTANTS.iter().find(|(known, _)| known == name) {
                    return Step::constant(text);
                }
                let (_, kind) = FILES
                    .iter()
                    .find(|(known, _)| known == name)
                    .ok_or(errno::ENOENT)?;
                let text = Text::Process(process.clone(), thread.clone(), *kind);
                Ok(Step::Entry(Entry::Text(text)))
            }
            _ => missing(),
        }
    }

    fn related(&self, process: &Process<N>) -> Result<Related> {
        self.node.kernel().relation(process.pid(), |of| Related {
            parent: of.process.parent(),
            group: of.group,
            session: of.session,
            ended: of.ended.is_some(),
        })
    }

    /// Makes the text of a file of a process.
    pub(super) async fn process_text(
        &self,
        process: &Arc<Process<N>>,
        thread: &Shared,
        kind: Kind,
    ) -> Result<Vec<u8>> {
        let text = match kind {
            Kind::CmdLine => return Ok(process.arguments.lock().0.clone()),
            Kind::Environ => return Ok(process.arguments.lock().1.clone()),
            Kind::Comm => return Ok([&thread.name.lock()[..], b"\n"].concat()),
            Kind::OomScoreAdj => "0\n".into(),
            Kind::Personality => format!("{:08x}\n", process.personality()),
            Kind::Io => IO.into(),
            Kind::Limits => limits(process),
            Kind::Maps | Kind::Smaps => {
                let names = self.mapped_names(process).await?;
                let details = (kind == Kind::Smaps).then_some(());
                self.with_memory(process, |vmas, marks, _| maps(vmas, marks, &names, details))?
            }
            Kind::SmapsRollup => self.with_memory(process, rollup)?,
            Kind::Stat => {
                let (size, resident, faults) = self.sizes(process);
                let related = self.related(process)?;
                let comm = thread.name.lock().clone();
                return Ok(self.stat_line(
                    process,
                    &comm,
                    thread.tid(),
                    &related,
                    [size, resident, faults, self.stack_top(process)],
                ));
            }
            Kind::Statm => {
                let (size, resident, _) = self.sizes(process);
                let (size, resident) = (size / PAGE_SIZE, resident / PAGE_SIZE);
                format!("{size} {resident} {resident} 0 0 {size} 0\n")
            }
            Kind::Status => self.status(process, thread)?,
        };
        Ok(text.into_bytes())
    }

    /// Returns the paths that are shown for the files that a process maps.
    async fn mapped_names(&self, process: &Process<N>) -> Result<Names> {
        let paths = |vmas: &Vmas, _, _| -> BTreeSet<Vec<u8>> {
            let path = |backing: &Backing| match backing {
                Backing::File(file, _) => Some(file.path().to_vec()),
                _ => None,
            };
            vmas.iter()
                .filter_map(|(_, vma)| path(&vma.backing))
                .collect()
        };
        let mut names = Names::new();
        for path in self.with_memory(process, paths)? {
            let shown = self.shown_path(&path).await?;
            names.insert(path, shown);
        }
        Ok(names)
    }

    /// Calls `look` with a process's VMAs, heap and resident bytes; nothing is mapped after its
    /// end.
    fn with_memory<T>(
        &self,
        process: &Process<N>,
        look: impl FnOnce(&Vmas, Marks, u64) -> T,
    ) -> Result<T> {
        let memory = process.memory.lock();
        let space = memory.as_ref().ok_or(errno::ESRCH)?;
        let marks = Marks {
            heap: *space.heap.lock(),
            stack_top: space.layout.stack_top,
        };
        let resident = space.resident();
        Ok(space.with_vmas(|vmas| look(vmas, marks, resident)))
    }

    fn stack_top(&self, process: &Process<N>) -> u64 {
        let memory = process.memory.lock();
        memory.as_ref().map_or(0, |space| space.layout.stack_top)
    }

    /// Returns bytes mapped, bytes touched, and faults.
    fn sizes(&self, process: &Process<N>) -> (u64, u64, u64) {
        let memory = process.memory.lock();
        memory.as_ref().map_or((0, 0, 0), |space| {
            (
                space.with_vmas(Vmas::size),
                space.resident(),
                space.faults(),
            )
        })
    }

    fn state(&self, process: &Process<N>, related: &Related) -> &'static str {
        if related.ended {
            return "Z (zombie)";
        }
        let threads = process.threads.lock();
        let runs = threads.values().any(|thread| thread.time.is_running());
        if runs { "R (running)" } else { "S (sleeping)" }
    }

    /// Makes the line of `stat`: 52 fields, those that say nothing here are 0.
    fn stat_line(
        &self,
        process: &Process<N>,
        comm: &[u8],
        tid: u32,
        related: &Related,
        [size, resident, faults, stack_top]: [u64; 4],
    ) -> Vec<u8> {
        let ticks = |nanos: u128| u64::try_from(nanos).unwrap_or(u64::MAX) / TICK_NANOS;
        let state = &self.state(process, related)[..1];
        let Related {
            parent,
            group,
            session,
            ..
        } = related;
        let time = ticks(process.cpu_time.total().as_nanos());
        let children = ticks(process.cpu_time.of_children().as_nanos());
        let (threads, nice) = {
            let threads = process.threads.lock();
            (
                threads.len(),
                threads.values().next().map_or(0, |thread| thread.nice()),
            )
        };
        let priority = 20 + nice;
        let start = process.started().nanos / TICK_NANOS;
        let pages = resident / PAGE_SIZE;
        let mut line = format!("{tid} (").into_bytes();
        line.extend_from_slice(comm);
        let rest = format!(
            ") {state} {parent} {group} {session} 0 -1 4194304 {faults} 0 0 0 {time} 0 {children} 0 {priority} {nice} {threads} 0 \
             {start} {size} {pages} 18446744073709551615 0 0 {stack_top} 0 0 0 0 0 0 0 0 0 17 {core} 0 0 0 0 0 0 0 0 0 0 \
             0 0 0\n",
            core = 0,
        );
        line.extend_from_slice(rest.as_bytes());
        line
    }

    fn status(&self, process: &Process<N>, thread: &Shared) -> Result<String> {
        let related = self.related(process)?;
        let state = self.state(process, &related);
        let creds = thread.creds();
        let (size, resident, _) = self.sizes(process);
        let name = String::from_utf8_lossy(&thread.name.lock()).into_owned();
        let mut text = String::new();
        let (tid, pid) = (thread.tid(), process.pid());
        let fs = thread.places().fs.upgrade();
        let umask = fs.map_or(0o022, |fs| fs.lock().umask);
        let _ = write!(
            text,
            "Name:\t{name}\nUmask:\t{umask:04o}\nState:\t{state}\nTgid:\t{pid}\nNgid:\t0\nPid:\t{tid}\nPPid:\t{}\nTracerPid:\t0\n",
            related.parent
        );
        for (label, ids) in [("Uid", creds.user), ("Gid", creds.group)] {
            let _ = writeln!(
                text,
                "{label}:\t{}\t{}\t{}\t{}",
                ids.real, ids.effective, ids.saved, ids.fs
            );
        }
        let files = thread.places().files.upgrade();
        let files = files.map_or(0, |files| files.lock().iter().count());
        let _ = write!(
            text,
            "FDSize:\t{}\nGroups:\t",
            files.next_power_of_two().max(64)
        );
        for group in &*creds.groups {
            let _ = write!(text, "{group} ");
        }
        let (size, resident) = (size / 1024, resident / 1024);
        let _ = write!(
            text,
            "\nVmPeak:\t{size:>8} kB\nVmSize:\t{size:>8} kB\nVmLck:\t{:>8} kB\nVmHWM:\t{resident:>8} kB\nVmRSS:\t{resident:>8} kB\n",
            0
        );
        let threads = process.threads.lock().len();
        let (own, shared) = (thread.pending.lock().set(), process.pending.lock().set());
        let (ignored, caught) = thread.ignored_and_caught();
        let held = creds.capabilities;
        let _ = write!(
            text,
            "Threads:\t{threads}\nSigQ:\t0/4096\nSigPnd:\t{own:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{:016x}\n\
             SigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\nCapInh:\t{:016x}\nCapPrm:\t{:016x}\nCapEff:\t{:016x}\n\
             CapBnd:\t{:016x}\nCapAmb:\t{:016x}\nNoNewPrivs:\t0\nSeccomp:\t0\n",
            thread.mask(),
            held.inheritable,
            held.permitted,
            held.effective,
            held.bounding,
            held.ambient
        );
        let cores = self.node.cores().min(64);
        let allowed = thread.affinity() & u64::MAX >> (64 - cores);
        let list = super::sys::core_list(allowed);
        let _ = write!(
            text,
            "Cpus_allowed:\t{allowed:x}\nCpus_allowed_list:\t{list}\nMems_allowed:\t1\nMems_allowed_list:\t0\n\
             voluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n"
        );
        Ok(text)
    }
}

const IO: &str = "rchar: 0\nwchar: 0\nsyscr: 0\nsyscw: 0\nread_bytes: 0\nwrite_bytes: 0\ncancelled_write_bytes: 0\n";

/// Returns the names of a process's folder.
fn folder() -> Vec<Name> {
    let name = |kind: u32| move |name: &&[u8]| (name.to_vec(), kind);
    let folders: [&[u8]; 4] = [b"fd", b"fdinfo", b"net", b"task"];
    let links: [&[u8]; 3] = [b"cwd", b"exe", b"root"];
    let mut names: Vec<Name> = folders.iter().map(name(FOLDER)).collect();
    names.extend(links.iter().map(name(LINK)));
    names.extend(FILES.iter().map(|(name, _)| (name.to_vec(), REGULAR)));
    names.extend(CONSTANTS.iter().map(|(name, _)| (name.to_vec(), REGULAR)));
    names
}

fn limits<N: Node>(process: &Process<N>) -> String {
    let mut text = format!(
        "{:<25} {:<20} {:<20} {:<10}\n",
        "Limit", "Soft Limit", "Hard Limit", "Units"
    );
    let limits = process.limits.lock().clone();
    let show = |value: u64| match value {
        INFINITY => String::from("unlimited"),
        value => format!("{value}"),
    };
    for (resource, (name, unit)) in LIMITS.iter().enumerate() {
        let Ok(Limit { soft, hard }) = limits.get(resource) else {
            continue;
        };
        let _ = writeln!(
            text,
            "{name:<25} {:<20} {:<20} {unit:<10}",
            show(soft),
            show(hard)
        );
    }
    text
}

/// The paths shown for those that files were opened by.
type Names = BTreeMap<Vec<u8>, Vec<u8>>;

/// Places in an address space that its mappings are named after.
#[derive(Clone, Copy)]
struct Marks {
    heap: Heap,
    stack_top: u64,
}

/// Makes the lines of `maps`, or of `smaps`.
fn maps(vmas: &Vmas, marks: Marks, names: &Names, details: Option<()>) -> String {
    let Marks { heap, stack_top } = marks;
    let mut text = String::new();
    for (range, vma) in vmas.iter() {
        let shared = vma.is_shared() && range.start != stack_top;
        let letter = |right: Rights, letter: char| {
            if vma.rights.contains(right) {
                letter
            } else {
                '-'
            }
        };
        let (offset, inode, path) = match &vma.backing {
            Backing::File(file, first) => {
                let path = names.get(file.path()).map_or(file.path(), |name| &name[..]);
                let path = String::from_utf8_lossy(path).into_owned();
                (first * PAGE_SIZE, file.inode(), path)
            }
            Backing::Object(..) if range.start == stack_top => (0, 0, "[vdso]".into()),
            Backing::Object(_, first) => (first * PAGE_SIZE, 0, String::new()),
            _ if range.end == stack_top => (0, 0, "[stack]".into()),
            _ if range.start < heap.end && heap.start < range.end && heap.start != heap.end => {
                (0, 0, "[heap]".into())
            }
            _ => (0, 0, String::new()),
        };
        let mut line = format!(
            "{:x}-{:x} {}{}{}{} {offset:08x} {}:00 {inode}",
            range.start,
            range.end,
            letter(Rights::READ, 'r'),
            letter(Rights::WRITE, 'w'),
            letter(Rights::EXEC, 'x'),
            if shared { 's' } else { 'p' },
            if inode == 0 { "00" } else { "fe" },
        );
        if !path.is_empty() {
            let width = line.len().max(72);
            line = format!("{line:<width$} {path}");
        } else {
            line.push(' ');
        }
        text.push_str(&line);
        text.push('\n');
        if details.is_some() {
            let size = (range.end - range.start) / 1024;
            let _ = write!(
                text,
                "Size: {size:>18} kB\nKernelPageSize: {:>8} kB\nMMUPageSize: {:>11} kB\nRss: {:>19} kB\nPss: {:>19} kB\n",
                4, 4, 0, 0
            );
        }
    }
    text
}

fn rollup(vmas: &Vmas, marks: Marks, resident: u64) -> String {
    let end = marks.stack_top;
    let start = vmas.iter().next().map_or(0, |(range, _)| range.start);
    let kilobytes = resident / 1024;
    format!(
        "{start:x}-{end:x} ---p 00000000 00:00 0 [rollup]\nRss: {kilobytes:>19} kB\nPss: {kilobytes:>19} kB\n\
         Private_Dirty: {kilobytes:>9} kB\n"
    )
}
