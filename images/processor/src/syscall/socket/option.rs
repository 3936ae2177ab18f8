//! Options of sockets: reading and setting.

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use core::time::Duration;

use super::super::{Args, int};
use super::interface::LOOPBACK_NAME;
use super::packets;
use crate::error::{Result, errno};
use crate::process::Node;
use crate::socket::{self, AF_INET6, AF_NETLINK, CONGESTION, Socket, Timestamps};
use crate::thread::Thread;

/// Levels (Linux `include/linux/socket.h`).
pub(super) const SOL_SOCKET: u32 = 1;
pub(super) const IPPROTO_IP: u32 = 0;
const SOL_NETLINK: u32 = 270;
const IPPROTO_TCP: u32 = 6;
pub(super) const IPPROTO_UDP: u32 = 17;
pub(super) const IPPROTO_UDPLITE: u32 = 136;
pub(super) const IPPROTO_IPV6: u32 = 41;
/// Options of sockets (Linux `include/uapi/asm-generic/socket.h`).
mod so {
    pub(super) const DEBUG: u32 = 1;
    pub(super) const REUSEADDR: u32 = 2;
    pub(super) const TYPE: u32 = 3;
    pub(super) const ERROR: u32 = 4;
    pub(super) const DONTROUTE: u32 = 5;
    pub(super) const BROADCAST: u32 = 6;
    pub(super) const SNDBUF: u32 = 7;
    pub(super) const RCVBUF: u32 = 8;
    pub(super) const KEEPALIVE: u32 = 9;
    pub(super) const OOBINLINE: u32 = 10;
    pub(super) const NO_CHECK: u32 = 11;
    pub(super) const PRIORITY: u32 = 12;
    pub(super) const LINGER: u32 = 13;
    pub(super) const REUSEPORT: u32 = 15;
    pub(super) const PASSCRED: u32 = 16;
    pub(super) const PEERCRED: u32 = 17;
    pub(super) const RCVLOWAT: u32 = 18;
    pub(super) const SNDLOWAT: u32 = 19;
    pub(super) const RCVTIMEO: u32 = 20;
    pub(super) const SNDTIMEO: u32 = 21;
    pub(super) const BINDTODEVICE: u32 = 25;
    pub(super) const TIMESTAMP: u32 = 29;
    pub(super) const ACCEPTCONN: u32 = 30;
    pub(super) const SNDBUFFORCE: u32 = 32;
    pub(super) const RCVBUFFORCE: u32 = 33;
    pub(super) const TIMESTAMPNS: u32 = 35;
    pub(super) const MARK: u32 = 36;
    pub(super) const PROTOCOL: u32 = 38;
    pub(super) const DOMAIN: u32 = 39;
}
/// Options of TCP (Linux `include/uapi/linux/tcp.h`).
mod tcp {
    pub(super) const NODELAY: u32 = 1;
    pub(super) const MAXSEG: u32 = 2;
    pub(super) const CORK: u32 = 3;
    pub(super) const KEEPIDLE: u32 = 4;
    pub(super) const KEEPINTVL: u32 = 5;
    pub(super) const KEEPCNT: u32 = 6;
    pub(super) const SYNCNT: u32 = 7;
    pub(super) const DEFER_ACCEPT: u32 = 9;
    pub(super) const QUICKACK: u32 = 12;
    pub(super) const CONGESTION: u32 = 13;
    pub(super) const USER_TIMEOUT: u32 = 18;
    pub(super) const FASTOPEN: u32 = 23;
    pub(super) const FASTOPEN_CONNECT: u32 = 30;
}
const IPV6_V6ONLY: u32 = 26;
/// Bytes of the longest option that is read.
const MOST: usize = 16;

fn timeval(time: Option<Duration>) -> Vec<u8> {
    let time = time.unwrap_or_default();
    let words = [time.as_secs(), u64::from(time.subsec_micros())];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn read_timeval(bytes: &[u8]) -> Result<Option<Duration>> {
    let words = bytes.first_chunk::<16>().ok_or(errno::EINVAL)?;
    let word = |at: usize| i64::from_le_bytes(words[at..at + 8].try_into().expect("eight bytes"));
    let (seconds, micros) = (word(0), word(8));
    if !(0..1_000_000).contains(&micros) {
        return Err(errno::EDOM.into());
    }
    match u64::try_from(seconds) {
        Ok(0) if micros == 0 => Ok(None),
        Ok(seconds) => Ok(Some(
            Duration::from_secs(seconds) + Duration::from_micros(micros.unsigned_abs()),
        )),
        // As Linux: a negative time has passed.
        Err(_) => Ok(Some(Duration::ZERO)),
    }
}

impl<N: Node> Thread<N> {
    pub(super) async fn sys_setsockopt(
        &self,
        [fd, level, name, addr, len, _]: Args,
    ) -> Result<u64> {
        let file = self.file(fd)?;
        let socket = socket::of(&file)?;
        let len = usize::try_from(int(len).cast_signed()).map_err(|_| errno::EINVAL)?;
        let mut bytes = vec![0; len.min(MOST)];
        self.memory.read(addr, &mut bytes).await?;
        let word = bytes.first_chunk().map(|word| u32::from_le_bytes(*word));
        match (int(level), int(name)) {
            (SOL_SOCKET, so::BINDTODEVICE) => bind_to_device(socket, &bytes)?,
            (SOL_SOCKET, name) => set_socket(socket, name, &bytes, word)?,
            (IPPROTO_TCP, tcp::CONGESTION) if !socket.is_local() && socket.is_stream() => {
                let known = CONGESTION
                    .into_iter()
                    .find(|name| name.as_bytes() == text(&bytes));
                let known = known.ok_or(if bytes.is_empty() {
                    errno::EINVAL
                } else {
                    errno::ENOENT
                });
                socket.options.lock().congestion = known?;
            }
            (IPPROTO_TCP, name) if !socket.is_local() && socket.is_stream() => {
                set_tcp(socket, name, word.ok_or(errno::EINVAL)?)?;
            }
            (IPPROTO_IPV6, IPV6_V6ONLY) if socket.family == AF_INET6 => {
                self.node.kernel().net.nameless(socket)?;
                let only = word.ok_or(errno::EINVAL)? != 0;
                socket.sharing().only_v6.store(only, Ordering::Relaxed);
            }
            (level @ (IPPROTO_IP | IPPROTO_UDP | IPPROTO_UDPLITE), name) if !socket.is_local() => {
                packets::set(socket, level, name, &bytes)?;
            }
            (IPPROTO_IPV6, name) if socket.family == AF_INET6 => {
                packets::set(socket, IPPROTO_IPV6, name, &bytes)?;
            }
            (IPPROTO_TCP | IPPROTO_IPV6, _) if !socket.is_local() => {
                return Err(errno::ENOPROTOOPT.into());
            }
            // Acknowledgements' details, strict checks, groups: there is nothing that they change.
            (SOL_NETLINK, 1..=12) if socket.family == AF_NETLINK => {}
            (SOL_NETLINK, _) if socket.family == AF_NETLINK => {
                return Err(errno::ENOPROTOOPT.into());
            }
            _ => return Err(errno::EOPNOTSUPP.into()),
        }
        Ok(0)
    }

    pub(super) async fn sys_getsockopt(
        &self,
        [fd, level, name, into, len_at, _]: Args,
    ) -> Result<u64> {
        let file = self.file(fd)?;
        let socket = socket::of(&file)?;
        let mut room = [0; 4];
        self.memory.read(len_at, &mut room).await?;
        let room = usize::try_from(i32::from_le_bytes(room)).map_err(|_| errno::EINVAL)?;
        let value = match (int(level), int(name)) {
            (SOL_SOCKET, name) => get_socket(socket, name)?,
            (IPPROTO_TCP, tcp::CONGESTION) if !socket.is_local() && socket.is_stream() => {
                let mut name = socket.options.lock().congestion.as_bytes().to_vec();
                name.resize(MOST, 0);
                name
            }
            (IPPROTO_TCP, name) if !socket.is_local() && socket.is_stream() => {
                get_tcp(socket, name)?
            }
            (IPPROTO_IPV6, IPV6_V6ONLY) if socket.family == AF_INET6 => {
                flag(socket.sharing().only_v6.load(Ordering::Relaxed))
            }
            (level @ (IPPROTO_IP | IPPROTO_UDP | IPPROTO_UDPLITE), name) if !socket.is_local() => {
                packets::get(socket, level, name)?
            }
            (IPPROTO_IPV6, name) if socket.family == AF_INET6 => {
                packets::get(socket, IPPROTO_IPV6, name)?
            }
            (IPPROTO_TCP | IPPROTO_IPV6, _) if !socket.is_local() => {
                return Err(errno::ENOPROTOOPT.into());
            }
            _ => return Err(errno::EOPNOTSUPP.into()),
        };
        let given = &value[..room.min(value.len())];
        self.memory.write(into, given).await?;
        let len = u32::try_from(given.len()).unwrap_or(0);
        self.memory.write(len_at, &len.to_le_bytes()).await?;
        Ok(0)
    }
}

/// Returns the bytes up to the first zero.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or(bytes)
}

/// Binds a socket to an interface; an empty name takes that back.
///
/// # Errors
///
/// ENODEV: there is only the loopback interface.
fn bind_to_device(socket: &Socket, bytes: &[u8]) -> Result<()> {
    let bound = match text(bytes) {
        b"" => false,
        LOOPBACK_NAME => true,
        _ => return Err(errno::ENODEV.into()),
    };
    socket.options.lock().on_loopback = bound;
    Ok(())
}

fn flag(on: bool) -> Vec<u8> {
    u32::from(on).to_le_bytes().to_vec()
}

fn number(value: usize) -> Vec<u8> {
    u32::try_from(value)
        .unwrap_or(u32::MAX)
        .to_le_bytes()
        .to_vec()
}

fn set_socket(socket: &Socket, name: u32, bytes: &[u8], word: Option<u32>) -> Result<()> {
    let word = word.ok_or(errno::EINVAL)?;
    let on = word != 0;
    let mut options = socket.options.lock();
    match name {
        so::REUSEADDR => socket.sharing().reuse_addr.store(on, Ordering::Relaxed),
        so::REUSEPORT if socket.is_local() => return Err(errno::EOPNOTSUPP.into()),
        so::REUSEPORT => socket.sharing().reuse_port.store(on, Ordering::Relaxed),
        so::SNDBUF | so::SNDBUFFORCE => {
            options.set_send_buffer(word);
            let capacity = options.capacity();
            drop(options);
            socket.bound_sending(capacity);
        }
        so::RCVBUF | so::RCVBUFFORCE => options.set_receive_buffer(word),
        so::KEEPALIVE => options.keep_alive = on,
        so::BROADCAST => options.broadcast = on,
        so::PRIORITY => options.priority = word,
        so::LINGER => {
            let words = bytes.first_chunk::<8>().ok_or(errno::EINVAL)?;
            let (on, seconds) = words.split_at(4);
            let part = |part: &[u8]| u32::from_le_bytes(part.try_into().expect("four bytes"));
            options.linger = [u32::from(part(on) != 0), part(seconds)];
        }
        so::PASSCRED if !socket.is_local() => return Err(errno::EOPNOTSUPP.into()),
        so::PASSCRED => options.pass_credentials = on,
        so::RCVLOWAT => options.low_water = word.max(1),
        so::RCVTIMEO => options.receive_timeout = read_timeval(bytes)?,
        so::SNDTIMEO => options.send_timeout = read_timeval(bytes)?,
        so::TIMESTAMP | so::TIMESTAMPNS => {
            options.timestamps = match name {
                _ if !on => Timestamps::Off,
                so::TIMESTAMP => Timestamps::Micros,
                _ => Timestamps::Nanos,
            };
        }
        so::DEBUG | so::DONTROUTE | so::OOBINLINE | so::NO_CHECK | so::MARK => {}
        _ => return Err(errno::ENOPROTOOPT.into()),
    }
    Ok(())
}

fn get_socket(socket: &Socket, name: u32) -> Result<Vec<u8>> {
    let options = socket.options.lock().clone();
    let protocol = socket.proto as u32;
    Ok(match name {
        so::REUSEADDR => flag(socket.sharing().reuse_addr.load(Ordering::Relaxed)),
        so::REUSEPORT => flag(socket.sharing().reuse_port.load(Ordering::Relaxed)),
        so::TYPE => number(socket.kind as usize),
        so::DOMAIN => number(socket.family.into()),
        so::PROTOCOL => protocol.to_le_bytes().to_vec(),
        so::ERROR => {
            let error = socket.take_error().map_or(0, |error| error.0);
            error.to_le_bytes().to_vec()
        }
        so::SNDBUF => number(options.send_buffer),
        so::RCVBUF => number(options.receive_buffer),
        so::KEEPALIVE => flag(options.keep_alive),
        so::BROADCAST => flag(options.broadcast),
        so::PRIORITY => options.priority.to_le_bytes().to_vec(),
        so::LINGER => options
            .linger
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect(),
        so::PASSCRED if !socket.is_local() => return Err(errno::EOPNOTSUPP.into()),
        so::PASSCRED => flag(options.pass_credentials),
        so::PEERCRED => {
            let peer = socket.peer_credentials();
            let words = peer.map_or([0, u32::MAX, u32::MAX], |peer| {
                [peer.pid, peer.uid, peer.gid]
            });
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        }
        so::RCVLOWAT => options.low_water.to_le_bytes().to_vec(),
        so::SNDLOWAT => number(1),
        so::RCVTIMEO => timeval(options.receive_timeout),
        so::SNDTIMEO => timeval(options.send_timeout),
        so::ACCEPTCONN => flag(socket.listens()),
        so::TIMESTAMP => flag(options.timestamps == Timestamps::Micros),
        so::TIMESTAMPNS => flag(options.timestamps == Timestamps::Nanos),
        so::BINDTODEVICE if options.on_loopback => [LOOPBACK_NAME, &[0]].concat(),
        so::BINDTODEVICE => Vec::new(),
        so::DEBUG | so::DONTROUTE | so::OOBINLINE | so::NO_CHECK | so::MARK => flag(false),
        _ => return Err(errno::ENOPROTOOPT.into()),
    })
}

fn set_tcp(socket: &Socket, name: u32, word: u32) -> Result<()> {
    let mut options = socket.options.lock();
    let on = word != 0;
    // The bounds of Linux's `MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL` and `MAX_TCP_KEEPCNT`.
    let bounded = |most: u32| {
        let fits = (1..=most).contains(&word);
        fits.then_some(word).ok_or(errno::EINVAL)
    };
    match name {
        tcp::NODELAY => options.no_delay = on,
        tcp::CORK => options.cork = on,
        tcp::KEEPIDLE => options.keep[0] = bounded(32_767)?,
        tcp::KEEPINTVL => options.keep[1] = bounded(32_767)?,
        tcp::KEEPCNT => options.keep[2] = bounded(127)?,
        tcp::SYNCNT => drop(bounded(127)?),
        tcp::DEFER_ACCEPT => options.defer_accept = word,
        tcp::QUICKACK => options.quick_ack = on,
        tcp::USER_TIMEOUT => options.user_timeout = word,
        tcp::FASTOPEN_CONNECT if word > 1 => return Err(errno::EINVAL.into()),
        tcp::FASTOPEN_CONNECT => options.fast_open_connect = on,
        tcp::MAXSEG | tcp::FASTOPEN => {}
        _ => return Err(errno::ENOPROTOOPT.into()),
    }
    Ok(())
}

fn get_tcp(socket: &Socket, name: u32) -> Result<Vec<u8>> {
    let options = socket.options.lock().clone();
    let word = match name {
        tcp::NODELAY => u32::from(options.no_delay),
        tcp::CORK => u32::from(options.cork),
        tcp::KEEPIDLE => options.keep[0],
        tcp::KEEPINTVL => options.keep[1],
        tcp::KEEPCNT => options.keep[2],
        tcp::SYNCNT => 6,
        tcp::DEFER_ACCEPT => options.defer_accept,
        tcp::QUICKACK => u32::from(options.quick_ack),
        tcp::USER_TIMEOUT => options.user_timeout,
        // What Linux says before a connection.
        tcp::MAXSEG => 536,
        tcp::FASTOPEN => 0,
        tcp::FASTOPEN_CONNECT => u32::from(options.fast_open_connect),
        _ => return Err(errno::ENOPROTOOPT.into()),
    };
    Ok(word.to_le_bytes().to_vec())
}
