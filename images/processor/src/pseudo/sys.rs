//! `/sys`: the cores and the memory node, as C libraries, NumPy and the like look for them.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use super::{Entry, FOLDER, Name, Step, Text, missing, number};
use crate::error::Result;
use crate::process::Node;
use crate::thread::Thread;

/// Returns a set of cores as a list of ranges, such as `0-2,5`.
pub(super) fn core_list(set: u64) -> String {
    let mut list = String::new();
    let mut core = 0;
    while core < 64 {
        if set >> core & 1 == 0 {
            core += 1;
            continue;
        }
        let len = (!(set >> core)).trailing_zeros().min(64 - core);
        let comma = if list.is_empty() { "" } else { "," };
        let _ = match len {
            1 => write!(list, "{comma}{core}"),
            len => write!(list, "{comma}{core}-{}", core + len - 1),
        };
        core += len;
    }
    list
}

fn made<N: Node>(text: String) -> Result<Step<N>> {
    Ok(Step::Entry(Entry::Text(Text::Made(text.into_bytes()))))
}

impl<N: Node> Thread<N> {
    /// Walks `/sys`.
    pub(super) fn sys(&self, parts: &[&[u8]]) -> Result<Step<N>> {
        match parts {
            [] => Step::folder(&[&b"class"[..], b"devices", b"fs", b"kernel"], &[]),
            [b"class" | b"fs"] => Step::folder::<&[u8]>(&[], &[]),
            [b"devices"] => Step::folder(&[&b"system"[..]], &[]),
            [b"devices", b"system"] => Step::folder(&[&b"cpu"[..], b"node"], &[]),
            [b"devices", b"system", b"cpu", rest @ ..] => self.sys_cpu(rest),
            [b"devices", b"system", b"node", rest @ ..] => self.sys_node(rest),
            [b"kernel"] => Step::folder(&[&b"mm"[..]], &[]),
            [b"kernel", b"mm"] => Step::folder(&[&b"transparent_hugepage"[..]], &[]),
            [b"kernel", b"mm", b"transparent_hugepage"] => {
                Step::folder(&[], &[&b"enabled"[..], b"hpage_pmd_size"])
            }
            [b"kernel", b"mm", b"transparent_hugepage", b"enabled"] => {
                Step::constant(b"always madvise [never]\n")
            }
            [b"kernel", b"mm", b"transparent_hugepage", b"hpage_pmd_size"] => {
                Step::constant(b"2097152\n")
            }
            _ => missing(),
        }
    }

    fn present(&self) -> u64 {
        u64::MAX >> (64 - self.node.cores().min(64))
    }

    fn sys_cpu(&self, parts: &[&[u8]]) -> Result<Step<N>> {
        let all = core_list(self.present());
        match parts {
            [] => {
                let files: [&[u8]; 6] = [
                    b"isolated",
                    b"kernel_max",
                    b"offline",
                    b"online",
                    b"possible",
                    b"present",
                ];
                let mut names: Vec<Name> = files
                    .iter()
                    .map(|name| (name.to_vec(), super::REGULAR))
                    .collect();
                names.extend(
                    (0..self.node.cores()).map(|core| (format!("cpu{core}").into_bytes(), FOLDER)),
                );
                Ok(Step::Entry(Entry::Folder(names)))
            }
            [b"online" | b"possible" | b"present"] => made(format!("{all}\n")),
            [b"offline" | b"isolated"] => Step::constant(b"\n"),
            [b"kernel_max"] => Step::constant(b"255\n"),
            [core, rest @ ..] => {
                let core = core.strip_prefix(b"cpu").and_then(number);
                match core.filter(|&core| (core as usize) < self.node.cores()) {
                    Some(core) => self.sys_core(core, rest),
                    None => missing(),
                }
            }
        }
    }

    fn sys_core(&self, core: u32, parts: &[&[u8]]) -> Result<Step<N>> {
        let all = self.present();
        match parts {
            [] => Step::folder(&[&b"topology"[..]], &[&b"online"[..]]),
            [b"online"] => Step::constant(b"1\n"),
            [b"topology"] => Step::folder(
                &[],
                &[
                    &b"core_id"[..],
                    b"core_siblings",
                    b"core_siblings_list",
                    b"physical_package_id",
                    b"thread_siblings",
                    b"thread_siblings_list",
                ],
            ),
            [b"topology", b"core_id" | b"thread_siblings_list"] => made(format!("{core}\n")),
            [b"topology", b"physical_package_id"] => Step::constant(b"0\n"),
            [b"topology", b"core_siblings"] => made(format!("{all:x}\n")),
            [b"topology", b"core_siblings_list"] => made(format!("{}\n", core_list(all))),
            [b"topology", b"thread_siblings"] => made(format!("{:x}\n", 1_u64 << (core % 64))),
            _ => missing(),
        }
    }

    fn sys_node(&self, parts: &[&[u8]]) -> Result<Step<N>> {
        match parts {
            [] => Step::folder(
                &[&b"node0"[..]],
                &[&b"has_cpu"[..], b"has_memory", b"online", b"possible"],
            ),
            [b"has_cpu" | b"has_memory" | b"online" | b"possible"] => Step::constant(b"0\n"),
            [b"node0"] => Step::folder(&[], &[&b"cpulist"[..], b"cpumap", b"distance"]),
            [b"node0", b"cpulist"] => made(format!("{}\n", core_list(self.present()))),
            [b"node0", b"cpumap"] => made(format!("{:x}\n", self.present())),
            [b"node0", b"distance"] => Step::constant(b"10\n"),
            _ => missing(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_cores_are_lists_of_ranges() {
        for (set, list) in [
            (0, ""),
            (1, "0"),
            (0b11, "0-1"),
            (0b10_0111, "0-2,5"),
            (u64::MAX, "0-63"),
        ] {
            assert_eq!(core_list(set), list);
        }
    }
}
