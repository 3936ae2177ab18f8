//! Files that programs run, and files that are open for writing: none is both (ETXTBSY).
//!
//! Files are known by their inode numbers. A program that runs counts from its loading to its end
//! or to the next program (Linux `fs/exec.c`, `mm->exe_file`); what interprets it counts while it
//! is loaded.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use spin::Mutex;

use crate::error::{Result, errno};

/// Numbers of users of one file: one of the two is 0.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Users {
    writers: u32,
    runners: u32,
}

/// The files that are run or open for writing.
#[derive(Debug, Default)]
pub(crate) struct Texts(Mutex<BTreeMap<u64, Users>>);

/// A use of a file, until it is dropped.
#[derive(Debug)]
pub(crate) struct Use {
    texts: Arc<Texts>,
    inode: u64,
    runs: bool,
}

impl Texts {
    /// Returns whether a program of this file runs.
    pub(crate) fn runs(&self, inode: u64) -> bool {
        let users = self.0.lock();
        users.get(&inode).is_some_and(|users| users.runners > 0)
    }

    /// Counts a file as open for writing.
    ///
    /// # Errors
    ///
    /// ETXTBSY if a program of it runs.
    pub(crate) fn write(self: &Arc<Self>, inode: u64) -> Result<Use> {
        self.add(inode, false)
    }

    /// Counts a program that runs.
    ///
    /// # Errors
    ///
    /// ETXTBSY if the file is open for writing.
    pub(crate) fn run(self: &Arc<Self>, inode: u64) -> Result<Use> {
        self.add(inode, true)
    }

    fn add(self: &Arc<Self>, inode: u64, runs: bool) -> Result<Use> {
        let mut files = self.0.lock();
        let users = files.entry(inode).or_default();
        let (own, others) = if runs {
            (&mut users.runners, users.writers)
        } else {
            (&mut users.writers, users.runners)
        };
        if others > 0 {
            return Err(errno::ETXTBSY.into());
        }
        *own += 1;
        drop(files);
        Ok(Use {
            texts: self.clone(),
            inode,
            runs,
        })
    }
}

impl Clone for Use {
    fn clone(&self) -> Self {
        let added = self.texts.add(self.inode, self.runs);
        added.expect("a use excludes those of the other kind")
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut files = self.texts.0.lock();
        if let Some(users) = files.get_mut(&self.inode) {
            let own = if self.runs {
                &mut users.runners
            } else {
                &mut users.writers
            };
            *own -= 1;
            if *users == Users::default() {
                files.remove(&self.inode);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_or_run() {
        let texts = Arc::new(Texts::default());
        let busy = |done: Result<Use>| done.err() == Some(errno::ETXTBSY.into());
        let first = texts.run(7).unwrap();
        let second = first.clone();
        assert!(texts.runs(7) && busy(texts.write(7)) && !busy(texts.write(8)));
        drop(first);
        assert!(busy(texts.write(7)));
        drop(second);
        let writer = texts.write(7).unwrap();
        assert!(busy(texts.run(7)) && !texts.runs(7));
        let again = texts.write(7).unwrap();
        drop(writer);
        assert!(busy(texts.run(7)));
        drop(again);
        assert!(!busy(texts.run(7)));
        assert!(texts.0.lock().is_empty());
    }
}
