use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;

use proptest::prelude::*;

use super::*;

const PEER: PeerId = PeerId(3);
const ROOM: Room = Room::Calls;

/// A task that waits: whether it was woken, and its place.
#[derive(Default)]
struct Task {
    woken: Arc<Woken>,
    ticket: Option<Ticket>,
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Step of a run.
#[derive(Debug, Clone)]
enum Step {
    /// Somebody comes.
    Come,
    /// So much room becomes free, of which the head is told as the connection would.
    Room(u8),
    /// A task is polled if it was woken.
    Poll(prop::sample::Index),
    /// A task gives up.
    Drop(prop::sample::Index),
    /// So many milliseconds go by, and a tick.
    Tick(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Come),
        3 => (1..4_u8).prop_map(Step::Room),
        8 => any::<prop::sample::Index>().prop_map(Step::Poll),
        1 => any::<prop::sample::Index>().prop_map(Step::Drop),
        1 => (1..9_u8).prop_map(Step::Tick),
    ];
    prop::collection::vec(step, 0..200)
}

/// A core, its tasks in the order in which they came, and what it has to give.
struct Core {
    turns: Turns,
    tasks: Vec<Task>,
    room: u32,
    now: Instant,
    /// The head's waker that the connection has.
    told: Option<Arc<Woken>>,
}

impl Core {
    fn new() -> Self {
        Self {
            turns: Turns::new(100),
            tasks: Vec::new(),
            room: 0,
            now: Instant::default(),
            told: None,
        }
    }

    /// Polls a task: true when it has started, and is done.
    fn poll(&mut self, index: usize) -> bool {
        let task = &mut self.tasks[index];
        task.woken.0.store(false, Ordering::Relaxed);
        let turn = self.turns.is_turn(PEER, ROOM, task.ticket);
        if turn && self.room > 0 {
            self.room -= 1;
            let task = self.tasks.remove(index);
            if let Some(ticket) = task.ticket {
                self.turns.leave(PEER, ROOM, ticket);
            }
            return true;
        }
        let waker = Arc::clone(&task.woken).into();
        let place = self.turns.wait((PEER, ROOM), task.ticket, &waker);
        task.ticket = Some(place.unwrap());
        if self.turns.is_turn(PEER, ROOM, task.ticket) {
            self.told = Some(Arc::clone(&task.woken));
        }
        false
    }

    fn tick(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
        self.turns.tick(self.now);
    }

    /// Somebody who can start is going to be polled, or nobody waits, or nothing is there.
    fn is_sound(&self) -> bool {
        let head = self
            .tasks
            .iter()
            .find(|task| self.turns.is_turn(PEER, ROOM, task.ticket));
        self.room == 0 || head.is_none_or(|head| head.woken.0.load(Ordering::Relaxed))
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Come => {
                self.tasks.push(Task::default());
                let waits = self.tasks.len() > 1;
                let started = self.poll(self.tasks.len() - 1);
                prop_assert!(!(started && waits), "one that came later went first");
            }
            Step::Room(free) => {
                self.room += u32::from(*free);
                if let Some(head) = self.told.take() {
                    head.wake();
                }
            }
            Step::Poll(index) if !self.tasks.is_empty() => {
                let index = index.index(self.tasks.len());
                if self.tasks[index].woken.0.load(Ordering::Relaxed) && self.poll(index) {
                    prop_assert_eq!(index, 0, "somebody before it waits");
                }
            }
            Step::Drop(index) if !self.tasks.is_empty() => {
                let task = self.tasks.remove(index.index(self.tasks.len()));
                if let Some(ticket) = task.ticket {
                    self.turns.leave(PEER, ROOM, ticket);
                }
            }
            // Everybody who is woken is polled between two ticks.
            Step::Tick(millis) => {
                self.tick((*millis).into());
                let mut index = 0;
                while index < self.tasks.len() {
                    let woken = self.tasks[index].woken.0.load(Ordering::Relaxed);
                    if !(woken && self.poll(index)) {
                        index += 1;
                    }
                }
            }
            Step::Poll(_) | Step::Drop(_) => {}
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn all_are_served_in_the_order_in_which_they_came(steps in steps()) {
        let mut core = Core::new();
        for step in &steps {
            core.step(step)?;
            prop_assert!(core.is_sound(), "room for somebody who sleeps");
        }
    }

    /// `stuck` of them are never polled again.
    #[test]
    fn those_who_are_not_polled_hold_the_others_up_for_a_while_only(
        stuck in prop::collection::vec(any::<bool>(), 1..12),
    ) {
        let mut core = Core::new();
        for _ in &stuck {
            core.step(&Step::Come)?;
        }
        core.room = u32::try_from(stuck.len()).unwrap();
        let mut tasks: Vec<_> = stuck.into_iter().collect();
        let live = tasks.iter().filter(|stuck| !**stuck).count();
        let unpolled = tasks.len() - live;
        // A tick every 4 ms, as the node's.
        let rounds = (unpolled + 1) * 7;
        for _ in 0..rounds {
            core.tick(4);
            let mut index = 0;
            while index < tasks.len() {
                if !tasks[index] && core.poll(index) {
                    tasks.remove(index);
                } else {
                    index += 1;
                }
            }
        }
        prop_assert_eq!(tasks.len(), unpolled, "all others are served");
    }
}

#[test]
fn other_peers_and_kinds_of_room_are_other_lines() {
    let mut turns = Turns::new(2);
    let wait = |turns: &mut Turns, peer, room| {
        let ticket = turns.wait((peer, room), None, Waker::noop());
        ticket.unwrap()
    };
    let first = wait(&mut turns, PEER, ROOM);
    assert!(turns.is_turn(PEER, Room::Accesses, None));
    assert!(turns.is_turn(PeerId(4), ROOM, None));
    assert!(!turns.is_turn(PEER, ROOM, None));
    let second = wait(&mut turns, PEER, ROOM);
    assert!(!turns.is_turn(PEER, ROOM, Some(second)));
    let third = turns.wait((PEER, ROOM), None, Waker::noop());
    assert_eq!(third, Err(TooMany { limit: 2 }));
    turns.leave(PEER, ROOM, first);
    assert!(turns.is_turn(PEER, ROOM, Some(second)));
    turns.leave(PEER, ROOM, second);
    assert!(turns.lines.is_empty());
}
