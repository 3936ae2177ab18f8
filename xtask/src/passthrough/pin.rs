//! Virtual CPUs on cores of their own.
//!
//! QEMU names its threads if `-name …,debug-threads=on` asks for it: `CPU 0/KVM` is the first
//! virtual CPU's (QEMU `accel/kvm/kvm-accel-ops.c`).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

use super::host;

/// Returns the threads of QEMU's virtual CPUs that have begun, by number of CPU.
pub(crate) fn threads(proc: &Path, qemu: u32) -> BTreeMap<usize, i32> {
    let tasks = proc.join(qemu.to_string()).join("task");
    let of = |task: String| {
        let name = host::text(&tasks.join(&task).join("comm"))?;
        let cpu = name
            .strip_prefix("CPU ")?
            .strip_suffix("/KVM")?
            .parse()
            .ok()?;
        Some((cpu, task.parse().ok()?))
    };
    host::names(&tasks).into_iter().filter_map(of).collect()
}

/// Moves each thread to its core.
pub(crate) fn pin(threads: &BTreeMap<usize, i32>, cores: &[usize]) -> Result<()> {
    for (cpu, thread) in threads {
        let core = *cores
            .get(*cpu)
            .context("there are more virtual CPUs than cores")?;
        let mut set = CpuSet::new();
        set.set(core);
        sched_setaffinity(Pid::from_raw(*thread), &set)
            .with_context(|| format!("can't pin virtual CPU {cpu} to core {core}"))?;
    }
    Ok(())
}

/// Returns the cores for the virtual CPUs: those that the user names, else the last ones near the
/// card, as the host's own work gathers on the first. Empty if there are too few.
pub(crate) fn choose(wanted: Option<&[usize]>, near: &[usize], cpus: usize) -> Vec<usize> {
    match wanted {
        Some(wanted) => wanted.to_vec(),
        None if near.len() > cpus => near[near.len() - cpus..].to_vec(),
        None => Vec::new(),
    }
}
