//! Multicast groups: which queue pairs get what is sent to a group's GID.
//!
//! The card finds a group by a hash of its GID in the first half of the table, and groups of one
//! hash in a chain through the second half. The driver reads and writes entries by command, one
//! attachment at a time.
//!
//! Source: Linux `mlx4/mcg.c` (`mlx4_GID_HASH`, `find_entry`, `mlx4_qp_attach_common`,
//! `mlx4_qp_detach_common`).

use core::sync::atomic::{AtomicBool, Ordering};

use hal::{Duration, Platform};
use mlx4_hw::command::Opcode;
use mlx4_hw::mgm::{GroupEntry, GroupMembers, GroupNext, GroupQp, QPS_PER_ENTRY};
use spin::Mutex;
use verbs::{Parameter, Resource};
use zerocopy::{FromZeros, IntoBytes};

use crate::Error;
use crate::command::{Command, DEADLINE};
use crate::error::Awaited;
use crate::hca::Hca;
use crate::icm::LOG_GROUPS;
use crate::resources::Numbers;

/// Entries that are found by hash; those behind them are for chains.
const HASHED: u32 = 1 << (LOG_GROUPS - 1);
const ENTRIES: u32 = 1 << LOG_GROUPS;
/// Between two looks whether somebody else's change of the table is through.
const LOOK_AGAIN: Duration = Duration::from_micros(100);

/// The driver's copy of the table.
pub(crate) struct Groups {
    /// Somebody changes the table.
    busy: AtomicBool,
    spare: Mutex<Numbers>,
}

impl Groups {
    pub(crate) fn new() -> Self {
        let spare = Numbers::new(Resource::MulticastGroup, HASHED as usize, ENTRIES as usize);
        Self {
            busy: AtomicBool::new(false),
            spare: Mutex::new(spare),
        }
    }
}

/// The right to change the table.
struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// An entry and where it is.
struct Found {
    index: u32,
    entry: GroupEntry,
    /// The entry before it in its chain, if it is not the first.
    previous: Option<(u32, GroupEntry)>,
    /// Whether it is the group's; else it is the chain's last.
    matches: bool,
}

/// Returns the number of an entry's members, no more than it has room for.
fn count(entry: &GroupEntry) -> usize {
    (entry.members.count() as usize).min(QPS_PER_ENTRY)
}

fn place(entry: &GroupEntry, qpn: u32) -> Option<usize> {
    entry.qps[..count(entry)]
        .iter()
        .position(|qp| qp.qpn() == qpn)
}

fn set_count(entry: &mut GroupEntry, count: usize) {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    entry.members = GroupMembers::new().with_count(count);
}

impl<P: Platform> Hca<P> {
    async fn group_turn(&self) -> Result<Turn<'_>, Error> {
        let busy = &self.groups.busy;
        let deadline = self.platform.now() + DEADLINE;
        while busy.swap(true, Ordering::Acquire) {
            if self.platform.now() >= deadline {
                return Err(Error::Timeout {
                    event: Awaited::MulticastTable,
                    waited: DEADLINE,
                });
            }
            self.platform.sleep(LOOK_AGAIN).await;
        }
        Ok(Turn(busy))
    }

    async fn read_group(&self, index: u32) -> Result<GroupEntry, Error> {
        self.commands
            .query(Command::new(Opcode::READ_MCG).modifier(index))
            .await
    }

    async fn write_group(&self, index: u32, entry: &GroupEntry) -> Result<(), Error> {
        let command = Command::new(Opcode::WRITE_MCG)
            .modifier(index)
            .mailbox(entry.as_bytes());
        self.commands.run(command).await.map(drop)
    }

    /// The group's entry, or the last of the chain that it would be in.
    async fn find_group(&self, gid: &[u8; 16]) -> Result<Found, Error> {
        let hash = self
            .commands
            .run(Command::new(Opcode::MGID_HASH).mailbox(gid))
            .await?;
        let outside = |value| Error::OutOfRange {
            parameter: Parameter::MulticastIndex,
            value,
        };
        // The hash is of 16 bits; what lies above is not defined (Linux `mcg.c`, `mlx4_GID_HASH`;
        // iPXE `MT25408_PRM.h`).
        let hash = hash & u64::from(u16::MAX);
        let mut index = u32::try_from(hash)
            .ok()
            .filter(|&index| index < HASHED)
            .ok_or(outside(hash))?;
        let mut previous = None;
        for _ in 0..ENTRIES {
            let entry = self.read_group(index).await?;
            let next = entry.next.index();
            let matches = count(&entry) > 0 && entry.gid == *gid;
            if matches || next == 0 {
                return Ok(Found {
                    index,
                    entry,
                    previous,
                    matches,
                });
            }
            if !(HASHED..ENTRIES).contains(&next) {
                return Err(outside(next.into()));
            }
            previous = Some((index, entry));
            index = next;
        }
        Err(outside(index.into())) // a chain without end
    }

    /// Makes a queue pair a receiver of the group.
    pub(crate) async fn attach(&self, qpn: u32, gid: [u8; 16]) -> Result<(), Error> {
        let _turn = self.group_turn().await?;
        let mut found = self.find_group(&gid).await?;
        let member = GroupQp::new().with_qpn(qpn);
        if found.matches {
            let count = count(&found.entry);
            if place(&found.entry, qpn).is_some() {
                return Ok(());
            }
            let limit = QPS_PER_ENTRY as u64;
            let free = found.entry.qps.get_mut(count).ok_or(Error::Exhausted {
                resource: Resource::MulticastMember,
                limit,
            })?;
            *free = member;
            set_count(&mut found.entry, count + 1);
            return self.write_group(found.index, &found.entry).await;
        }
        let mut entry = GroupEntry::new_zeroed();
        entry.gid = gid;
        entry.qps[0] = member;
        set_count(&mut entry, 1);
        if count(&found.entry) == 0 && found.previous.is_none() {
            return self.write_group(found.index, &entry).await;
        }
        // Complete before the chain leads to it.
        let spare = self.groups.spare.lock().take()?;
        self.write_group(spare, &entry).await?;
        found.entry.next = GroupNext::new().with_index(spare);
        self.write_group(found.index, &found.entry).await
    }

    /// Makes a queue pair a receiver of the group no longer.
    pub(crate) async fn detach(&self, qpn: u32, gid: [u8; 16]) -> Result<(), Error> {
        let _turn = self.group_turn().await?;
        let mut found = self.find_group(&gid).await?;
        let Some(at) = place(&found.entry, qpn).filter(|_| found.matches) else {
            return Ok(());
        };
        let left = count(&found.entry) - 1;
        found.entry.qps.swap(at, left);
        found.entry.qps[left] = GroupQp::new();
        set_count(&mut found.entry, left);
        if left > 0 {
            return self.write_group(found.index, &found.entry).await;
        }
        let next = found.entry.next.index();
        let freed = match found.previous {
            Some((index, mut entry)) => {
                // The chain leads past the entry before its number is given back: the card may
                // follow it at any time (Linux `mcg.c`, `mlx4_qp_detach_common`, writes the entry
                // before, then frees the index).
                entry.next = found.entry.next;
                self.write_group(index, &entry).await?;
                found.index
            }
            None if (HASHED..ENTRIES).contains(&next) => {
                // The first of a chain has a fixed place: the second moves into it.
                let second = self.read_group(next).await?;
                self.write_group(found.index, &second).await?;
                next
            }
            None => {
                return self
                    .write_group(found.index, &GroupEntry::new_zeroed())
                    .await;
            }
        };
        self.groups.spare.lock().give_back(freed);
        Ok(())
    }
}
