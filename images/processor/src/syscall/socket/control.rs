//! Control messages (`struct cmsghdr`): open files, the sender's identity, fields of packets.

use alloc::vec::Vec;

use super::option::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_UDP, SOL_SOCKET};
use super::packets::{IP_TOS, IP_TTL, IPV6_HOPLIMIT, IPV6_TCLASS, UDP_SEGMENT};
use crate::error::{Result, errno};
use crate::socket::Credentials;

pub(super) const SCM_RIGHTS: u32 = 1;
pub(super) const SCM_CREDENTIALS: u32 = 2;
/// Bytes of `struct cmsghdr`.
pub(super) const HEADER: usize = 16;
/// Open files that one message carries at most (`SCM_MAX_FD`).
pub(super) const MAX_FILES: usize = 253;

/// The control messages that a program sends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Control {
    pub(super) files: Vec<u32>,
    pub(super) credentials: Option<Credentials>,
    pub(super) v4: Chosen,
    pub(super) v6: Chosen,
    /// Bytes of each datagram that the bytes are cut into (`UDP_SEGMENT`).
    pub(super) segment: Option<u16>,
}

/// Fields of a header that a message chooses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Chosen {
    pub(super) hops: Option<u8>,
    pub(super) class: Option<u8>,
}

fn number(data: &[u8]) -> Result<i32> {
    let value = data.first_chunk().map(|word| i32::from_le_bytes(*word));
    value.ok_or_else(|| errno::EINVAL.into())
}

/// Reads a field of IP version 4: at least `least`.
fn field(data: &[u8], least: u8) -> Result<Option<u8>> {
    let value = u8::try_from(number(data)?).ok();
    let value = value.filter(|value| *value >= least);
    value.map(Some).ok_or_else(|| errno::EINVAL.into())
}

/// Reads a field of IP version 6, where -1 stands for the socket's own.
fn field6(data: &[u8]) -> Result<Option<u8>> {
    if number(data)? == -1 {
        return Ok(None);
    }
    field(data, 0)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|bytes| bytes.first_chunk());
    word.map_or(0, |word| u32::from_le_bytes(*word))
}

impl Control {
    /// Reads control messages.
    ///
    /// # Errors
    ///
    /// EINVAL for a length that does not fit, an unknown kind, or too many files.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self> {
        let mut control = Self::default();
        while bytes.len() >= HEADER {
            let len = bytes
                .first_chunk()
                .map(|len| u64::from_le_bytes(*len))
                .unwrap_or(0);
            let len = usize::try_from(len).map_err(|_| errno::EINVAL)?;
            let data = bytes.get(HEADER..len).ok_or(errno::EINVAL)?;
            match (word(bytes, 8), word(bytes, 12)) {
                (SOL_SOCKET, SCM_RIGHTS) => {
                    let fds = data.chunks_exact(4).map(|fd| word(fd, 0));
                    control.files.extend(fds);
                    if control.files.len() > MAX_FILES {
                        return Err(errno::EINVAL.into());
                    }
                }
                (SOL_SOCKET, SCM_CREDENTIALS) if data.len() == 12 => {
                    control.credentials = Some(Credentials {
                        pid: word(data, 0),
                        uid: word(data, 4),
                        gid: word(data, 8),
                    });
                }
                (SOL_SOCKET, _) => return Err(errno::EINVAL.into()),
                (IPPROTO_IP, IP_TTL) => control.v4.hops = field(data, 1)?,
                // A byte is enough (Linux `net/ipv4/ip_sockglue.c`, `ip_cmsg_send`).
                (IPPROTO_IP, IP_TOS) if data.len() == 1 => control.v4.class = Some(data[0]),
                (IPPROTO_IP, IP_TOS) => control.v4.class = field(data, 0)?,
                (IPPROTO_IPV6, IPV6_HOPLIMIT) => control.v6.hops = field6(data)?,
                (IPPROTO_IPV6, IPV6_TCLASS) => control.v6.class = field6(data)?,
                (IPPROTO_UDP, UDP_SEGMENT) => {
                    let half = data.first_chunk().ok_or(errno::EINVAL)?;
                    control.segment = Some(u16::from_le_bytes(*half));
                }
                _ => {}
            }
            bytes = bytes.get(len.next_multiple_of(8)..).unwrap_or(&[]);
        }
        Ok(control)
    }
}

/// Control messages that are given to a program, in the room that it has for them.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) bytes: Vec<u8>,
    room: usize,
    /// Something did not fit (`MSG_CTRUNC`).
    pub(super) cut: bool,
}

impl Given {
    pub(super) fn new(room: usize) -> Self {
        Self {
            bytes: Vec::new(),
            room,
            cut: false,
        }
    }

    /// Returns how many files would fit.
    pub(super) fn files_that_fit(&self) -> usize {
        let left = self.room - self.bytes.len();
        left.saturating_sub(HEADER) / 4
    }

    /// Adds a control message, or as much of it as fits.
    pub(super) fn put(&mut self, level: u32, kind: u32, data: &[u8]) {
        let left = self.room - self.bytes.len();
        if left < HEADER {
            self.cut = true;
            return;
        }
        let len = (HEADER + data.len()).min(left);
        self.cut |= len < HEADER + data.len();
        self.bytes.extend_from_slice(&(len as u64).to_le_bytes());
        self.bytes.extend_from_slice(&level.to_le_bytes());
        self.bytes.extend_from_slice(&kind.to_le_bytes());
        self.bytes.extend_from_slice(&data[..len - HEADER]);
        let padded = self.bytes.len().next_multiple_of(8).min(self.room);
        self.bytes.resize(padded, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(len: u64, level: u32, kind: u32) -> Vec<u8> {
        [
            &len.to_le_bytes()[..],
            &level.to_le_bytes(),
            &kind.to_le_bytes(),
        ]
        .concat()
    }

    #[test]
    fn control_messages_are_read_and_their_lengths_checked() {
        let mut bytes = header(20, 1, SCM_RIGHTS);
        bytes.extend([3, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(header(28, 1, SCM_CREDENTIALS));
        bytes.extend([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
        let control = Control::parse(&bytes).unwrap();
        assert_eq!(control.files, [3]);
        assert_eq!(
            control.credentials,
            Some(Credentials {
                pid: 1,
                uid: 2,
                gid: 3
            })
        );
        for bad in [
            header(15, 1, SCM_RIGHTS),
            header(17, 1, SCM_RIGHTS),
            header(u64::MAX, 1, SCM_RIGHTS),
            header(16, 1, SCM_CREDENTIALS),
            header(16, 1, 99),
        ] {
            assert_eq!(Control::parse(&bad), Err(errno::EINVAL.into()), "{bad:?}");
        }
        assert_eq!(Control::parse(&header(16, 41, 99)), Ok(Control::default()));
        let many = [header(16 + 254 * 4, 1, SCM_RIGHTS), vec![0; 254 * 4]].concat();
        assert_eq!(Control::parse(&many), Err(errno::EINVAL.into()));
    }

    #[test]
    fn what_does_not_fit_is_cut_and_said() {
        let mut given = Given::new(40);
        assert_eq!(given.files_that_fit(), 6);
        given.put(SOL_SOCKET, SCM_RIGHTS, &[7, 0, 0, 0]);
        assert_eq!((given.bytes.len(), given.cut), (24, false));
        given.put(SOL_SOCKET, SCM_CREDENTIALS, &[1; 12]);
        assert_eq!((given.bytes.len(), given.cut), (40, true));
        assert_eq!(given.bytes[24..32], 16u64.to_le_bytes());
        given.put(SOL_SOCKET, SCM_CREDENTIALS, &[1; 12]);
        assert_eq!(given.bytes.len(), 40);
    }
}
