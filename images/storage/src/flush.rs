//! Writes that peers have gathered under write leases: brought by them, or by a recall.

use alloc::vec;
use core::time::Duration;

use ext4::{Disk, Time};
use messages::Errno;
use messages::pieces::{MAX_PIECES, pieces};
use messages::storage::{FlushRequest, Flushed};

use crate::lease::Answer;
use crate::server::OpenFile;
use crate::{Bulk, Error, PeerKey, Server};

/// The longest time that is taken for the age of what was gathered.
const MAX_AGE: Duration = Duration::from_secs(10);

impl<D: Disk> Server<D> {
    /// Carries out what a peer has gathered; ESTALE if it has lost its lease.
    pub(crate) async fn flush(
        &self,
        from: PeerKey,
        ask: &FlushRequest,
        bulk: &mut dyn Bulk,
    ) -> Result<Flushed, Error> {
        let file = self.writable(from, ask.file)?;
        let inode = file.held.inode();
        if bulk.len() > MAX_PIECES {
            return Err(Errno::EPROTO.into());
        }
        let mut bytes = vec![0; bulk.len()];
        if bulk.read(0, &mut bytes) < bytes.len() {
            return Err(Errno::EIO.into());
        }
        let blocks = {
            let leases = self.leases.as_ref().ok_or(Errno::ESTALE)?;
            // Who recalls the lease waits here, so that nothing is written after its end.
            let _door = leases.door(inode).await;
            if bytes.is_empty() {
                // The peer has handed writes over to a recall, whose reply may have come too late.
                if *file.brought.lock() < ask.lease {
                    return Err(Errno::ESTALE.into());
                }
            } else {
                if !leases.permits(from, inode, ask.lease) {
                    return Err(Errno::ESTALE.into());
                }
                let age = Duration::from_millis(ask.age_ms.into()).min(MAX_AGE);
                self.put(&file, &bytes, before(self.now(), age)).await?;
            }
            let (to, brought) = ((from, ask.lease), self.blocks_of(&bytes));
            self.promise_again(leases, to, inode, brought).await
        };
        if let Some(errno) = file.failed.lock().take() {
            return Err(errno.into());
        }
        if ask.durable {
            self.fsync(from, ask.file).await?;
        }
        Ok(Flushed { blocks })
    }

    /// Carries out what a recall has brought. The peer is told of a failure by its next flush.
    pub(crate) async fn brought(&self, from: PeerKey, (inode, lease): (u32, u64), answer: &Answer) {
        let (file, bytes) = (answer.file, &answer.part);
        let file = match self.writable(from, file) {
            Ok(file) if file.held.inode() == inode => file,
            _ => {
                log::warn!("peer {}: writes to a file that is not open", from.0);
                return;
            }
        };
        if let Err(error) = self.put(&file, bytes, self.now()).await {
            log::error!("what peer {} has gathered is lost: {error}", from.0);
            *file.failed.lock() = Some(error.errno());
        }
        *file.brought.lock() = lease;
    }

    /// Writes pieces; nothing is written if one of them is none.
    async fn put(&self, file: &OpenFile, bytes: &[u8], now: Time) -> Result<(), Error> {
        if pieces(bytes).any(|piece| piece.is_none()) {
            return Err(Errno::EPROTO.into());
        }
        self.strip_set_ids(file).await?;
        let inode = file.held.inode();
        for piece in pieces(bytes).flatten() {
            let done = self
                .files
                .write_promised(inode, piece.offset, piece.bytes, now);
            if done.await? < piece.bytes.len() {
                return Err(Errno::ENOSPC.into());
            }
        }
        self.count(|counters| {
            counters.handle_flush += 1;
            counters.nr_bytes_written += bytes.len() as u64;
        });
        Ok(())
    }
}

/// Returns the time that was so long ago.
fn before(now: Time, age: Duration) -> Time {
    let nanos = i128::from(now.seconds) * 1_000_000_000 + i128::from(now.nanos);
    let nanos = nanos - i128::try_from(age.as_nanos()).unwrap_or(0);
    Time {
        seconds: i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or(now.seconds),
        nanos: u32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or(0),
    }
}
