//! The server's tasks on a modelled machine: requests are answered while memory is cleaned.

use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use hal::{Duration, Instant};
use messages::memory::*;
use messages::{CHUNK_SIZE, Call, Errno, MAX_MESSAGE, decode_reply};
use verbs::Rkey;

use super::bed::*;
use crate::*;

/// The modelled hardware. A task that yields or sleeps is pending once; time passes by sleeping
/// only.
#[derive(Debug, Default)]
struct Model {
    hardware: Mutex<Hardware>,
    now: Mutex<Instant>,
    /// Makes registering fail.
    refuses: bool,
    server: OnceLock<Weak<Server<Model>>>,
}

impl Model {
    fn zeroed(&self) -> usize {
        self.hardware.lock().unwrap().zeroed
    }

    /// The manager must be free for others while the machine works.
    fn assert_unlocked(&self) {
        let server = self.server.get().unwrap().upgrade().unwrap();
        assert!(server.manager.try_lock().is_some(), "the manager is locked");
    }
}

impl Machine for Model {
    async fn register(
        &self,
        extent: ExtentId,
        to: PeerKey,
        addr: u64,
        len: u64,
    ) -> Result<Rkey, Failed> {
        self.assert_unlocked();
        self.yield_now().await;
        if self.refuses {
            return Err(Failed);
        }
        Ok(self
            .hardware
            .lock()
            .unwrap()
            .register(extent, to, addr, len))
    }

    async fn deregister(&self, extent: ExtentId) -> Result<(), Failed> {
        self.assert_unlocked();
        self.yield_now().await;
        self.hardware.lock().unwrap().deregister(extent);
        Ok(())
    }

    fn zero(&self, addr: u64, len: u64) {
        self.assert_unlocked();
        self.hardware.lock().unwrap().zero(addr, len);
    }

    async fn yield_now(&self) {
        let mut yielded = false;
        std::future::poll_fn(|_| match std::mem::replace(&mut yielded, true) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    async fn sleep(&self, span: Duration) {
        self.yield_now().await;
        let mut now = self.now.lock().unwrap();
        *now = *now + span;
    }

    fn now(&self) -> Instant {
        *self.now.lock().unwrap()
    }
}

fn pool(extents: u64, size: usize) -> Pool {
    Pool::with_extents_of(size, &[(BASE, extents * size as u64 * CHUNK_SIZE)])
}

fn server(extents: u64, size: usize, model: Model) -> Arc<Server<Model>> {
    server_with(pool(extents, size), model)
}

fn server_with(pool: Pool, model: Model) -> Arc<Server<Model>> {
    let server = Arc::new(Server::new(Manager::new(pool), model));
    server.machine.server.set(Arc::downgrade(&server)).unwrap();
    server
}

async fn call<C: Call>(server: &Server<Model>, from: PeerKey, request: Vec<u8>) -> Vec<u8> {
    let mut reply = vec![0; MAX_MESSAGE];
    let len = server.handle(from, C::KIND.0, &request, &mut reply).await;
    reply.truncate(len);
    reply
}

async fn lend(server: &Server<Model>, from: PeerKey, count: u16) -> Result<Vec<u64>, Errno> {
    let request = encoded::<Lend>(&LendRequest { pid: 1, count });
    let reply = call::<Lend>(server, from, request).await;
    decode_reply::<Lend>(&reply)
        .unwrap()
        .map(|chunks| addresses(&chunks))
}

async fn give(server: &Server<Model>, from: PeerKey, chunks: &[u64]) -> Result<(), Errno> {
    let chunks = chunks.iter().copied().collect();
    let request = encoded::<Return>(&ReturnRequest { chunks });
    let reply = call::<Return>(server, from, request).await;
    decode_reply::<Return>(&reply).unwrap()
}

/// Polls until it is ready.
fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..1_000_000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("never ready");
}

#[test]
fn others_are_answered_between_the_pieces_of_a_lost_peers_memory() {
    // Only the last extent is not the first peer's.
    let (extents, size) = (33, 4);
    let server = server(extents, size, Model::default());
    let held = run(async {
        let other = lend(&server, OTHER, 1).await.unwrap();
        lend(&server, P, u16::MAX).await.unwrap();
        other
    });
    server.machine.hardware.lock().unwrap().write_all(P);
    assert_eq!(server.peer_lost(P).chunks(), 128);
    assert_eq!(
        server.machine.zeroed(),
        0,
        "the lost peer's memory is cleaned later"
    );

    let mut cleaner = pin!(server.clean());
    let mut context = Context::from_waker(Waker::noop());
    let pieces = usize::try_from(128 * CHUNK_SIZE / PIECE).unwrap();
    let (mut answered, mut zeroed) = (held, 0);
    for _ in 0..2 * pieces {
        assert!(cleaner.as_mut().poll(&mut context).is_pending());
        let before = std::mem::replace(&mut zeroed, server.machine.zeroed());
        assert!(zeroed <= before + 1, "more than a piece without a pause");
        // A whole exchange, without waiting for anything.
        let chunks = lend(&server, OTHER, 1).now_or_never().unwrap().unwrap();
        answered.extend(&chunks);
        assert_eq!(give(&server, OTHER, &chunks).now_or_never(), Some(Ok(())));
    }
    assert_eq!((zeroed, answered.len()), (pieces, 2 * pieces + 1));
    assert_eq!(server.manager.lock().pool().idle(), 32);
}

#[test]
fn a_request_that_needs_a_lost_peers_memory_is_served_before_all_of_it_is_clean() {
    let server = server(4, 4, Model::default());
    run(lend(&server, P, 16)).unwrap();
    server.machine.hardware.lock().unwrap().write_all(P);
    assert_eq!(server.peer_lost(P).chunks(), 16);
    // The cleaner never runs here.
    assert_eq!(run(lend(&server, OTHER, 1)).unwrap().len(), 1);
    let pieces = usize::try_from(4 * CHUNK_SIZE / PIECE).unwrap();
    assert_eq!(server.machine.zeroed(), pieces);
}

#[test]
fn memory_as_firmware_left_it_is_zeroed_before_it_is_lent() {
    let server = server_with(pool(4, 4).dirty(), Model::default());
    assert_eq!(server.manager.lock().pool().idle(), 0);
    // The cleaner never runs here: a request zeroes the extent that it needs and no other.
    assert_eq!(run(lend(&server, P, 1)).unwrap().len(), 1);
    let pieces = usize::try_from(4 * CHUNK_SIZE / PIECE).unwrap();
    assert_eq!(server.machine.zeroed(), pieces);
    assert_eq!(run(lend(&server, P, 16)).unwrap().len(), 3, "what is clean");
    assert_eq!(run(lend(&server, P, 12)).unwrap().len(), 4);
    assert_eq!(server.machine.zeroed(), 2 * pieces);
}

#[test]
fn two_borrowers_and_the_cleaner_share_the_work() {
    let server = server(2, 2, Model::default());
    run(lend(&server, P, 4)).unwrap();
    server.machine.hardware.lock().unwrap().write_all(P);
    assert_eq!(server.peer_lost(P).chunks(), 4);
    let third = PeerKey(2);
    let (ours, theirs) = run(async {
        let both = futures_util::future::join(lend(&server, OTHER, 2), lend(&server, third, 2));
        let cleaner = pin!(server.clean());
        futures_util::future::select(pin!(both), cleaner)
            .map(|first| match first {
                futures_util::future::Either::Left((both, _)) => both,
                futures_util::future::Either::Right(_) => panic!("the cleaner ends"),
            })
            .await
    });
    assert_eq!((ours.unwrap().len(), theirs.unwrap().len()), (2, 2));
}

#[test]
fn a_request_that_waits_for_an_order_which_does_not_end_is_answered_in_time() {
    let server = server(1, 1, Model::default());
    // Another task is about to register the only extent, and never does.
    let mut reply = vec![0; MAX_MESSAGE];
    let request = encoded::<Lend>(&LendRequest { pid: 1, count: 1 });
    let step = server
        .manager
        .lock()
        .handle(P, Lend::KIND.0, &request, &mut reply);
    assert!(matches!(step, Step::First(Action::Register { .. })));
    assert_eq!(run(lend(&server, P, 1)), Err(Errno::ENOMEM));
    assert!(server.machine.now() >= Instant::default() + PATIENCE);
}

#[test]
fn an_hca_that_registers_nothing_means_enomem_at_once() {
    let refuses = Model {
        refuses: true,
        ..Model::default()
    };
    let server = server(2, 1, refuses);
    assert_eq!(run(lend(&server, P, 1)), Err(Errno::ENOMEM));
    assert_eq!(server.machine.now(), Instant::default());
    assert_eq!(server.counters().nr_enomem, 1);
}

#[test]
fn few_requests_wait_for_memory_to_be_cleaned_and_others_are_put_off() {
    let server = server(MAX_WAITING as u64 + 1, 8, Model::default());
    run(lend(&server, P, u16::MAX)).unwrap();
    drop(server.peer_lost(P));
    let mut context = Context::from_waker(Waker::noop());
    let mut begin = |peer: u16| {
        let server = server.clone();
        let mut request = Box::pin(async move { lend(&server, PeerKey(peer), 1).await });
        // A request takes its place after its first order.
        for _ in 0..4 {
            if let Poll::Ready(answer) = request.as_mut().poll(&mut context) {
                return Err(answer);
            }
        }
        Ok(request)
    };
    let mut waiting: Vec<_> = (1..=4)
        .flat_map(|peer| [peer; MAX_WAITING_OF_PEER])
        .take(MAX_WAITING - 1)
        .map(|peer| begin(peer).map_err(drop).expect("it waits"))
        .collect();
    // The first peer has its places.
    assert_eq!(begin(1).map(drop), Err(Err(Errno::EAGAIN)));
    waiting.push(begin(9).map_err(drop).expect("it waits"));
    assert_eq!(begin(10).map(drop), Err(Err(Errno::EAGAIN)));
    // Those that wait are answered, and make place.
    for request in waiting {
        assert_eq!(run(request).unwrap().len(), 1);
    }
    assert_eq!(server.counters().nr_eagain, 2);
    assert_eq!(run(lend(&server, PeerKey(10), 1)).unwrap().len(), 1);
}
