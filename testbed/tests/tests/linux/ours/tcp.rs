//! TCP beside the fabric, without delaying the card's service.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

use hal::{Duration, Platform};
use harness::Machine;
use probe::node::PATIENCE;
use probe::{Error, Stream, Wait};

/// Poll interval for sockets that are not ready.
pub(crate) const LOOK: Duration = Duration::from_millis(2);

/// A connection.
pub(crate) struct Tcp {
    stream: TcpStream,
    clock: Machine,
}

impl Tcp {
    pub(crate) fn new(stream: TcpStream, clock: &Machine) -> Result<Self, Error> {
        stream
            .set_nonblocking(true)
            .map_err(|_| Error::StreamEnded)?;
        let clock = clock.clone();
        Ok(Self { stream, clock })
    }

    /// Accepts the next connection of a listener that does not block.
    pub(crate) async fn accept(listener: &TcpListener, clock: &Machine) -> Result<Self, Error> {
        let deadline = clock.now() + PATIENCE;
        loop {
            match listener.accept() {
                Ok((stream, _)) => return Self::new(stream, clock),
                Err(_) if clock.now() >= deadline => return Err(Error::Timeout(Wait::Stream)),
                Err(_) => clock.sleep(LOOK).await,
            }
        }
    }

    /// Reads a line. Returns it without its end.
    pub(crate) async fn line(&mut self) -> Result<String, Error> {
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            self.receive(&mut byte).await?;
            match byte {
                [b'\n'] => return String::from_utf8(line).map_err(|_| Error::BadExchange),
                [byte] => line.push(byte),
            }
        }
    }
}

impl Stream for Tcp {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        // So few bytes fit the socket's buffer.
        self.stream.write_all(bytes).map_err(|_| Error::StreamEnded)
    }

    async fn receive(&mut self, into: &mut [u8]) -> Result<(), Error> {
        let deadline = self.clock.now() + PATIENCE;
        let mut done = 0;
        while done < into.len() {
            match self.stream.read(&mut into[done..]) {
                Ok(0) => return Err(Error::StreamEnded),
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.clock.now() >= deadline {
                        return Err(Error::Timeout(Wait::Stream));
                    }
                    self.clock.sleep(LOOK).await;
                }
                Err(_) => return Err(Error::StreamEnded),
            }
        }
        Ok(())
    }
}
