//! Leases of S's files, and what is read under them without asking S.
//!
//! While S has granted this node a read lease of a file, no other node changes it: what the node
//! keeps of the file holds, its status and the pages in M's memory (`mm::file`). A recall only
//! takes the lease away ([`Leases::recalled`]); pages are told stale by the generation of the lease
//! that they were read under, when they are used next.
//!
//! This node's own programs change files under its lease. A status is kept with a [`Stamp`] of
//! their changes, and a file's size is taken over from S only while no program changes the file.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use hal::Instant;
use leases::{Ask, Holder, Kind};
use messages::recall::{MAX_PART, ProcessorRequest, Recall, Recalled};
use messages::storage::{Caller, FileId, OpenFlags, Opened, Rest, Stat};
use messages::{Errno, encode_reply};
use spin::Mutex;

use crate::error::Result;
use crate::files::OpenFile;
use crate::gather::Settle;
use crate::kernel::Kernel;
use crate::load::PIECE;
use crate::mm::file::{FilePages, pages_of};
use crate::platform::{Files, Platform};
use crate::process::Node;
use crate::storage::{self, Stamp, StorageFile};

/// The most files whose status is kept; a full table is emptied.
const MAX_KNOWN: usize = 4096;

/// A file's status, as S told it with a lease.
#[derive(Clone, Copy, Debug)]
struct Known {
    generation: u64,
    stat: Stat,
    /// Changes of this node's programs before S was asked.
    stamp: Stamp,
}

#[derive(Debug, Default)]
struct State {
    holder: Holder,
    /// By inode.
    known: BTreeMap<u64, Known>,
}

/// The leases that this node holds.
#[derive(Debug, Default)]
pub(crate) struct Leases(Mutex<State>);

/// A request for a lease, under way until this is dropped.
#[derive(Debug)]
struct Asking<'a> {
    leases: &'a Leases,
    ask: Option<Ask>,
}

impl Leases {
    /// Gives a lease up that S recalls.
    fn recalled(&self, inode: u64, generation: u64, now: Instant) {
        self.0.lock().holder.recalled(inode, generation, now);
    }

    /// Returns the generation of the lease of a file, if there is one now.
    fn valid(&self, inode: u64, now: Instant) -> Option<u64> {
        let held = self.0.lock().holder.valid(inode, now)?;
        Some(held.generation)
    }

    /// Returns whether S is to be asked for a lease of a file.
    fn may_ask(&self, inode: u64, now: Instant) -> bool {
        self.0.lock().holder.may_ask(inode, now)
    }

    /// Returns what is known of a file, with the generation of its lease, if nothing has changed
    /// since.
    fn known(&self, inode: u64, now: Instant, stamp: Stamp) -> Option<(u64, Stat)> {
        let state = self.0.lock();
        let held = state.holder.valid(inode, now)?;
        let known = state.known.get(&inode)?;
        let current = known.generation == held.generation && known.stamp == stamp;
        current.then_some((known.generation, known.stat))
    }

    /// Notes that a request for a lease is about to be sent.
    fn ask(&self, now: Instant) -> Asking<'_> {
        let ask = Some(self.0.lock().holder.ask(now));
        Asking { leases: self, ask }
    }
}

impl Asking<'_> {
    /// Takes over S's answer; `lease` is 0 if S grants none. The status is kept if its stamp is
    /// given. Returns the generation of the lease, unless it was recalled meanwhile.
    fn answered(mut self, lease: u64, stat: Stat, stamp: Option<Stamp>) -> Option<u64> {
        let ask = self.ask.take()?;
        let mut state = self.leases.0.lock();
        let granted = (lease != 0).then_some((lease, Kind::Read));
        let held = state.holder.answered(ask, stat.inode, granted)?;
        if let Some(stamp) = stamp {
            if state.known.len() >= MAX_KNOWN {
                state.known.clear();
            }
            let generation = held.generation;
            let known = Known {
                generation,
                stat,
                stamp,
            };
            state.known.insert(stat.inode, known);
        }
        Some(held.generation)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(ask) = self.ask.take() {
            self.leases.0.lock().holder.abandoned(ask);
        }
    }
}

impl<N: Node> Kernel<N> {
    /// Answers a request of S; returns the length of the reply.
    pub fn answer(
        &self,
        node: &N,
        now: Instant,
        kind: u16,
        request: &[u8],
        reply: &mut [u8],
    ) -> usize {
        let mut bytes = [0; MAX_PART];
        let answer = match ProcessorRequest::decode(messages::Kind(kind), request) {
            Ok(ProcessorRequest::Recall(ask)) => {
                self.leases.recalled(ask.inode, ask.lease, now);
                if ask.inode == FileId::NAMES.0 {
                    node.files().recall_names(ask.lease, now);
                }
                let gathered = node.files().gathered();
                let nothing = (FileId(0), 0, 0);
                let (file, total, len) =
                    gathered.map_or(nothing, |all| all.recalled(&ask, now, &mut bytes));
                let part = Rest(&bytes[..len]);
                Ok(Recalled { file, total, part })
            }
            Err(error) => {
                log::warn!("S: call {kind}: {error}");
                Err(Errno::EPROTO)
            }
        };
        encode_reply::<Recall>(&answer, reply).unwrap_or(0)
    }

    /// Brings what programs have written to S once it has waited long enough, for ever.
    ///
    /// # Errors
    ///
    /// When S is lost.
    pub async fn keep_written(&self, node: &N) -> Result<()> {
        let Some(gathered) = node.files().gathered() else {
            return Ok(());
        };
        loop {
            let due = gathered.due().await;
            node.platform().sleep_until(due).await;
            let now = node.platform().now();
            node.files().settle(Settle::Due(now)).await?;
        }
    }
}

/// Opens a file or folder of S, which may come with a lease.
///
/// # Errors
///
/// The errno that S answers, or an error that ends the node.
pub(crate) async fn open<N: Node>(
    node: &N,
    by: Caller<'_>,
    path: &[u8],
    flags: OpenFlags,
    mode: u32,
) -> Result<Opened> {
    let kernel = node.kernel();
    let asking = kernel.leases.ask(node.platform().now());
    let before = kernel.changes.all();
    let opened = node.files().open(by, path, flags, mode).await?;
    // The stamp is that of before the request only if nothing at all has changed meanwhile.
    let stamp = kernel.changes.stamp(opened.stat.inode);
    let same = kernel.changes.all() == before;
    if opened.lease != 0 {
        asking.answered(opened.lease, opened.stat, same.then_some(stamp));
    }
    Ok(opened)
}

/// Asks S for an open file's status and, if it may be had, a lease; returns its generation.
async fn ask<N: Node>(node: &N, of: StorageFile) -> Result<(Option<u64>, Stat)> {
    let kernel = node.kernel();
    let now = node.platform().now();
    if !kernel.leases.may_ask(of.inode, now) {
        return Ok((None, node.files().stat_file(of.id).await?));
    }
    let stamp = kernel.changes.stamp(of.inode);
    let asking = kernel.leases.ask(now);
    let leased = node.files().lease(of.id).await?;
    let held = asking.answered(leased.lease, leased.stat, Some(stamp));
    Ok((held, leased.stat))
}

/// Returns what is known of an open file, or asks S.
async fn known_or_asked<N: Node>(node: &N, of: StorageFile) -> Result<(Option<u64>, Stat)> {
    let kernel = node.kernel();
    let stamp = kernel.changes.stamp(of.inode);
    let now = node.platform().now();
    match kernel.leases.known(of.inode, now, stamp) {
        Some((generation, stat)) => Ok((Some(generation), stat)),
        None => ask(node, of).await,
    }
}

/// Returns the status of an open file.
///
/// # Errors
///
/// The errno that S answers, or an error that ends the node.
pub(crate) async fn status<N: Node>(node: &N, of: StorageFile) -> Result<Stat> {
    Ok(known_or_asked(node, of).await?.1)
}

/// Returns the pages of a file, for a mapping. The caller holds no gate.
///
/// # Errors
///
/// As [`pages_of`] and [`status`].
pub(crate) async fn pages_to_map<N: Node>(
    node: &N,
    open: &OpenFile,
    of: StorageFile,
) -> Result<Arc<FilePages>> {
    let (file, shorter) = {
        let _order = node.kernel().changes.pass(of.inode).await;
        let (held, stat) = known_or_asked(node, of).await?;
        let file = pages_of(node, open, of.id, of.inode, stat.size).await?;
        let shorter = match held {
            Some(generation) => file.adopt(generation, stat.size).await,
            None => false,
        };
        (file, shorter.then_some(stat.size))
    };
    if let Some(size) = shorter {
        storage::unmap_behind(node, of.inode, size).await?;
    }
    Ok(file)
}

/// Returns the pages of a file that are read under a lease; `None` if there is no lease, or if the
/// file is too long to be kept. The caller holds no gate.
async fn pages_to_read<N: Node>(
    node: &N,
    open: &OpenFile,
    of: StorageFile,
) -> Result<Option<Arc<FilePages>>> {
    let kernel = node.kernel();
    let now = node.platform().now();
    let held = kernel.leases.valid(of.inode, now);
    if held.is_none() && !kernel.leases.may_ask(of.inode, now) {
        return Ok(None);
    }
    let file = kernel.file_cache.lock().known(of.inode);
    if let Some(file) = file.filter(|file| Some(file.generation()) == held) {
        return Ok(Some(file));
    }
    let limit = kernel.file_limit(node).await?;
    let (file, shorter) = {
        // No program of this node changes the file meanwhile, so what S says of its size holds.
        let _order = kernel.changes.pass(of.inode).await;
        let (held, stat) = known_or_asked(node, of).await?;
        let Some(generation) = held.filter(|_| stat.size <= limit / 2) else {
            return Ok(None);
        };
        let file = pages_of(node, open, of.id, of.inode, stat.size).await?;
        let shorter = file.adopt(generation, stat.size).await;
        (file, shorter.then_some(stat.size))
    };
    if let Some(size) = shorter {
        storage::unmap_behind(node, of.inode, size).await?;
    }
    Ok(Some(file))
}

/// Reads from an open file under a lease, until `into` is full or the file ends; `None` if S must
/// be asked for the bytes. The caller holds no gate.
///
/// # Errors
///
/// The errno that S answers, or an error that ends the node.
pub(crate) async fn read<N: Node>(
    node: &N,
    open: &OpenFile,
    of: StorageFile,
    offset: u64,
    into: &mut [u8],
) -> Result<Option<usize>> {
    let Some(file) = pages_to_read(node, open, of).await? else {
        return Ok(None);
    };
    if open.first_read() {
        node.kernel().file_cache.lock().used(&file);
    }
    // Who reads on from where the last read ended is likely to go on.
    let streams = offset == 0 || open.ahead.lock().continues(offset);
    let ahead = if streams { PIECE } else { 0 };
    let done = file.read(node, offset, into, ahead).await?;
    let end = offset.saturating_add(done as u64);
    let version = node.kernel().changes.version(of.inode);
    open.ahead.lock().keep(end, Vec::new(), version);
    Ok(Some(done))
}
