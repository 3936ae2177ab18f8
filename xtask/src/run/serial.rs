//! The console channel over a serial port of P: its bytes go over a [`Line`], which makes up for
//! what the port loses and carries back-pressure.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::spawn;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use console::Line;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;

/// Longest time without a look at the line's clock.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
/// Time that the line has to bring its last bytes once the server has gone.
const LINGER: Duration = Duration::from_secs(5);
/// Bytes moved at once.
const PIECE: usize = 4096;

/// Puts a line between a port, QEMU's or a real one, and the channel's server; returns the server's
/// end. The thread ends with the port, or soon after the server has gone.
pub(crate) fn bridge(port: impl Port) -> Result<UnixStream> {
    let (server, inner) = UnixStream::pair().context("can't make a pair of sockets")?;
    for end in [port.as_fd(), inner.as_fd()] {
        ioctl_fionbio(end, true).context("can't set a port not to wait")?;
    }
    let bridge = Bridge {
        port,
        inner,
        line: Line::new(),
        begun: Instant::now(),
        to_port: Vec::new(),
        to_inner: Vec::new(),
        from_inner: Vec::new(),
        left_at: None,
    };
    spawn(move || bridge.run());
    Ok(server)
}

/// A port's file.
pub(crate) trait Port: Read + Write + AsFd + Send + 'static {}
impl<T: Read + Write + AsFd + Send + 'static> Port for T {}

struct Bridge<P> {
    port: P,
    inner: UnixStream,
    line: Line,
    begun: Instant,
    /// Bytes for the port that it has not taken.
    to_port: Vec<u8>,
    /// Bytes for the server that it has not taken; none more come until it has.
    to_inner: Vec<u8>,
    /// Bytes of the server's that the line has not taken.
    from_inner: Vec<u8>,
    /// Time at which the server went.
    left_at: Option<Instant>,
}

impl<P: Port> Bridge<P> {
    fn run(mut self) {
        // Ends with the port, or when the server has gone.
        while self.turn().is_ok_and(|goes_on| goes_on) {}
        // What has come is the server's still.
        let _ = self.inner.set_nonblocking(false);
        loop {
            let mut piece = [0; PIECE];
            let waiting = std::mem::take(&mut self.to_inner);
            let count = self.line.read(&mut piece);
            if self.inner.write_all(&waiting).is_err()
                || count == 0
                || self.inner.write_all(&piece[..count]).is_err()
            {
                break;
            }
        }
        let _ = self.inner.shutdown(Shutdown::Both);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Moves what can be moved, and waits for more; false at the end.
    fn turn(&mut self) -> std::io::Result<bool> {
        self.wait()?;
        let mut piece = [0; PIECE];
        match read(&mut self.port, &mut piece)? {
            Some(0) => return Ok(false),
            Some(count) => self.line.receive(&piece[..count], self.now()),
            None => {}
        }
        if self.from_inner.is_empty() && self.left_at.is_none() {
            match read(&mut self.inner, &mut piece)? {
                Some(0) => self.left_at = Some(Instant::now()),
                Some(count) => self.from_inner.extend_from_slice(&piece[..count]),
                None => {}
            }
        }
        let taken = self.line.write(&self.from_inner);
        self.from_inner.drain(..taken);
        if self.to_inner.is_empty() {
            let count = self.line.read(&mut piece);
            self.to_inner.extend_from_slice(&piece[..count]);
        }
        write(&mut self.inner, &mut self.to_inner)?;
        if self.to_port.is_empty() {
            let count = self.line.transmit(&mut piece, self.now());
            self.to_port.extend_from_slice(&piece[..count]);
        }
        write(&mut self.port, &mut self.to_port)?;
        let is_idle = self.line.is_idle() && self.from_inner.is_empty() && self.to_port.is_empty();
        Ok(self
            .left_at
            .is_none_or(|at| !is_idle && at.elapsed() < LINGER))
    }

    fn wait(&self) -> std::io::Result<()> {
        let when = |wanted: bool, flag| if wanted { flag } else { PollFlags::empty() };
        let port = PollFlags::IN | when(!self.to_port.is_empty(), PollFlags::OUT);
        let listens = self.from_inner.is_empty() && self.left_at.is_none();
        let inner = when(listens, PollFlags::IN) | when(!self.to_inner.is_empty(), PollFlags::OUT);
        let (port_fd, inner_fd) = (self.port.as_fd(), self.inner.as_fd());
        let mut fds = [PollFd::new(&port_fd, port), PollFd::new(&inner_fd, inner)];
        // A server that has gone would be told of again and again.
        let looked_at = if self.left_at.is_some() { 1 } else { fds.len() };
        match poll(&mut fds[..looked_at], Some(&LOOK)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reads what is there; `None` if nothing is yet.
fn read(from: &mut impl Read, into: &mut [u8]) -> std::io::Result<Option<usize>> {
    match from.read(into) {
        Ok(count) => Ok(Some(count)),
        Err(error) if is_later(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes as much as is taken now.
fn write(to: &mut impl Write, bytes: &mut Vec<u8>) -> std::io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    match to.write(bytes) {
        Ok(count) => drop(bytes.drain(..count)),
        Err(error) if is_later(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

fn is_later(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_cross_a_bridge_on_each_side() {
        let (host_port, guest_port) = UnixStream::pair().expect("a pair");
        let host = bridge(host_port).expect("a bridge");
        let guest = bridge(guest_port).expect("a bridge");
        let sent: Vec<u8> = (0..200_000_u32)
            .map(|at| (at / 7).to_le_bytes()[0])
            .collect();
        let (mut from, bytes) = (host.try_clone().expect("a socket"), sent.clone());
        let writer = spawn(move || from.write_all(&bytes).expect("written"));
        let mut read = vec![0; sent.len()];
        (&guest).read_exact(&mut read).expect("read");
        writer.join().expect("the writer ends");
        assert!(read == sent);
        (&guest).write_all(b"back").expect("written");
        let mut back = [0; 4];
        (&host).read_exact(&mut back).expect("read");
        assert_eq!(&back, b"back");
    }
}
