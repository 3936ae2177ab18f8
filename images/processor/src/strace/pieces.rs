//! Reads of the program's memory for the trace: structures, lists of them, sockets' addresses. An
//! argument that leads nowhere is shown as a number.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::structs::{self, Struct};
use crate::process::Node;
use crate::thread::Thread;

/// Structures or pieces of a list that are shown.
const MAX_LISTED: u64 = 16;
/// The most bytes of a socket's address (`struct sockaddr_storage`).
const MAX_ADDRESS: usize = 128;

/// Returns an address that leads nowhere.
fn pointer(addr: u64) -> String {
    if addr == 0 {
        "NULL".into()
    } else {
        format!("{addr:#x}")
    }
}

/// Returns the texts of a list of so many as one.
fn list(mut shown: Vec<String>, count: u64) -> String {
    if count > MAX_LISTED {
        shown.push("...".into());
    }
    format!("[{}]", shown.join(", "))
}

impl<N: Node> Thread<N> {
    pub(super) async fn show_struct(&self, kind: Struct, addr: u64) -> String {
        let mut bytes = [0; structs::MAX];
        let bytes = &mut bytes[..kind.size()];
        if addr == 0 || self.memory.read(addr, bytes).await.is_err() {
            return pointer(addr);
        }
        kind.show(bytes)
    }

    pub(super) async fn show_list(&self, kind: Struct, addr: u64, count: u64) -> String {
        let mut shown = Vec::new();
        for index in 0..count.min(MAX_LISTED) {
            let at = addr.wrapping_add(index * kind.size() as u64);
            shown.push(self.show_struct(kind, at).await);
        }
        list(shown, count)
    }

    /// Shows `count` pieces of memory (`struct iovec`), of which `len` bytes in all are of
    /// interest.
    pub(super) async fn show_pieces(&self, addr: u64, count: u64, len: u64) -> String {
        let (mut shown, mut left) = (Vec::new(), len);
        for index in 0..count.min(MAX_LISTED) {
            let at = addr.wrapping_add(index * 16);
            let (base, size) = (
                self.memory.read_u64(at).await,
                self.memory.read_u64(at.wrapping_add(8)).await,
            );
            let (Ok(base), Ok(size)) = (base, size) else {
                return pointer(addr);
            };
            let bytes = self.show_bytes(base, size.min(left)).await;
            left -= size.min(left);
            shown.push(format!("{{iov_base={bytes}, iov_len={size}}}"));
        }
        list(shown, count)
    }

    pub(super) async fn show_address(&self, addr: u64, len: u64) -> String {
        let len =
            usize::try_from(len & 0xffff_ffff).map_or(MAX_ADDRESS, |len| len.min(MAX_ADDRESS));
        let mut bytes = vec![0; len];
        if addr == 0 || len < 2 || self.memory.read(addr, &mut bytes).await.is_err() {
            return pointer(addr);
        }
        structs::address(&bytes)
    }

    /// Shows an address whose length `len` leads to.
    pub(super) async fn show_out_address(&self, addr: u64, len: u64) -> String {
        let mut word = [0; 4];
        if addr == 0 || len == 0 || self.memory.read(len, &mut word).await.is_err() {
            return pointer(addr);
        }
        self.show_address(addr, u32::from_le_bytes(word).into())
            .await
    }
}
