//! FIT's asynchronous face on several cores, in every order that shuttle comes to: nothing that
//! comes between looking and sleeping is slept over.
//!
//! Each test runs thousands of times, in orders that follow from a seed. Time stands still, so a
//! wake-up that gets lost leaves everybody waiting, and shuttle says so. The last tests build a
//! lost wake-up in and ask that it is found.
#![cfg(interleave)]
#![forbid(unsafe_code)]

mod bed;

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;

use fit::{
    AccessEnd, Call, Config, Error, Exchange, Handler, LostCause, OneSided, PeerId, Polling,
};
use futures_util::future::{Either, select};
use hal::Duration;
use shuttle::Runner;
use shuttle::future::{JoinHandle, spawn, yield_now};
use shuttle::scheduler::{PctScheduler, RandomScheduler};

use bed::{Bed, Connected, Machine, Node2, Sabotage};

/// Orders that are tried of each test.
const ORDERS: usize = 1000;
/// Orders within which what is built in must be found.
const SABOTAGED: usize = 20_000;

fn config() -> Config {
    Config {
        peers: 1,
        calls: 2,
        serves: 2,
        one_sided: 2,
        message_size: 280,
        signal_every: 2,
        polling: Polling::Adaptive(1),
        keepalive: Duration::ZERO,
        ..Config::default()
    }
}

/// A debug build's futures need more stack than shuttle gives.
const STACK: usize = 1 << 20;
const SEED: u64 = 0x5eed;

fn runner_config() -> shuttle::Config {
    let mut config = shuttle::Config::new();
    config.stack_size = STACK;
    config
}

/// Tries a test in many orders: half of them by chance, half with few changes between tasks, which
/// finds rare ones.
fn orders(test: impl Fn() + Send + Sync + Copy + 'static) {
    let by_chance = RandomScheduler::new_from_seed(SEED, ORDERS / 2);
    Runner::new(by_chance, runner_config()).run(test);
    let few_changes = PctScheduler::new_from_seed(SEED, 3, ORDERS / 2);
    Runner::new(few_changes, runner_config()).run(test);
}

/// Answers each request by its own bytes, after a while.
struct Echo(AtomicU32);

impl Handler for Echo {
    async fn handle(&self, _: PeerId, _: u16, request: &[u8], exchange: &mut dyn Exchange) {
        yield_now().await;
        self.0.fetch_add(1, Ordering::Relaxed);
        exchange.message()[..request.len()].copy_from_slice(request);
        exchange.set_len(request.len());
    }
    fn peer_lost(&self, _: PeerId, _: Option<LostCause>) {}
}

/// Starts what a node runs on one core: its poller, and `workers` that answer.
fn run(node: &Node2, core: u16, workers: usize) -> Arc<Echo> {
    let echo = Arc::new(Echo(AtomicU32::new(0)));
    let poller = node.clone();
    drop(spawn(async move { poller.run_core(core).await }));
    for _ in 0..workers {
        let (core, echo) = (node.core(core), echo.clone());
        drop(spawn(async move { core.serve(&*echo).await }));
    }
    echo
}

/// Starts two nodes, the second with workers that answer.
fn start(config: Config, sabotage: Sabotage, workers: usize) -> (Connected, Arc<Echo>) {
    let two = Bed::connected(config, sabotage);
    drop(spawn(two.bed.clone().wire()));
    let mut echo = None;
    for core in 0..config.cores {
        run(&two.nodes[0], core, 0);
        echo = Some(run(&two.nodes[1], core, workers));
    }
    (two, echo.expect("at least one core"))
}

async fn call(node: &Node2, core: u16, peer: PeerId, byte: u8) -> Result<(), Error> {
    let mut reply = [0; 96];
    let got = node
        .core(core)
        .call(peer, Call::new(3, &[byte; 9]), &mut reply)
        .await?;
    assert_eq!(&reply[..got.len], [byte; 9]);
    Ok(())
}

fn join<T>(handles: Vec<JoinHandle<T>>) -> Vec<T> {
    let ended = handles.into_iter().map(shuttle::future::block_on);
    ended
        .map(|ended| ended.expect("nobody aborts it"))
        .collect()
}

fn calls_are_answered_under(sabotage: Sabotage) {
    let (
        Connected {
            nodes: [node, _],
            peers: [peer, _],
            ..
        },
        echo,
    ) = start(config(), sabotage, 2);
    // One more than there are slots, so that somebody waits for room.
    let callers = (0..3_u8).map(|byte| {
        let node = node.clone();
        spawn(async move { call(&node, 0, peer, byte).await })
    });
    let ended = join(callers.collect());
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    assert_eq!(echo.0.load(Ordering::Relaxed), 3);
}

#[test]
fn calls_are_answered_in_every_order() {
    orders(|| calls_are_answered_under(Sabotage::None));
}

#[test]
fn a_call_that_follows_on_rest_is_not_slept_over() {
    orders(|| {
        let (
            Connected {
                nodes: [node, _],
                peers: [peer, _],
                ..
            },
            _,
        ) = start(config(), Sabotage::None, 1);
        let caller = spawn(async move {
            for byte in 0..3 {
                // The poller comes to rest in between, or does not.
                for _ in 0..byte {
                    yield_now().await;
                }
                call(&node, 0, peer, byte).await?;
            }
            Ok::<_, Error>(())
        });
        assert_eq!(join(vec![caller]), [Ok(())]);
    });
}

/// Waits for `main`, for a bounded number of turns.
async fn for_turns<T>(main: impl Future<Output = T>, turns: u32) -> Option<T> {
    let mut left = turns;
    let end = poll_fn(|context| {
        left = left.saturating_sub(1);
        context.waker().wake_by_ref();
        if left == 0 {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    match select(pin!(main), pin!(end)).await {
        Either::Left((value, _)) => Some(value),
        Either::Right(_) => None,
    }
}

#[test]
fn a_call_that_is_given_up_leaves_its_slot_to_others() {
    orders(|| {
        let config = Config {
            calls: 1,
            ..config()
        };
        let (
            Connected {
                nodes: [node, _],
                peers: [peer, _],
                ..
            },
            _,
        ) = start(config, Sabotage::None, 1);
        let other = node.clone();
        let handles = vec![
            spawn(async move {
                for_turns(call(&node, 0, peer, 1), 3).await;
                call(&node, 0, peer, 2).await
            }),
            spawn(async move { call(&other, 0, peer, 3).await }),
        ];
        assert_eq!(join(handles), [Ok(()), Ok(())]);
    });
}

#[test]
fn accesses_end_for_their_waiters_and_in_the_sink() {
    orders(|| {
        let Connected {
            bed,
            nodes: [node, other],
            peers: [peer, _],
            ..
        } = Bed::connected(config(), Sabotage::None);
        drop(spawn(bed.clone().wire()));
        let ended = Arc::new(AtomicU32::new(0));
        let sink = ended.clone();
        let poller = node.clone();
        drop(spawn(async move {
            let sink = move |end: AccessEnd, _| {
                assert_eq!((end.tag, end.result), (7, Ok(())));
                sink.fetch_add(1, Ordering::Relaxed);
            };
            poller.run_core_with(0, sink).await
        }));
        drop(spawn(async move { other.run_core(0).await }));
        let (ours, theirs) = (Machine::of(&bed, 0), Machine::of(&bed, 1));
        let (from, _) = ours.memory(64);
        let (_, to) = theirs.memory(64);
        let (into, _) = ours.memory(64);
        ours.fill(from, 0x5a);
        let tagged = node.clone();
        let (aside, _) = ours.memory(64);
        let handles = vec![
            spawn(async move {
                node.core(0).write(peer, from, to).await?;
                node.core(0).read(peer, to, into).await
            }),
            spawn(async move {
                let core = tagged.core(0);
                // Its slot may be taken just now; then the other's end brings one.
                while let Err(Error::Overloaded { .. }) = core.start_read(peer, to, aside, 7) {
                    yield_now().await;
                }
                while ended.load(Ordering::Relaxed) == 0 {
                    yield_now().await;
                }
                Ok(())
            }),
        ];
        assert_eq!(join(handles), [Ok(()), Ok(())]);
        assert_eq!(ours.bytes(into), [0x5a; 64]);
    });
}

#[test]
fn a_batch_that_waits_for_slots_gets_them() {
    orders(|| {
        let (
            Connected {
                bed,
                nodes: [node, _],
                peers: [peer, _],
                ..
            },
            _,
        ) = start(config(), Sabotage::None, 0);
        let (piece, _) = Machine::of(&bed, 0).memory(32);
        let (_, place) = Machine::of(&bed, 1).memory(32);
        let handles = (0..3).map(|_| {
            let node = node.clone();
            spawn(async move {
                let core = node.core(0);
                let mut batch = core.batch(peer);
                let ticket = batch.add(OneSided::Write, place, piece)?;
                drop(batch);
                match ticket {
                    Some(ticket) => ticket.await,
                    None => core.write(peer, piece, place).await,
                }
            })
        });
        assert_eq!(join(handles.collect()), [Ok(()), Ok(()), Ok(())]);
    });
}

#[test]
fn two_cores_share_nothing_that_blocks_them() {
    orders(|| {
        let config = Config {
            cores: 2,
            ..config()
        };
        let (
            Connected {
                nodes: [node, _],
                peers: [peer, _],
                ..
            },
            _,
        ) = start(config, Sabotage::None, 1);
        let handles = (0..2).map(|core| {
            let node = node.clone();
            spawn(async move { call(&node, core, peer, 4).await })
        });
        assert_eq!(join(handles.collect()), [Ok(()), Ok(())]);
    });
}

#[test]
fn whoever_waits_for_a_lost_peer_is_told() {
    orders(|| {
        let (
            Connected {
                bed,
                nodes: [node, other],
                peers: [peer, _],
                controls,
            },
            _,
        ) = start(config(), Sabotage::None, 1);
        controls
            .into_iter()
            .for_each(|control| drop(spawn(control)));
        let told = Arc::new(AtomicU32::new(0));
        let mut handles: Vec<_> = (0..3_u8)
            .map(|byte| {
                let (node, told) = (node.clone(), told.clone());
                spawn(async move {
                    let ended = call(&node, 0, peer, byte).await;
                    told.fetch_add(1, Ordering::Relaxed);
                    ended
                })
            })
            .collect();
        handles.push(spawn(async move {
            other.leave();
            Ok(())
        }));
        // Time goes on, so that the control tasks look around, but not to any deadline.
        handles.push(spawn(async move {
            for _ in 0..1000 {
                if told.load(Ordering::Relaxed) == 3 {
                    return Ok(());
                }
                yield_now().await;
                bed.pass(Duration::from_millis(5));
            }
            panic!("somebody is never told")
        }));
        for ended in join(handles) {
            assert!(
                matches!(ended, Ok(()) | Err(Error::PeerLost { .. })),
                "{ended:?}"
            );
        }
    });
}

/// Returns whether shuttle finds an order in which the test fails.
fn is_found(sabotage: Sabotage) -> bool {
    let runner = Runner::new(
        RandomScheduler::new_from_seed(SEED, SABOTAGED),
        runner_config(),
    );
    catch_unwind(AssertUnwindSafe(|| {
        runner.run(move || calls_are_answered_under(sabotage))
    }))
    .is_err()
}

#[test]
fn arming_after_the_last_look_is_found() {
    assert!(is_found(Sabotage::ArmsLate));
}

#[test]
fn an_interrupt_that_is_forgotten_is_found() {
    assert!(is_found(Sabotage::ForgetsInterrupts));
}

#[test]
fn a_doorbell_that_wakes_nobody_is_found() {
    assert!(is_found(Sabotage::SleepingWire));
}
