//! Structures of Linux's interface as text, from their bytes (x86-64's layouts, `struct stat` and
//! the others in `include/uapi`).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::quote;
use super::words::{self, EPOLL_EVENTS, FAMILIES, POLL_EVENTS, SA_FLAGS, name};
use crate::socket::Address;

/// A structure of a fixed size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Struct {
    /// `struct epoll_event`, packed.
    EpollEvent,
    /// `struct pollfd`.
    PollFd,
    /// `struct rlimit`.
    Limit,
    /// The kernel's `struct sigaction`.
    SigAction,
    /// A set of signals.
    SigSet,
    /// `struct stat`.
    Stat,
    /// `struct statx`.
    Statx,
    /// `struct timespec`.
    TimeSpec,
    /// Two of them.
    Times,
    /// `struct timeval`.
    TimeVal,
    /// `struct utsname`.
    Names,
}

/// Bytes of a field of `struct utsname`.
const NAME: usize = 65;
/// Bytes of the largest structure.
pub(super) const MAX: usize = 6 * NAME;

impl Struct {
    /// Returns its bytes.
    pub(super) const fn size(self) -> usize {
        match self {
            Self::EpollEvent => 12,
            Self::PollFd | Self::SigSet => 8,
            Self::Limit | Self::TimeSpec | Self::TimeVal => 16,
            Self::SigAction | Self::Times => 32,
            Self::Stat => 144,
            Self::Statx => 256,
            Self::Names => 6 * NAME,
        }
    }

    /// Returns the text of a structure's bytes; of fewer, the missing ones are zeros.
    pub(super) fn show(self, bytes: &[u8]) -> String {
        let at = Fields(bytes);
        match self {
            Self::EpollEvent => {
                let events = words::flags(EPOLL_EVENTS, at.u32(0));
                format!("{{events={events}, data={:#x}}}", at.u64(4))
            }
            Self::PollFd => {
                let events = words::flags(POLL_EVENTS, at.u16(4));
                format!("{{fd={}, events={events}}}", at.i32(0))
            }
            Self::Limit => {
                let [soft, hard] = [at.u64(0), at.u64(8)].map(limit);
                format!("{{rlim_cur={soft}, rlim_max={hard}}}")
            }
            Self::SigAction => sigaction(at),
            Self::SigSet => signals(at.u64(0)),
            Self::Stat => stat(at),
            Self::Statx => format!(
                "{{stx_mask={:#x}, stx_mode={}, stx_size={}, ...}}",
                at.u32(0),
                mode(at.u16(28)),
                at.u64(40)
            ),
            Self::TimeSpec => format!("{{tv_sec={}, tv_nsec={}}}", at.i64(0), at.i64(8)),
            Self::Times => {
                let second = bytes.get(16..).unwrap_or_default();
                let [first, second] = [bytes, second].map(|bytes| Self::TimeSpec.show(bytes));
                format!("[{first}, {second}]")
            }
            Self::TimeVal => format!("{{tv_sec={}, tv_usec={}}}", at.i64(0), at.i64(8)),
            Self::Names => format!(
                "{{sysname={}, nodename={}, ...}}",
                at.string(0),
                at.string(NAME)
            ),
        }
    }
}

/// Little-endian words at places in bytes.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(self, at: usize) -> [u8; N] {
        let found = self.0.get(at..at + N);
        found.map_or([0; N], |found| found.try_into().unwrap_or([0; N]))
    }

    fn u16(self, at: usize) -> u64 {
        u16::from_le_bytes(self.bytes(at)).into()
    }

    fn u32(self, at: usize) -> u64 {
        u32::from_le_bytes(self.bytes(at)).into()
    }

    fn i32(self, at: usize) -> i32 {
        i32::from_le_bytes(self.bytes(at))
    }

    fn u64(self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn i64(self, at: usize) -> i64 {
        i64::from_le_bytes(self.bytes(at))
    }

    /// Returns a text that ends with a zero, quoted.
    fn string(self, at: usize) -> String {
        let field = self.0.get(at..).unwrap_or_default();
        let end = field.iter().position(|&byte| byte == 0);
        quote(&field[..end.unwrap_or(field.len()).min(NAME)], false)
    }
}

/// Returns the names of a set's signals; of a large set, those that are missing.
fn signals(set: u64) -> String {
    let (mark, shown) = if set.count_ones() > 32 {
        ("~", !set)
    } else {
        ("", set)
    };
    let members = (1..=64).filter(|signal| shown >> (signal - 1) & 1 != 0);
    let names: Vec<String> = members.map(words::signal).collect();
    format!("{mark}[{}]", names.join(" "))
}

/// Returns the text of a status that `wait4` gives.
pub(super) fn status(status: i32) -> String {
    const CONTINUED: i32 = 0xffff;
    let (signal, code) = (status & 0x7f, status >> 8 & 0xff);
    let named = |signal: i32| words::signal(signal.unsigned_abs().into());
    match signal {
        _ if status == CONTINUED => "[{WIFCONTINUED(s)}]".into(),
        0 => format!("[{{WIFEXITED(s) && WEXITSTATUS(s) == {code}}}]"),
        0x7f => format!("[{{WIFSTOPPED(s) && WSTOPSIG(s) == {}}}]", named(code)),
        signal => format!("[{{WIFSIGNALED(s) && WTERMSIG(s) == {}}}]", named(signal)),
    }
}

fn sigaction(at: Fields<'_>) -> String {
    let handler = match at.u64(0) {
        0 => "SIG_DFL".into(),
        1 => "SIG_IGN".into(),
        address => format!("{address:#x}"),
    };
    format!(
        "{{sa_handler={handler}, sa_mask={}, sa_flags={}, sa_restorer={:#x}}}",
        signals(at.u64(24)),
        words::flags(SA_FLAGS, at.u64(8)),
        at.u64(16)
    )
}

fn stat(at: Fields<'_>) -> String {
    const S_IFCHR: u64 = 0o020_000;
    const S_IFBLK: u64 = 0o060_000;
    let bits = at.u32(24);
    let last = if matches!(bits & 0o170_000, S_IFCHR | S_IFBLK) {
        let [major, minor] = crate::syscall::device_parts(at.u64(40));
        format!("st_rdev=makedev({major:#x}, {minor:#x})")
    } else {
        format!("st_size={}", at.i64(48))
    };
    format!("{{st_mode={}, {last}, ...}}", mode(bits))
}

/// Returns a file's kind and rights.
fn mode(bits: u64) -> String {
    const KINDS: &words::Words = &[
        (0o010_000, "S_IFIFO"),
        (0o020_000, "S_IFCHR"),
        (0o040_000, "S_IFDIR"),
        (0o060_000, "S_IFBLK"),
        (0o100_000, "S_IFREG"),
        (0o120_000, "S_IFLNK"),
        (0o140_000, "S_IFSOCK"),
    ];
    format!("{}|0{:o}", name(KINDS, bits & 0o170_000), bits & 0o7777)
}

fn limit(value: u64) -> String {
    match value {
        u64::MAX => "RLIM64_INFINITY".into(),
        value if value > 0 && value.is_multiple_of(1024) => format!("{}*1024", value / 1024),
        value => format!("{value}"),
    }
}

/// Returns the text of a socket's address.
pub(super) fn address(bytes: &[u8]) -> String {
    let family = Fields(bytes).u16(0);
    let known = match u16::try_from(family) {
        Ok(crate::socket::AF_UNIX) => Address::parse_unix(bytes).ok(),
        Ok(own @ (crate::socket::AF_INET | crate::socket::AF_INET6)) => {
            Address::parse_ip(own, bytes).ok().map(Address::Ip)
        }
        Ok(crate::socket::AF_NETLINK) => {
            let port = Address::parse_netlink(bytes).ok();
            port.map(Address::Netlink)
        }
        _ => None,
    };
    let rest = match known {
        Some(Address::Path(path)) => format!(", sun_path={}", quote(&path, false)),
        Some(Address::Abstract(name)) => format!(", sun_path=@{}", quote(&name, false)),
        Some(Address::Ip(ip)) if ip.is_ipv4() => {
            let (port, ip) = (ip.port(), ip.ip());
            format!(", sin_port=htons({port}), sin_addr=inet_addr(\"{ip}\")")
        }
        Some(Address::Ip(ip)) => {
            let (port, ip) = (ip.port(), ip.ip());
            format!(", sin6_port=htons({port}), sin6_addr=\"{ip}\"")
        }
        Some(Address::Netlink(port)) => format!(", nl_pid={port}"),
        Some(Address::Unnamed) | None => String::new(),
    };
    format!("{{sa_family={}{rest}}}", name(FAMILIES, family))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Struct; 11] = [
        Struct::EpollEvent,
        Struct::PollFd,
        Struct::Limit,
        Struct::SigAction,
        Struct::SigSet,
        Struct::Stat,
        Struct::Statx,
        Struct::TimeSpec,
        Struct::TimeVal,
        Struct::Times,
        Struct::Names,
    ];

    fn place(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    #[test]
    fn structures_look_as_strace_s() {
        let mut bytes = [0; MAX];
        place(&mut bytes, 24, &0o100_644_u32.to_le_bytes());
        place(&mut bytes, 48, &1234_u64.to_le_bytes());
        assert_eq!(
            Struct::Stat.show(&bytes),
            "{st_mode=S_IFREG|0644, st_size=1234, ...}"
        );
        place(&mut bytes, 24, &0o020_666_u32.to_le_bytes());
        place(&mut bytes, 40, &0x103_u64.to_le_bytes());
        assert_eq!(
            Struct::Stat.show(&bytes),
            "{st_mode=S_IFCHR|0666, st_rdev=makedev(0x1, 0x3), ...}"
        );
        let words = |words: [u64; 4]| words.map(u64::to_le_bytes).concat();
        assert_eq!(
            Struct::SigAction.show(&words([1, 0x1400_0000, 0x7000, 1 << 16])),
            "{sa_handler=SIG_IGN, sa_mask=[SIGCHLD], sa_flags=SA_RESTORER|SA_RESTART, sa_restorer=0x7000}"
        );
        assert_eq!(
            Struct::Limit.show(&words([8 << 20, u64::MAX, 0, 0])),
            "{rlim_cur=8192*1024, rlim_max=RLIM64_INFINITY}"
        );
        assert_eq!(
            Struct::TimeSpec.show(&words([u64::MAX, 5, 0, 0])),
            "{tv_sec=-1, tv_nsec=5}"
        );
        assert_eq!(
            Struct::PollFd.show(&[3, 0, 0, 0, 5, 0, 0, 0]),
            "{fd=3, events=POLLIN|POLLOUT}"
        );
    }

    #[test]
    fn statuses_and_sets_look_as_strace_s() {
        assert_eq!(status(0x300), "[{WIFEXITED(s) && WEXITSTATUS(s) == 3}]");
        assert_eq!(status(9), "[{WIFSIGNALED(s) && WTERMSIG(s) == SIGKILL}]");
        assert_eq!(
            status(0x137f),
            "[{WIFSTOPPED(s) && WSTOPSIG(s) == SIGSTOP}]"
        );
        assert_eq!(status(0xffff), "[{WIFCONTINUED(s)}]");
        assert_eq!(signals(!0b10), "~[SIGINT]");
        assert_eq!(signals(0b10), "[SIGINT]");
    }

    #[test]
    fn addresses_look_as_strace_s() {
        let ip = [&[2, 0, 0, 80, 127, 0, 0, 1][..], &[0; 8]].concat();
        assert_eq!(
            address(&ip),
            "{sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr(\"127.0.0.1\")}"
        );
        assert_eq!(
            address(b"\x01\0/run/x\0"),
            "{sa_family=AF_UNIX, sun_path=\"/run/x\"}"
        );
        assert_eq!(
            address(b"\x01\0\0x"),
            "{sa_family=AF_UNIX, sun_path=@\"x\"}"
        );
        assert_eq!(address(b"\x02\0"), "{sa_family=AF_INET}");
        assert_eq!(address(b"\x63\0"), "{sa_family=0x63}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            address(&bytes);
            for each in ALL {
                each.show(&bytes);
            }
        }
    }
}
