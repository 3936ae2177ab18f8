//! The program's standard streams, between us and P's serial ports.
//!
//! QEMU writes a port to a regular file and we follow the file as it grows: no byte is lost,
//! whatever the reader's pace and whichever way QEMU leaves. Input goes through a named pipe, which
//! QEMU reads as fast as the guest takes it.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

/// Poll interval of a file that has not grown.
const PAUSE: Duration = Duration::from_millis(4);

/// A file that is followed into a writer by a thread.
pub(crate) struct Follower {
    thread: Option<JoinHandle<std::io::Result<()>>>,
    ended: Arc<AtomicBool>,
}

impl Follower {
    /// Begins to follow a file that exists.
    pub(crate) fn start(path: &Path, to: impl Write + Send + 'static) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("can't read {}", path.display()))?;
        let ended = Arc::new(AtomicBool::new(false));
        let thread = spawn({
            let ended = Arc::clone(&ended);
            move || follow(file, to, &ended)
        });
        Ok(Self {
            thread: Some(thread),
            ended,
        })
    }

    /// Returns whether the follower has stopped before its time: the writer failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Says that the file grows no more, and waits until all of it is written.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.ended.store(true, Ordering::Release);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result.context("can't write the program's output"),
            Some(Err(_)) => Err(anyhow!(
                "the thread that shows the program's output panicked"
            )),
            None => Ok(()),
        }
    }
}

fn follow(mut file: File, mut to: impl Write, ended: &AtomicBool) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 18];
    loop {
        // Looked at before the read: what the file held when it ended is read afterwards.
        let last = ended.load(Ordering::Acquire);
        match file.read(&mut buffer) {
            Ok(0) if last => return Ok(()),
            Ok(0) => std::thread::sleep(PAUSE),
            Ok(count) => {
                to.write_all(&buffer[..count])?;
                to.flush()?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::Sink;

    #[test]
    fn a_growing_file_is_followed_to_its_end() {
        let path = std::env::temp_dir().join(format!("tessera-follow-{}", std::process::id()));
        let mut file = File::create(&path).expect("file");
        let sink = Sink::default();
        let mut follower = Follower::start(&path, sink.clone()).expect("start");
        let mut expected: Vec<u8> = Vec::new();
        for round in 0..100u32 {
            let text = round.to_string().repeat(1000);
            file.write_all(text.as_bytes()).expect("write");
            expected.extend(text.as_bytes());
        }
        follower.finish().expect("finish");
        assert!(sink.bytes() == expected);
        std::fs::remove_file(path).expect("remove");
    }
}
