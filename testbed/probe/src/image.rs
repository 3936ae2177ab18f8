//! The image's main task.

use alloc::sync::Arc;
use core::future::{Future, poll_fn};
use core::net::Ipv4Addr;
use core::pin::pin;
use core::task::Poll;

use libos::pci::{self, Function};
use libos::virtio::{Console, consoles};
use libos::{Boot, CommandLine, Exit};
use mlx4::{Config, Mlx4};
use probe::cm::Call;
use probe::node::{Node, PATIENCE};
use probe::pingpong::{self, Plan, Side};
use probe::{Error, Stream, Wait, rping};
use verbs::Gid;

/// Error that ends the image, and that its log names.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The machine has no ConnectX-3.
    #[error("no ConnectX-3 in this machine")]
    NoCard,
    /// The machine has no virtio serial device.
    #[error("no virtio serial device")]
    NoConsole,
    /// An option is missing, or nothing known.
    #[error("the command line has no proper {0}=")]
    Option(&'static str),
    /// The card did not come up.
    #[error("the HCA: {0}")]
    Card(#[from] mlx4::Error),
    /// The command line or a device of the machine is not right.
    #[error(transparent)]
    Machine(#[from] libos::Error),
    /// The exchange failed.
    #[error(transparent)]
    Probe(#[from] Error),
}

/// Plays the part that the command line names.
pub(crate) async fn main(boot: Boot) -> Exit {
    match run(&boot.command_line).await {
        Ok(()) => Exit::Success,
        Err(error) => {
            log::error!("{error}");
            Exit::Failure
        }
    }
}

async fn run(line: &CommandLine) -> Result<(), Failure> {
    let platform = pci::find_any(&mlx4::PCI_IDS).ok_or(Failure::NoCard)?;
    let device = Arc::new(Mlx4::start(platform, Config::default()).await?);
    let served = Arc::clone(&device);
    libos::spawn(async move {
        if let Err(error) = served.service().await {
            log::error!("the HCA failed: {error}");
            libos::power_off(Exit::Failure);
        }
    })
    .detach();
    let node = Node {
        device,
        platform,
        port: 1,
    };
    let info = node.active().await?;
    log::info!("port 1 is active: {}, {}", info.address, info.gid);
    play(&node, line).await
}

async fn play(node: &Node<Mlx4<Function>, Function>, line: &CommandLine) -> Result<(), Failure> {
    let rounds = line.parsed("rounds")?.ok_or(Failure::Option("rounds"))?;
    let part = line.value("part").ok_or(Failure::Option("part"))?;
    let plan = |side| -> Result<Plan, Failure> {
        let size = line.parsed("size")?.ok_or(Failure::Option("size"))?;
        Ok(Plan {
            side,
            rounds,
            size,
            echo: false,
        })
    };
    match part {
        "rc-client" => pingpong::rc(node, &mut Serial::first()?, &plan(Side::Client)?).await?,
        "rc-server" => pingpong::rc(node, &mut Serial::first()?, &plan(Side::Server)?).await?,
        "ud-client" => pingpong::ud(node, &mut Serial::first()?, &plan(Side::Client)?).await?,
        "ud-server" => pingpong::ud(node, &mut Serial::first()?, &plan(Side::Server)?).await?,
        "rping-client" => rping::client(node, &call(line)?, rounds).await?,
        "rping-server" => rping::server(node, rounds).await?,
        _ => return Err(Failure::Option("part")),
    }
    log::info!("{part}: done");
    Ok(())
}

fn call(line: &CommandLine) -> Result<Call, Failure> {
    let address =
        |key| -> Result<Ipv4Addr, Failure> { line.parsed(key)?.ok_or(Failure::Option(key)) };
    Ok(Call {
        gid: line.parsed::<Gid>("peer")?.ok_or(Failure::Option("peer"))?,
        to: address("to")?,
        port: rping::PORT,
        from: address("from")?,
    })
}

/// A virtio serial device as a stream.
struct Serial(Console);

impl Serial {
    fn first() -> Result<Self, Failure> {
        let first = consoles()?.into_iter().next();
        Ok(Self(first.ok_or(Failure::NoConsole)?))
    }
}

impl Stream for Serial {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        within(self.0.writer.write(bytes)).await?.map_err(|error| {
            log::error!("{error}");
            Error::StreamEnded
        })
    }

    async fn receive(&mut self, into: &mut [u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < into.len() {
            let read = within(self.0.reader.read(&mut into[done..])).await?;
            done += read.map_err(|error| {
                log::error!("{error}");
                Error::StreamEnded
            })?;
        }
        Ok(())
    }
}

/// Waits for a future's value, for at most [`PATIENCE`].
async fn within<T>(future: impl Future<Output = T>) -> Result<T, Error> {
    let mut future = pin!(future);
    let mut late = pin!(libos::sleep(PATIENCE));
    poll_fn(|context| {
        if let Poll::Ready(value) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(value));
        }
        late.as_mut()
            .poll(context)
            .map(|_| Err(Error::Timeout(Wait::Stream)))
    })
    .await
}
