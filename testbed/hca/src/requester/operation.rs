//! Packets of a send: which operation each carries.

use fabric::{Operation, Place, RemoteRange};
use verbs::Rkey;

use super::Pending;
use crate::wqe::Task;

/// Returns the operation of packet number `packet` of a send.
pub(super) fn operation(pending: &Pending, packet: u32, mtu: u32) -> Operation {
    let last = packet + 1 == pending.packets;
    let place = Place::new(packet == 0, last);
    let len = pending.work.len;
    match pending.work.task {
        Task::Write { addr, rkey, imm } => Operation::Write {
            place,
            to: (packet == 0).then_some(RemoteRange {
                addr,
                rkey: Rkey(rkey),
                len,
            }),
            imm: imm.filter(|_| last),
        },
        Task::Read { addr, rkey } => Operation::ReadRequest(RemoteRange {
            addr: addr.wrapping_add(u64::from(packet) * u64::from(mtu)),
            rkey: Rkey(rkey),
            len: len - packet * mtu,
        }),
        Task::Atomic { addr, rkey, op } => Operation::Atomic {
            addr,
            rkey: Rkey(rkey),
            op,
        },
        Task::Send { imm, invalidate } => Operation::Send {
            place,
            imm: imm.filter(|_| last),
            invalidate: invalidate.filter(|_| last).map(Rkey),
        },
        _ => Operation::Send {
            place,
            imm: None,
            invalidate: None,
        },
    }
}
