//! The page path over a queue that does what it is told: what is signalled, what is refused, how a
//! lost path ends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use hal::{Duration, Instant};
use verbs::{Gid, PageFailure, PageOp, PageQueue, Qpn, RemoteAddr, RingFull, Status};

use crate::pages::{OrphanedQueues, PageLink};
use crate::{LostCause, Operation, PagePath, PageRefused, PeerId, PeerName, Role};

use PageOp::{Read, Write};

const DEPTH: u32 = 40;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Content of the queue, and the events that the test allows.
#[derive(Default)]
struct State {
    /// Operation, line, whether signalled.
    posted: VecDeque<(PageOp, u32, bool)>,
    rung: usize,
    /// Requests that the device has carried out, from the front on.
    carried_out: usize,
    failure: Option<PageFailure>,
    doorbells: u32,
}

#[derive(Clone, Default)]
struct Queue(Arc<Mutex<State>>);

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
    /// Carries out everything that was rung.
    fn carry_out(&self) {
        let mut state = self.state();
        state.carried_out = state.rung;
    }
    fn flags(&self) -> Vec<bool> {
        self.state().posted.iter().map(|posted| posted.2).collect()
    }
}

impl PageQueue for Queue {
    fn post(
        &mut self,
        op: PageOp,
        line: u32,
        _: u64,
        _: RemoteAddr,
        signalled: bool,
    ) -> Result<(), RingFull> {
        assert!(self.room() > 0, "a post beyond the ring");
        self.state().posted.push_back((op, line, signalled));
        Ok(())
    }
    fn ring(&mut self) {
        let mut state = self.state();
        let last = state.posted.back().expect("a doorbell for something");
        assert!(last.2, "the last of a batch is signalled");
        state.rung = state.posted.len();
        state.doorbells += 1;
    }
    fn is_ready(&self) -> bool {
        let state = self.state();
        let ended = state
            .posted
            .iter()
            .take(state.carried_out)
            .any(|posted| posted.2);
        ended || state.failure.is_some()
    }
    fn take(&mut self, done: &mut impl FnMut(PageOp, u32)) -> Result<(), PageFailure> {
        let mut state = self.state();
        // Up to the last signalled one that was carried out.
        let mut upto = state.carried_out;
        while upto > 0 && !state.posted[upto - 1].2 {
            upto -= 1;
        }
        for (op, line, _) in state.posted.drain(..upto) {
            done(op, line);
        }
        state.rung -= upto;
        state.carried_out -= upto;
        match state.failure {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
    fn oldest(&self) -> Option<(PageOp, u32)> {
        self.state().posted.front().map(|&(op, line, _)| (op, line))
    }
    fn take_back(&mut self) -> Option<(PageOp, u32)> {
        self.state()
            .posted
            .pop_front()
            .map(|(op, line, _)| (op, line))
    }
    fn arm(&mut self) {}
    fn room(&self) -> u32 {
        DEPTH - self.outstanding()
    }
    fn outstanding(&self) -> u32 {
        u32::try_from(self.state().posted.len()).unwrap()
    }
}

type Ended = Vec<(PageOp, u32, Result<(), LostCause>)>;

struct Bench {
    path: PagePath<Queue>,
    queue: Queue,
    link: Arc<PageLink>,
    parking: Arc<OrphanedQueues<Queue>>,
}

fn bench() -> Bench {
    let name = PeerName {
        role: Role::Memory,
        gid: Gid::default(),
    };
    let link = Arc::new(PageLink::new(PeerId(1), name, 0, Qpn(0x40), None));
    assert!(link.up());
    let (queue, parking) = (Queue::default(), Arc::default());
    let path = PagePath::new(queue.clone(), link.clone(), Arc::clone(&parking), TIMEOUT);
    Bench {
        path,
        queue,
        link,
        parking,
    }
}

impl Bench {
    fn start(&mut self, op: PageOp, line: u32) -> Result<(), PageRefused> {
        let at = RemoteAddr::default();
        match op {
            Read => self.path.read(line, 0, at),
            Write => self.path.write(line, 0, at),
        }
    }
    fn look(&mut self, secs: u64) -> Ended {
        let mut ended = Vec::new();
        let now = Instant::from_nanos(1) + Duration::from_secs(secs);
        let count = self
            .path
            .look(now, &mut |op, line, result| ended.push((op, line, result)));
        assert_eq!(count as usize, ended.len());
        ended
    }
}

fn well(all: &[(PageOp, u32)]) -> Ended {
    all.iter().map(|&(op, line)| (op, line, Ok(()))).collect()
}

#[test]
fn a_write_is_signalled_only_if_nothing_signalled_follows() {
    let mut bench = bench();
    for (op, line) in [(Write, 1), (Write, 2), (Read, 3), (Write, 4)] {
        bench.start(op, line).unwrap();
    }
    assert_eq!(bench.queue.state().doorbells, 0);
    bench.path.ring();
    bench.path.ring();
    assert_eq!(bench.queue.flags(), [false, false, true, true]);
    assert_eq!(bench.queue.state().doorbells, 1, "nothing new, no doorbell");
    bench.queue.carry_out();
    assert_eq!(
        bench.look(1),
        well(&[(Write, 1), (Write, 2), (Read, 3), (Write, 4)])
    );
    let counters = bench.path.counters();
    assert_eq!((counters.nr_rdma_read, counters.nr_rdma_write), (1, 3));
    assert_eq!((counters.nr_signalled_write, counters.nr_doorbells), (1, 1));
    assert_eq!(bench.path.pending(), 0);
}

#[test]
fn a_full_ring_of_writes_is_refused_and_ends() {
    let mut bench = bench();
    for line in 0..DEPTH {
        assert_eq!(bench.path.room(), DEPTH - line);
        bench.start(Write, line).unwrap();
    }
    for op in [Read, Write] {
        assert_eq!(bench.start(op, 99), Err(PageRefused::Full));
    }
    bench.path.ring();
    let signalled = bench
        .queue
        .flags()
        .iter()
        .filter(|&&signalled| signalled)
        .count();
    assert_eq!(signalled, 3, "one in sixteen, and the last");
    bench.queue.carry_out();
    assert_eq!(bench.look(1).len(), DEPTH as usize);
    assert_eq!(bench.path.room(), DEPTH);
}

#[test]
fn a_failed_path_tells_nobody_before_its_queue_pair_is_dead() {
    let mut bench = bench();
    for (op, line) in [(Read, 1), (Write, 2), (Read, 3)] {
        bench.start(op, line).unwrap();
    }
    bench.path.ring();
    bench.queue.state().carried_out = 1;
    bench.queue.state().failure = Some(PageFailure::Request(Status::RemoteAccess));
    assert_eq!(bench.look(1), well(&[(Read, 1)]));
    let cause = LostCause::Transport(Status::RemoteAccess);
    assert_eq!(bench.path.lost(), Some(cause));
    assert_eq!(bench.start(Read, 4), Err(PageRefused::Lost));
    assert_eq!(bench.look(100), []);
    bench.link.dead();
    assert_eq!(
        bench.look(101),
        [(Write, 2, Err(cause)), (Read, 3, Err(cause))]
    );
    assert_eq!((bench.look(102), bench.path.pending()), (vec![], 0));
}

#[test]
fn completions_that_can_not_be_are_the_devices_fault() {
    let mut bench = bench();
    bench.start(Read, 1).unwrap();
    bench.path.ring();
    let nonsense = PageFailure::Inconsistent { qpn: 7, index: 9 };
    bench.queue.state().failure = Some(nonsense);
    assert_eq!(bench.look(1), []);
    assert_eq!(bench.path.lost(), Some(LostCause::Device));
}

#[test]
fn a_path_whose_peer_is_lost_ends_what_was_done_well_and_what_was_held_back() {
    let mut bench = bench();
    bench.start(Read, 1).unwrap();
    bench.path.ring();
    bench.start(Read, 2).unwrap();
    bench.start(Write, 3).unwrap();
    bench.queue.carry_out();
    bench.link.fail(LostCause::PeerLeft);
    bench.link.dead();
    let lost = Err(LostCause::PeerLeft);
    assert_eq!(bench.look(1), well(&[(Read, 1)]));
    assert_eq!(bench.look(1), [(Read, 2, lost), (Write, 3, lost)]);
}

#[test]
fn the_oldest_request_has_so_much_time() {
    let mut bench = bench();
    for line in 0..3 {
        bench.start(Read, line).unwrap();
        bench.path.ring();
    }
    assert_eq!(bench.look(5), []);
    assert_eq!(bench.look(14), []);
    bench.queue.state().carried_out = 1;
    // Another is the oldest now.
    assert_eq!(bench.look(14), well(&[(Read, 0)]));
    assert_eq!(bench.look(15), []);
    assert_eq!(bench.look(24), []);
    assert_eq!(bench.path.lost(), None);
    assert_eq!(bench.look(25), []);
    let cause = LostCause::Deadline(Operation::Read);
    assert_eq!(bench.path.lost(), Some(cause));
    bench.link.dead();
    assert_eq!(
        bench.look(26),
        [(Read, 1, Err(cause)), (Read, 2, Err(cause))]
    );
    // With nothing pending no time runs.
    assert_eq!(bench.look(1000), []);
}

#[test]
fn a_dropped_path_leaves_its_queue_to_be_taken_away() {
    let bench = bench();
    drop(bench.path);
    assert!(!bench.link.is_up() && !bench.link.loses_peer());
    assert_eq!(bench.parking.lock().len(), 1);
}
