//! The stack as a program finds it at its first instruction: System V ABI for x86-64, section
//! 3.4.1.

use alloc::vec::Vec;

use linux_raw_sys::auxvec as aux;
use messages::PAGE_SIZE;

use crate::creds::Creds;
use crate::elf::PROGRAM_HEADER_SIZE;
use crate::error::{Result, errno};
use crate::rseq;

/// The most bytes that arguments and environment may take, as on Linux a quarter of the stack's
/// limit.
pub const MAX_STRINGS: usize = 2 << 20;

/// Linux `arch/x86/include/uapi/asm/auxvec.h`.
const AT_MINSIGSTKSZ: u32 = 51;
/// Linux `include/uapi/linux/auxvec.h`.
const AT_RSEQ_FEATURE_SIZE: u32 = 27;
const AT_RSEQ_ALIGN: u32 = 28;

/// The numbers of the user and the group that a program runs as.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Identity {
    /// The user: real and effective.
    pub user: [u32; 2],
    /// The group: real and effective.
    pub group: [u32; 2],
    /// The program has rights that its caller does not have.
    pub secure: bool,
}

impl Identity {
    pub(crate) fn of(creds: &Creds, secure: bool) -> Self {
        Self {
            user: [creds.user.real, creds.user.effective],
            group: [creds.group.real, creds.group.effective],
            secure,
        }
    }
}

/// Facts about a program and its machine that its stack holds at the start.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Its path.
    pub exec_path: &'a [u8],
    /// Its arguments, its own name first.
    pub args: &'a [Vec<u8>],
    /// Its environment, each `NAME=VALUE`.
    pub env: &'a [Vec<u8>],
    /// Address of its program headers.
    pub headers_addr: u64,
    /// Number of its program headers.
    pub headers: u16,
    /// Its first instruction.
    pub entry: u64,
    /// The address of the program that loads it; 0 for none.
    pub base: u64,
    /// The address of the vDSO; 0 for none.
    pub vdso: u64,
    /// The least size of a signal stack.
    pub min_signal_stack: u64,
    /// Sixteen bytes no one can guess.
    pub random: [u8; 16],
    /// The user and the group.
    pub identity: Identity,
    /// CPUID leaf 1, `edx`.
    pub hwcap: u64,
}

/// The stack's first contents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stack {
    /// The stack pointer, a multiple of 16.
    pub pointer: u64,
    /// Content from there up to the stack's top.
    pub bytes: Vec<u8>,
}

/// Lays the stack out below `top`.
///
/// # Errors
///
/// E2BIG if arguments and environment are too long.
pub fn build(top: u64, facts: &Facts<'_>) -> Result<Stack> {
    let strings = || facts.args.iter().chain(facts.env).map(Vec::as_slice);
    let len: usize = strings().map(|s| s.len() + 1 + 8).sum::<usize>() + facts.exec_path.len();
    if len > MAX_STRINGS {
        return Err(errno::E2BIG.into());
    }
    // Strings first, as they lie at the upper end: their addresses follow from their total length.
    let mut area = Vec::new();
    let mut put = |bytes: &[u8], zero: bool| {
        let at = area.len() as u64;
        area.extend_from_slice(bytes);
        area.extend(zero.then_some(0));
        at
    };
    let random = put(&facts.random, false);
    let platform = put(b"x86_64", true);
    let path = put(facts.exec_path, true);
    let places: Vec<u64> = strings().map(|s| put(s, true)).collect();
    let base = (top - area.len() as u64) / 16 * 16;

    let mut words = Vec::new();
    let (args, env) = places.split_at(facts.args.len());
    words.push(args.len() as u64);
    words.extend(args.iter().map(|at| base + at));
    words.push(0);
    words.extend(env.iter().map(|at| base + at));
    words.push(0);
    let pairs = [
        (aux::AT_SYSINFO_EHDR, facts.vdso),
        (aux::AT_HWCAP, facts.hwcap),
        (aux::AT_PAGESZ, PAGE_SIZE),
        (aux::AT_CLKTCK, 100),
        (aux::AT_PHDR, facts.headers_addr),
        (aux::AT_PHENT, PROGRAM_HEADER_SIZE as u64),
        (aux::AT_PHNUM, u64::from(facts.headers)),
        (aux::AT_BASE, facts.base),
        (aux::AT_FLAGS, 0),
        (aux::AT_ENTRY, facts.entry),
        (aux::AT_UID, facts.identity.user[0].into()),
        (aux::AT_EUID, facts.identity.user[1].into()),
        (aux::AT_GID, facts.identity.group[0].into()),
        (aux::AT_EGID, facts.identity.group[1].into()),
        (aux::AT_SECURE, facts.identity.secure.into()),
        (aux::AT_RANDOM, base + random),
        (aux::AT_EXECFN, base + path),
        (aux::AT_PLATFORM, base + platform),
        (AT_RSEQ_FEATURE_SIZE, rseq::FEATURE_SIZE as u64),
        (AT_RSEQ_ALIGN, rseq::ALIGN),
        (AT_MINSIGSTKSZ, facts.min_signal_stack),
        (aux::AT_NULL, 0),
    ];
    words.extend(
        pairs
            .iter()
            .flat_map(|&(kind, value)| [u64::from(kind), value]),
    );

    let pointer = (base - words.len() as u64 * 8) / 16 * 16;
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(
        usize::try_from(base - pointer).map_err(|_| errno::E2BIG)?,
        0,
    );
    bytes.extend_from_slice(&area);
    Ok(Stack { pointer, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_finds_its_arguments() {
        let (args, env) = ([b"sort".to_vec(), b"-u".to_vec()], [b"HOME=/".to_vec()]);
        let facts = Facts {
            exec_path: b"/bin/sort",
            args: &args,
            env: &env,
            headers_addr: 0x40_0040,
            headers: 9,
            entry: 0x40_1000,
            base: 0,
            vdso: 0,
            min_signal_stack: 2048,
            random: *b"0123456789abcdef",
            identity: Identity::default(),
            hwcap: 7,
        };
        let top = 0x7fff_0000;
        let stack = build(top, &facts).unwrap();
        assert_eq!(stack.pointer % 16, 0);
        assert!(stack.pointer + stack.bytes.len() as u64 <= top);
        let word = |n: usize| u64::from_le_bytes(stack.bytes[n * 8..n * 8 + 8].try_into().unwrap());
        let string = |addr: u64| {
            let at = usize::try_from(addr - stack.pointer).unwrap();
            stack.bytes[at..]
                .split(|&b| b == 0)
                .next()
                .unwrap()
                .to_vec()
        };
        assert_eq!(
            (word(0), word(3), word(5)),
            (2, 0, 0),
            "argc and the two ends"
        );
        assert_eq!(
            (string(word(1)), string(word(2)), string(word(4))),
            (args[0].clone(), args[1].clone(), env[0].clone())
        );
        let value = |kind: u32| {
            (6..)
                .step_by(2)
                .take_while(|&n| word(n) != 0)
                .find(|&n| word(n) == u64::from(kind))
                .map(|n| word(n + 1))
        };
        assert_eq!(value(aux::AT_PHDR), Some(0x40_0040));
        assert_eq!(string(value(aux::AT_EXECFN).unwrap()), b"/bin/sort");
        assert!(string(value(aux::AT_RANDOM).unwrap()).starts_with(b"0123456789abcdef"));
    }

    #[test]
    fn endless_arguments_are_refused() {
        let args = [vec![b'x'; MAX_STRINGS]];
        let facts = Facts {
            exec_path: b"/x",
            args: &args,
            env: &[],
            headers_addr: 0,
            headers: 0,
            entry: 0,
            base: 0,
            vdso: 0,
            min_signal_stack: 0,
            random: [0; 16],
            identity: Identity::default(),
            hwcap: 0,
        };
        assert_eq!(build(1 << 40, &facts), Err(errno::E2BIG.into()));
    }
}
