//! Our driver's side of the tests, which serves a guest's requests.

use std::net::{TcpListener, TcpStream};

use harness::Machine;
use mlx4::Mlx4;
use probe::cm::Call;
use probe::node::Node;
use probe::pingpong::{self, Plan, Side};
use probe::{Error, Wait, rping};
use verbs::Gid;

use super::tcp::{LOOK, Tcp};

/// Rounds of a pingpong, as in the guest's scripts.
pub(crate) const ROUNDS: u32 = 100;
/// `rping -C`.
pub(crate) const PINGS: u32 = 10;
/// Bytes of a message: several packets, or one datagram.
pub(crate) const CONNECTED: u32 = 4096;
pub(crate) const DATAGRAM: u32 = 1024;

/// Our side.
pub(crate) struct Ours {
    /// Our card.
    pub(crate) node: Node<Mlx4<Machine>, Machine>,
    /// Listener for the guests' pingpongs.
    pub(crate) pingpong: TcpListener,
    /// Host port that QEMU forwards to the guest's pingpong.
    pub(crate) forwarded: u16,
    /// The guest's port.
    pub(crate) guest: Gid,
}

impl Ours {
    /// Does what a guest asked for; says what became of it.
    pub(crate) async fn serve(&self, what: &str) -> Result<(), Error> {
        self.node.active().await?;
        match what {
            "active" => Ok(()),
            "rc-client" => self.call(false).await,
            "ud-client" => self.call(true).await,
            "rc-server" => self.answer(false).await,
            "ud-server" => self.answer(true).await,
            "rping-client" => self.call_rping().await,
            "rping-server" => rping::server(&self.node, PINGS).await,
            _ => Err(Error::BadExchange),
        }
    }

    async fn play(&self, mut stream: Tcp, datagrams: bool, side: Side) -> Result<(), Error> {
        let plan = |size| Plan {
            side,
            rounds: ROUNDS,
            size,
            echo: false,
        };
        if datagrams {
            pingpong::ud(&self.node, &mut stream, &plan(DATAGRAM)).await
        } else {
            pingpong::rc(&self.node, &mut stream, &plan(CONNECTED)).await
        }
    }

    /// Calls the guest's tool, which may not listen yet: QEMU takes the connection all the same,
    /// and ends it.
    async fn call(&self, datagrams: bool) -> Result<(), Error> {
        let deadline = self.node.deadline();
        loop {
            let stream = TcpStream::connect(("127.0.0.1", self.forwarded))
                .map_err(|_| Error::StreamEnded)?;
            let stream = Tcp::new(stream, &self.node.platform)?;
            match self.play(stream, datagrams, Side::Client).await {
                Err(Error::StreamEnded) => {
                    self.node.pause(deadline, Wait::Stream, LOOK * 100).await?
                }
                ended => return ended,
            }
        }
    }

    async fn answer(&self, datagrams: bool) -> Result<(), Error> {
        let stream = Tcp::accept(&self.pingpong, &self.node.platform).await?;
        self.play(stream, datagrams, Side::Server).await
    }

    /// Calls the guest's `rping`, which may not listen yet.
    async fn call_rping(&self) -> Result<(), Error> {
        let call = Call {
            gid: self.guest,
            to: super::companion::GUEST_ADDRESS,
            port: rping::PORT,
            from: super::companion::OUR_ADDRESS,
        };
        let deadline = self.node.deadline();
        loop {
            match rping::client(&self.node, &call, PINGS).await {
                Err(Error::Refused(_)) => {
                    self.node.pause(deadline, Wait::Stream, LOOK * 100).await?
                }
                ended => return ended,
            }
        }
    }
}
