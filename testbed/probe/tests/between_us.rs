//! Both sides of each protocol, over our driver and the model in one process.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use hal::{Duration, Platform};
use harness::{Machine, Testbed};
use mlx4::{Config, Mlx4};
use probe::cm::Call;
use probe::node::Node;
use probe::pingpong::{self, Plan, Side};
use probe::{Error, Stream, rping};
use verbs::{Device, Guid};

type Ours = Node<Mlx4<Machine>, Machine>;
type Bytes = Arc<Mutex<VecDeque<u8>>>;

/// One end of a stream in memory.
struct Pipe {
    clock: Machine,
    to: Bytes,
    from: Bytes,
}

impl Stream for Pipe {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.to.lock().expect("no panic").extend(bytes);
        Ok(())
    }

    async fn receive(&mut self, into: &mut [u8]) -> Result<(), Error> {
        for byte in into {
            *byte = loop {
                let next = self.from.lock().expect("no panic").pop_front();
                match next {
                    Some(byte) => break byte,
                    None => self.clock.sleep(Duration::from_micros(10)).await,
                }
            };
        }
        Ok(())
    }
}

fn start(bed: &mut Testbed, name: &str, guid: u64) -> Ours {
    let platform = bed.add_machine(name, Guid(guid));
    let card = bed.block_on(Mlx4::start(platform.clone(), Config::default()));
    let device = Arc::new(card.expect("the card starts"));
    let (served, clock) = (Arc::downgrade(&device), platform.clone());
    // As `Mlx4::service` does, but without keeping the card alive.
    bed.spawn(async move {
        while let Some(device) = served.upgrade() {
            if device.service_once().await.is_err() {
                return;
            }
            drop(device);
            clock.sleep(Duration::from_micros(50)).await;
        }
    });
    let node = Node {
        device,
        platform,
        port: 1,
    };
    bed.block_on(node.active()).expect("the port is active");
    node
}

fn two(bed: &mut Testbed) -> (Ours, Ours) {
    let first = start(bed, "client", 0x0002_c903_0000_1000);
    (first, start(bed, "server", 0x0002_c903_0000_1100))
}

/// Plays both sides of a pingpong, one of them as Linux's tool.
fn play(size: u32, datagrams: bool, echo: Side) {
    let mut bed = Testbed::default();
    let (client, server) = two(&mut bed);
    let (there, back) = (Bytes::default(), Bytes::default());
    let pipe = |node: &Ours, to: &Bytes, from: &Bytes| Pipe {
        clock: node.platform.clone(),
        to: Arc::clone(to),
        from: Arc::clone(from),
    };
    let mut asks = pipe(&client, &there, &back);
    let mut answers = pipe(&server, &back, &there);
    let plan = move |side| Plan {
        side,
        rounds: 20,
        size,
        echo: side == echo,
    };
    let memory = (client.platform.allocated(), server.platform.allocated());
    let serving = server.clone();
    let ended = Arc::new(Mutex::new(None));
    let result = Arc::clone(&ended);
    bed.spawn(async move {
        let plan = plan(Side::Server);
        let served = if datagrams {
            pingpong::ud(&serving, &mut answers, &plan).await
        } else {
            pingpong::rc(&serving, &mut answers, &plan).await
        };
        *result.lock().expect("no panic") = Some(served);
    });
    bed.block_on(async {
        let plan = plan(Side::Client);
        let played = if datagrams {
            pingpong::ud(&client, &mut asks, &plan).await
        } else {
            pingpong::rc(&client, &mut asks, &plan).await
        };
        assert_eq!(played, Ok(()));
        while ended.lock().expect("no panic").is_none() {
            client.platform.sleep(Duration::from_millis(1)).await;
        }
    });
    assert_eq!(*ended.lock().expect("no panic"), Some(Ok(())));
    assert_eq!(
        (client.platform.violations(), server.platform.violations()),
        (0, 0)
    );
    let after = (client.platform.allocated(), server.platform.allocated());
    assert_eq!(after, memory, "everything is given back");
}

#[test]
fn connected_pingpong_of_several_packets() {
    play(4096, false, Side::Client);
    play(4096, false, Side::Server);
}

#[test]
fn pingpong_by_datagrams() {
    play(1024, true, Side::Client);
    play(1024, true, Side::Server);
}

fn call(server: &Ours, bed: &mut Testbed) -> Call {
    let port = bed
        .block_on(server.device.port(1))
        .expect("the port answers");
    Call {
        gid: port.gid,
        to: [10, 0, 1, 1].into(),
        port: rping::PORT,
        from: [10, 0, 1, 9].into(),
    }
}

#[test]
fn rping_reads_and_writes_the_clients_memory() {
    let mut bed = Testbed::default();
    let (client, server) = two(&mut bed);
    let call = call(&server, &mut bed);
    let ended = Arc::new(Mutex::new(None));
    let (serving, result) = (server.clone(), Arc::clone(&ended));
    bed.spawn(async move {
        let served = rping::server(&serving, 10).await;
        *result.lock().expect("no panic") = Some(served);
    });
    bed.block_on(async {
        assert_eq!(rping::client(&client, &call, 10).await, Ok(()));
        while ended.lock().expect("no panic").is_none() {
            client.platform.sleep(Duration::from_millis(1)).await;
        }
    });
    assert_eq!(*ended.lock().expect("no panic"), Some(Ok(())));
    assert_eq!(
        (client.platform.violations(), server.platform.violations()),
        (0, 0)
    );
}

#[test]
fn a_call_that_nobody_answers_ends() {
    let mut bed = Testbed::default();
    let (client, server) = two(&mut bed);
    let call = call(&server, &mut bed);
    let called = bed.block_on(rping::client(&client, &call, 1));
    assert!(matches!(called, Err(Error::Timeout(_))), "{called:?}");
}
