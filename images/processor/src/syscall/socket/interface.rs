//! The loopback interface, as `ioctl` tells of it (Linux `net/core/dev_ioctl.c`,
//! `net/ipv4/devinet.c`). There is no other.

use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddr};

use super::int;
use crate::error::{Result, errno};
use crate::process::Node;
use crate::socket::{AF_INET, Address, Socket};
use crate::thread::Thread;

/// Requests (Linux `include/uapi/linux/sockios.h`).
pub(crate) const FIRST: u64 = 0x8910;
const SIOCGIFNAME: u64 = FIRST;
const SIOCGIFCONF: u64 = 0x8912;
const SIOCGIFFLAGS: u64 = 0x8913;
const SIOCGIFADDR: u64 = 0x8915;
const SIOCGIFDSTADDR: u64 = 0x8917;
const SIOCGIFBRDADDR: u64 = 0x8919;
const SIOCGIFNETMASK: u64 = 0x891b;
const SIOCGIFMETRIC: u64 = 0x891d;
const SIOCGIFMTU: u64 = 0x8921;
const SIOCGIFHWADDR: u64 = 0x8927;
const SIOCGIFINDEX: u64 = 0x8933;
const SIOCGIFTXQLEN: u64 = 0x8942;
pub(crate) const LAST: u64 = SIOCGIFTXQLEN;
/// Bytes of `struct ifreq`, and of its name.
const REQUEST: usize = 40;
const NAME: usize = 16;
/// The interface's name and number.
pub(super) const LOOPBACK_NAME: &[u8] = b"lo";
pub(super) const LOOPBACK: u32 = 1;
const ADDRESS: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// `IFF_UP`, `IFF_LOOPBACK`, `IFF_RUNNING`.
const FLAGS: u16 = 0x49;
const MTU: u32 = 65_536;
/// `ARPHRD_LOOPBACK`, in place of an address's family.
const KIND: u16 = 772;
const QUEUE: u32 = 1000;

fn address(ip: Ipv4Addr) -> Vec<u8> {
    Address::Ip(SocketAddr::new(ip.into(), 0)).encode(AF_INET)
}

fn named(value: &[u8]) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    bytes[..LOOPBACK_NAME.len()].copy_from_slice(LOOPBACK_NAME);
    bytes[NAME..NAME + value.len()].copy_from_slice(value);
    bytes
}

impl<N: Node> Thread<N> {
    /// Answers a request about an interface.
    ///
    /// # Errors
    ///
    /// ENODEV for another interface, ENOTTY for an unknown request.
    pub(crate) async fn interface(&self, socket: &Socket, request: u64, at: u64) -> Result<u64> {
        if request == SIOCGIFCONF {
            return self.interfaces(at).await;
        }
        let mut bytes = [0; REQUEST];
        self.memory.read(at, &mut bytes).await?;
        if request == SIOCGIFNAME {
            if bytes[NAME..NAME + 4] != LOOPBACK.to_le_bytes() {
                return Err(errno::ENODEV.into());
            }
            self.memory
                .write(at, &named(&LOOPBACK.to_le_bytes()))
                .await?;
            return Ok(0);
        }
        let value = match request {
            SIOCGIFFLAGS => FLAGS.to_le_bytes().to_vec(),
            SIOCGIFADDR | SIOCGIFDSTADDR if socket.family == AF_INET => address(ADDRESS),
            SIOCGIFBRDADDR if socket.family == AF_INET => address(Ipv4Addr::UNSPECIFIED),
            SIOCGIFNETMASK if socket.family == AF_INET => address(Ipv4Addr::new(255, 0, 0, 0)),
            SIOCGIFMETRIC => 0_u32.to_le_bytes().to_vec(),
            SIOCGIFMTU => MTU.to_le_bytes().to_vec(),
            SIOCGIFHWADDR => [&KIND.to_le_bytes()[..], &[0; 14]].concat(),
            SIOCGIFINDEX => LOOPBACK.to_le_bytes().to_vec(),
            SIOCGIFTXQLEN => QUEUE.to_le_bytes().to_vec(),
            _ => return Err(errno::ENOTTY.into()),
        };
        let name = bytes[..NAME].split(|byte| *byte == 0).next();
        if name != Some(LOOPBACK_NAME) {
            return Err(errno::ENODEV.into());
        }
        self.memory.write(at + NAME as u64, &value).await?;
        Ok(0)
    }

    /// Lists the interfaces with addresses of IP version 4 (`struct ifconf`).
    async fn interfaces(&self, at: u64) -> Result<u64> {
        let mut words = [0; 16];
        self.memory.read(at, &mut words).await?;
        let word = |at: usize| u64::from_le_bytes(words[at..at + 8].try_into().expect("eight"));
        let (room, list) = (int(word(0)).cast_signed(), word(8));
        let entry = named(&address(ADDRESS));
        let fits = usize::try_from(room).is_ok_and(|room| room >= entry.len());
        // Without a list the length of a whole one is told.
        let told = if list == 0 || fits { entry.len() } else { 0 };
        if list != 0 {
            self.memory.write(list, &entry[..told]).await?;
        }
        self.memory
            .write(at, &int(told as u64).to_le_bytes())
            .await?;
        Ok(0)
    }
}
