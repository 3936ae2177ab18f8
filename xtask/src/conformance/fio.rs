//! fio: jobs that write blocks with sums of their content, and read and check all of them.

use std::path::Path;

use anyhow::Result;

use super::suite::{Case, Ended, FOLDER, Outcome, Suite, Verdict, last_line};

/// Seconds for a case: each sync is a commit of S.
const LIMIT: u64 = 300;
/// Options of all jobs: blocks with CRC32C sums in their headers, and a fixed RNG seed.
const COMMON: &str = "--verify=crc32c --verify_fatal=1 --verify_dump=0 --randrepeat=1 --minimal";
/// Error that an engine gives which the kernel has no calls for.
const NOT_IMPLEMENTED: &str = "Function not implemented";

/// Jobs by name. `{}` is the folder of their files.
const JOBS: [(&str, &str); 22] = [
    (
        "write",
        "--ioengine=psync --rw=write --bs=64k --size=24m --filename={}/a",
    ),
    (
        "write 512",
        "--ioengine=psync --rw=write --bs=512 --size=512k --filename={}/a",
    ),
    (
        "write in odd blocks",
        "--ioengine=psync --rw=write --bsrange=512-70k --bs_unaligned=1 --size=8m --filename={}/a",
    ),
    (
        "random write",
        "--ioengine=psync --rw=randwrite --bs=4k --size=8m --filename={}/a",
    ),
    (
        "random write, read between",
        "--ioengine=psync --rw=randrw --rwmixread=30 --bs=4k --size=6m --verify_backlog=64 --filename={}/a",
    ),
    (
        "random write, fsync",
        "--ioengine=psync --rw=randwrite --bs=4k --size=2m --fsync=1 --filename={}/a",
    ),
    (
        "random write, fdatasync",
        "--ioengine=psync --rw=randwrite --bs=4k --size=2m --fdatasync=1 --filename={}/a",
    ),
    (
        "random write, O_SYNC",
        "--ioengine=psync --rw=randwrite --bs=4k --size=2m --sync=1 --filename={}/a",
    ),
    (
        "write, O_DIRECT",
        "--ioengine=psync --direct=1 --rw=write --bs=64k --size=16m --filename={}/a",
    ),
    (
        "random write, O_DIRECT",
        "--ioengine=psync --direct=1 --rw=randwrite --bs=4k --size=4m --filename={}/a",
    ),
    (
        "vectors",
        "--ioengine=pvsync2 --rw=randwrite --bs=16k --size=8m --filename={}/a",
    ),
    (
        "vectors, O_DIRECT",
        "--ioengine=pvsync2 --direct=1 --rw=randrw --bs=8k --size=4m --filename={}/a",
    ),
    (
        "mapped, write",
        "--ioengine=mmap --rw=write --bs=64k --size=16m --filename={}/a",
    ),
    (
        "mapped, random write",
        "--ioengine=mmap --rw=randwrite --bs=4k --size=8m --filename={}/a",
    ),
    (
        "mapped, random write, fsync",
        "--ioengine=mmap --rw=randwrite --bs=4k --size=1m --fsync=8 --filename={}/a",
    ),
    (
        "io_uring",
        "--ioengine=io_uring --iodepth=16 --rw=randwrite --bs=4k --size=8m --filename={}/a",
    ),
    (
        "libaio",
        "--ioengine=libaio --iodepth=16 --direct=1 --rw=randwrite --bs=4k --size=8m --filename={}/a",
    ),
    (
        "four jobs, a file each",
        "--ioengine=psync --rw=randwrite --bs=4k --size=2m --numjobs=4 --directory={} --group_reporting",
    ),
    (
        "four jobs, one file",
        "--ioengine=psync --rw=randwrite --bs=4k --size=2m --offset_increment=2m --numjobs=4 --filename={}/a --group_reporting",
    ),
    (
        "four jobs, one file, mapped",
        "--ioengine=mmap --rw=randwrite --bs=4k --size=2m --offset_increment=2m --numjobs=4 --filename={}/a --group_reporting",
    ),
    (
        "many files",
        "--ioengine=psync --rw=randwrite --bs=4k --size=4m --nrfiles=64 --directory={}",
    ),
    (
        "allocated first",
        "--ioengine=psync --rw=randwrite --bs=4k --size=4m --fallocate=posix --overwrite=0 --filename={}/a",
    ),
];
/// Holes, and blocks after them: fio has no sums of what is trimmed.
const HOLES: &str =
    "fio --name=holes --ioengine=falloc --rw=randtrim --bs=64k --size=8m --minimal --filename={}/a";

/// The suite. A case is a job on a file system.
pub(super) struct Fio;

impl Suite for Fio {
    fn name(&self) -> &'static str {
        "fio"
    }

    fn about(&self) -> &'static str {
        "fio (Debian's package): blocks are written with their CRC32C sums and all read and checked, on S's disk and \
         in P's own memory (`/tmp`)."
    }

    fn packages(&self) -> &'static [&'static str] {
        &["fio"]
    }

    fn prepare(&self, _folder: &Path) -> Result<Vec<Case>> {
        let case = |place: &str, path: &str, name: &str, command: String| Case {
            name: format!("{place}: {name}"),
            command: command.replace("{}", path),
            limit: LIMIT,
        };
        let fresh = "rm -rf {}; mkdir -p {}";
        let places = [
            ("disk", format!("{FOLDER}/fio")),
            ("memory", "/tmp/case/fio".to_owned()),
        ];
        let mut cases = Vec::new();
        for (place, path) in &places {
            for (name, job) in JOBS {
                let command = format!("{fresh}; fio --name=job {COMMON} {job}");
                cases.push(case(place, path, name, command));
            }
            let command = format!(
                "{fresh}; dd if=/dev/zero of={{}}/a bs=1M count=8 status=none && {HOLES} && \
                 fio --name=job {COMMON} --ioengine=psync --rw=randwrite --bs=4k --size=8m --filename={{}}/a"
            );
            cases.push(case(place, path, "holes, then written", command));
        }
        Ok(cases)
    }

    fn judge(&self, _case: &Case, ended: &Ended, output: &str) -> Vec<Verdict> {
        let outcome = match ended {
            Ended::Status(0) => Outcome::Pass,
            Ended::Status(_) if output.contains(NOT_IMPLEMENTED) => Outcome::Skip,
            _ => Outcome::Fail,
        };
        if outcome == Outcome::Pass {
            // It prints times only.
            return Verdict::whole(outcome, "");
        }
        let told = output
            .lines()
            .find(|line| line.starts_with("fio: ") || line.contains("verify:"));
        let told = told.map_or_else(|| last_line(output), last_line);
        Verdict::whole(outcome, format!("{ended}: {told}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_job_names_its_files_and_what_the_kernel_lacks_is_left_out() {
        let cases = Fio.prepare(Path::new("/")).expect("cases");
        assert_eq!(cases.len(), 2 * (JOBS.len() + 1));
        assert!(cases.iter().all(|case| !case.command.contains("{}")));
        let judged =
            |status, output| Fio.judge(&cases[0], &Ended::Status(status), output)[0].outcome;
        assert_eq!(judged(0, "3;fio"), Outcome::Pass);
        assert_eq!(judged(1, "fio: Function not implemented"), Outcome::Skip);
        assert_eq!(judged(1, "verify: bad header"), Outcome::Fail);
    }
}
