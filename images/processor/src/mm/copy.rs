//! The kernel's way to a program's memory: a look at the entry's rights, then a copy from or to the
//! line while its set is locked. The kernel itself never faults on a program's memory.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use messages::{PAGE_SIZE, USER_END};
use pcache::{Access, Rights};

use super::{Space, Tables};
use crate::error::{Result, errno};
use crate::platform::Platform;
use crate::process::Node;

/// Pages that are copied before other tasks have their turn.
const PAGES_A_TURN: u32 = 32;

/// Splits off what of `addr..addr + len` lies in the page of `addr`: its offset there, and its
/// length.
fn within_page(addr: u64, len: usize) -> (usize, usize) {
    let offset = usize::try_from(addr % PAGE_SIZE).expect("less than a page");
    (offset, len.min(pcache::LINE_SIZE - offset))
}

impl<N: Node> Space<'_, N> {
    /// Lets other tasks run now and then, however long a copy is.
    pub(crate) async fn breathe(&self) {
        if self.breath.fetch_add(1, Ordering::Relaxed) >= PAGES_A_TURN {
            self.breath.store(0, Ordering::Relaxed);
            self.node.platform().yield_now().await;
        }
    }

    /// Returns how much of `addr..addr + count`, from its start, the program may read or (`write`)
    /// write. A call leaves undone what it can't reach.
    ///
    /// # Errors
    ///
    /// EFAULT if none of it.
    pub(crate) fn reachable(&self, addr: u64, count: u64, write: bool) -> Result<u64> {
        let access = if write { Access::Write } else { Access::Read };
        let end = addr.saturating_add(count).min(USER_END);
        let vmas = self.vmas.lock();
        let mut reached = addr;
        while reached < end {
            match vmas.find(reached) {
                Some((range, vma)) if vma.rights.allow(access) => reached = range.end.min(end),
                Some(_) => break,
                None => match self.stack_above(&vmas, reached) {
                    Some(start) => reached = start.min(end),
                    None => break,
                },
            }
        }
        match reached - addr {
            0 if count > 0 => Err(errno::EFAULT.into()),
            reachable => Ok(reachable),
        }
    }

    /// Copies from the program.
    ///
    /// # Errors
    ///
    /// EFAULT if any of it may not be read.
    pub(crate) async fn read(&self, addr: u64, into: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < into.len() {
            let at = user_address(addr, done)?;
            let (offset, len) = within_page(at, into.len() - done);
            let part = &mut into[done..done + len];
            loop {
                let copied = self.tables.entry(at).is_some_and(|entry| {
                    self.node
                        .cache()
                        .copy_out(entry, Access::Read, offset, part)
                });
                if copied {
                    break;
                }
                let faulted = self.fault(at, Access::Read, false).await?;
                faulted.map_err(|_| errno::EFAULT)?;
            }
            done += len;
            self.breathe().await;
        }
        Ok(())
    }

    /// Copies to the program.
    ///
    /// # Errors
    ///
    /// EFAULT if any of it may not be written; what comes before is written then.
    pub(crate) async fn write(&self, addr: u64, from: &[u8]) -> Result<()> {
        self.put(addr, from, false).await
    }

    /// Copies to the program whatever the rights, as long as something is mapped: for the kernel's
    /// own loading.
    ///
    /// # Errors
    ///
    /// EFAULT if nothing is mapped at some of it.
    pub(crate) async fn load(&self, addr: u64, from: &[u8]) -> Result<()> {
        self.put(addr, from, true).await
    }

    async fn put(&self, addr: u64, from: &[u8], force: bool) -> Result<()> {
        let access = if force { Access::Read } else { Access::Write };
        let mut done = 0;
        while done < from.len() {
            let at = user_address(addr, done)?;
            let (offset, len) = within_page(at, from.len() - done);
            let part = &from[done..done + len];
            loop {
                let copied = self
                    .tables
                    .entry(at)
                    .is_some_and(|entry| self.node.cache().copy_in(entry, force, offset, part));
                if copied {
                    break;
                }
                let faulted = self.fault(at, access, force).await?;
                faulted.map_err(|_| errno::EFAULT)?;
            }
            done += len;
            self.breathe().await;
        }
        Ok(())
    }

    /// Copies a string of at most `max` bytes before its zero from the program. Nothing behind the
    /// longest one is looked at.
    ///
    /// # Errors
    ///
    /// EFAULT, or ENAMETOOLONG if it is longer.
    pub(crate) async fn read_string(&self, addr: u64, max: usize) -> Result<Vec<u8>> {
        let mut string = Vec::new();
        let mut piece = [0; 256];
        while string.len() <= max {
            let at = addr.checked_add(string.len() as u64).ok_or(errno::EFAULT)?;
            let (_, len) = within_page(at, piece.len().min(max + 1 - string.len()));
            self.read(at, &mut piece[..len]).await?;
            match piece[..len].iter().position(|&b| b == 0) {
                Some(end) => {
                    string.extend_from_slice(&piece[..end]);
                    return Ok(string);
                }
                None => string.extend_from_slice(&piece[..len]),
            }
        }
        Err(errno::ENAMETOOLONG.into())
    }

    /// Reads one word.
    pub(crate) async fn read_u64(&self, addr: u64) -> Result<u64> {
        let mut word = [0; 8];
        self.read(addr, &mut word).await?;
        Ok(u64::from_le_bytes(word))
    }

    /// Changes a word of four bytes, which is aligned, as `new` says; returns what it was. It is
    /// one step for the program's own atomic instructions, on whichever core.
    ///
    /// # Errors
    ///
    /// EFAULT if it may not be written, ENOSYS if `new` gives nothing.
    pub(crate) async fn change_word(
        &self,
        addr: u64,
        new: impl Fn(u32) -> Option<u32>,
    ) -> Result<u32> {
        let mut bytes = [0; 4];
        self.read(addr, &mut bytes).await?;
        let (offset, _) = within_page(addr, bytes.len());
        let mut old = u32::from_le_bytes(bytes);
        loop {
            let word = new(old).ok_or(errno::ENOSYS)?;
            let exchanged = self
                .tables
                .entry(addr)
                .and_then(|entry| self.node.cache().exchange(entry, offset, old, word));
            match exchanged {
                Some(Ok(before)) => return Ok(before),
                // The program was faster. It can be so again, but not for ever without a turn of
                // others.
                Some(Err(now)) => {
                    old = now;
                    self.breathe().await;
                }
                None => {
                    let faulted = self.fault(addr, Access::Write, false).await?;
                    faulted.map_err(|_| errno::EFAULT)?;
                }
            }
        }
    }

    /// Writes words, one behind the other.
    pub(crate) async fn write_words(&self, addr: u64, words: &[u64]) -> Result<()> {
        for (index, word) in (0..).zip(words) {
            let at = addr.checked_add(index * 8).ok_or(errno::EFAULT)?;
            self.write(at, &word.to_le_bytes()).await?;
        }
        Ok(())
    }

    /// Returns the rights of the mapping at `addr`; `None` if there is none.
    pub fn rights(&self, addr: u64) -> Option<Rights> {
        self.vmas.lock().rights(addr)
    }
}

fn user_address(addr: u64, done: usize) -> Result<u64> {
    let at = addr
        .checked_add(done as u64)
        .filter(|&at| at < USER_END)
        .ok_or(errno::EFAULT)?;
    Ok(at)
}
