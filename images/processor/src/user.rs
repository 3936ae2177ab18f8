//! The kernel's way to a program's memory: rights first, then a copy through the pinned line.

use alloc::vec::Vec;

use messages::memory::Prot;
use messages::{PAGE_SIZE, USER_END};
use pcache::{Got, Page, Pinned};

use crate::error::{Result, errno};
use crate::process::{Node, Process};
use crate::space::CacheMachine;

/// The part of `from..` that lies in the page of `addr`: its offset there, and how much of `len` it is.
fn within_page(addr: u64, len: usize) -> (usize, usize) {
    let offset = usize::try_from(addr % PAGE_SIZE).expect("less than a page");
    (offset, len.min(pcache::LINE_SIZE - offset))
}

impl<N: Node> Process<'_, N> {
    /// The page of `addr` in its line. The pin is not to be held across a wait.
    pub(crate) async fn page(&self, addr: u64) -> Result<Pinned<'_, CacheMachine<N::Hardware>>> {
        let page = Page::of(self.space, addr);
        match self.node.cache().get(page, || self.now()).await? {
            Got::Ready(pinned) => Ok(pinned),
            // No page of this layout has its bytes brought by the caller.
            Got::Load(load) => {
                load.zero();
                Ok(load.finish(false))
            }
        }
    }

    /// How much of `addr..addr + count`, from its start, the program may read or (`write`) write. What a call cannot reach it
    /// leaves undone.
    ///
    /// # Errors
    ///
    /// EFAULT if none of it.
    pub(crate) fn reachable(&self, addr: u64, count: u64, write: bool) -> Result<u64> {
        let end = addr.saturating_add(count).min(USER_END);
        let mut reached = addr;
        for (piece, prot) in self.layout.pieces(addr..end.max(addr)) {
            let allowed = if write {
                prot.contains(Prot::WRITE)
            } else {
                !prot.is_empty()
            };
            if piece.start > reached || !allowed {
                break;
            }
            reached = piece.end;
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
    pub(crate) async fn read_user(&self, addr: u64, into: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < into.len() {
            let at = addr
                .checked_add(done as u64)
                .filter(|&at| at < USER_END)
                .ok_or(errno::EFAULT)?;
            if self.layout.rights(at).is_none_or(|prot| prot.is_empty()) {
                return Err(errno::EFAULT.into());
            }
            let (offset, len) = within_page(at, into.len() - done);
            self.page(at).await?.read(offset, &mut into[done..done + len]);
            done += len;
        }
        Ok(())
    }

    /// Copies to the program.
    ///
    /// # Errors
    ///
    /// EFAULT if any of it may not be written; what comes before is written then.
    pub(crate) async fn write_user(&self, addr: u64, from: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < from.len() {
            let at = addr
                .checked_add(done as u64)
                .filter(|&at| at < USER_END)
                .ok_or(errno::EFAULT)?;
            if !self
                .layout
                .rights(at)
                .is_some_and(|prot| prot.contains(Prot::WRITE))
            {
                return Err(errno::EFAULT.into());
            }
            let (_, len) = within_page(at, from.len() - done);
            self.poke(at, &from[done..done + len]).await?;
            done += len;
        }
        Ok(())
    }

    /// Copies to the program whatever its rights: for the kernel's own loading.
    pub(crate) async fn poke(&self, addr: u64, from: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < from.len() {
            let at = addr + done as u64;
            let (offset, len) = within_page(at, from.len() - done);
            self.page(at).await?.write(offset, &from[done..done + len]);
            done += len;
        }
        Ok(())
    }

    /// Copies a zero-terminated string of less than `max` bytes from the program.
    ///
    /// # Errors
    ///
    /// EFAULT, or ENAMETOOLONG if it is longer.
    pub(crate) async fn read_string(&self, addr: u64, max: usize) -> Result<Vec<u8>> {
        let mut string = Vec::new();
        let mut piece = [0; 256];
        while string.len() < max {
            let at = addr.checked_add(string.len() as u64).ok_or(errno::EFAULT)?;
            let (_, len) = within_page(at, piece.len());
            self.read_user(at, &mut piece[..len]).await?;
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
        self.read_user(addr, &mut word).await?;
        Ok(u64::from_le_bytes(word))
    }

    /// Writes words, one behind the other.
    pub(crate) async fn write_words(&self, addr: u64, words: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.write_user(addr, &bytes).await
    }
}
