//! Reading, writing and listing of files whose text was made when they were opened.

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use messages::storage::Entry;

use super::layout::dirent;
use crate::error::{Result, errno};
use crate::files::OpenFile;
use crate::process::Node;
use crate::pseudo::{Name, OpenText, Sink};
use crate::thread::Thread;

impl<N: Node> Thread<N> {
    pub(super) async fn read_text(
        &self,
        file: &OpenFile,
        text: &OpenText,
        addr: u64,
        count: u64,
        offset: Option<u64>,
    ) -> Result<u64> {
        let start = offset.unwrap_or_else(|| file.offset.load(Relaxed));
        let from =
            usize::try_from(start).map_or(text.bytes.len(), |from| from.min(text.bytes.len()));
        let rest = &text.bytes[from..];
        let len = usize::try_from(count).map_or(rest.len(), |count| count.min(rest.len()));
        let len = self.memory.reachable(addr, len as u64, true)?;
        let len = usize::try_from(len).map_or(0, |len| len.min(rest.len()));
        self.memory.write(addr, &rest[..len]).await?;
        if offset.is_none() {
            file.offset.store(start + len as u64, Relaxed);
        }
        Ok(len as u64)
    }

    pub(super) async fn write_text(&self, text: &OpenText, addr: u64, count: u64) -> Result<u64> {
        match text.sink {
            Sink::Nothing => Err(errno::EBADF.into()),
            Sink::Void => Ok(count),
            Sink::Name => {
                let len = usize::try_from(count).map_or(15, |count| count.min(15));
                let mut name = vec![0; len];
                self.memory.read(addr, &mut name).await?;
                let end = name.iter().position(|byte| b"\n\0".contains(byte));
                name.truncate(end.unwrap_or(len));
                *self.shared.name.lock() = name;
                Ok(count)
            }
        }
    }

    pub(super) async fn list_pseudo(
        &self,
        file: &OpenFile,
        names: &[Name],
        addr: u64,
        count: u64,
    ) -> Result<u64> {
        const FOLDER: u32 = 0o040_000;
        let dots = [(b".".to_vec(), FOLDER), (b"..".to_vec(), FOLDER)];
        let mut position = file.offset.load(Relaxed);
        let mut records: Vec<u8> = Vec::new();
        let skipped = usize::try_from(position).unwrap_or(usize::MAX);
        for (name, mode) in dots.iter().chain(names).skip(skipped) {
            let record = dirent(&Entry {
                inode: position + 1,
                next: position + 1,
                kind: u8::try_from(mode >> 12).unwrap_or(0),
                name,
            });
            if (records.len() + record.len()) as u64 > count {
                if records.is_empty() {
                    return Err(errno::EINVAL.into());
                }
                break;
            }
            records.extend(record);
            position += 1;
        }
        self.memory.write(addr, &records).await?;
        file.offset.store(position, Relaxed);
        Ok(records.len() as u64)
    }
}
