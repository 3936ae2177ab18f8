//! Queues of futexes, and locks that are handed on.

use super::*;

const WORD: Key = Key::Private(SpaceId(1), 0x1000);
const OTHER: Key = Key::Private(SpaceId(1), 0x2004);

fn woken(waiter: &Waiter) -> bool {
    waiter.poll(Waker::noop())
}

#[test]
fn waiters_are_woken_in_order_and_by_bits() {
    let futexes = Futexes::default();
    let waiters = [1, 2, 3].map(|bits| futexes.wait(WORD, bits, || true).unwrap());
    assert!(futexes.wait(WORD, 1, || false).is_none());
    assert_eq!(futexes.wake(OTHER, 9, ANY), Ok(0));
    assert_eq!(futexes.wake(WORD, 1, 2), Ok(1));
    assert_eq!(waiters.each_ref().map(|w| woken(w)), [false, true, false]);
    assert!(futexes.cancel(&waiters[0]) && !futexes.cancel(&waiters[1]));
    assert_eq!(futexes.wake(WORD, 9, ANY), Ok(1));
}

#[test]
fn requeued_waiters_are_woken_and_cancelled_where_they_went() {
    for to in [OTHER, Key::Private(SpaceId(2), 0x1000)] {
        let futexes = Futexes::default();
        let waiters = [0; 4].map(|_| futexes.wait(WORD, ANY, || true).unwrap());
        assert_eq!(futexes.requeue(WORD, to, (1, 2), || false), None);
        assert_eq!(futexes.requeue(WORD, to, (1, 2), || true), Some(Ok((1, 2))));
        assert!(futexes.cancel(&waiters[1]));
        assert_eq!(futexes.wake(WORD, 9, ANY), Ok(1));
        assert_eq!(futexes.wake(to, 9, ANY), Ok(1));
        assert_eq!(
            waiters.each_ref().map(|w| woken(w)),
            [true, false, true, true]
        );
    }
}

mod lock {
    use super::super::pi::{Locked, OWNER_DIED, WAITERS, WaiterEnd, Word};
    use super::*;
    use std::cell::Cell;

    /// A word in memory, or on its way.
    struct Memory(Cell<u32>, Cell<bool>);

    impl Word for Memory {
        fn load(&self) -> Option<u32> {
            self.1.get().then_some(self.0.get())
        }

        fn exchange(&self, old: u32, new: u32) -> Option<()> {
            let is_old = self.load()? == old;
            is_old.then(|| self.0.set(new))
        }
    }

    fn word(value: u32) -> Memory {
        Memory(Cell::new(value), Cell::new(true))
    }

    fn by(tid: u32, priority: u32) -> Locker {
        Locker { tid, priority }
    }

    /// Threads below 100 live.
    fn lives(tid: u32) -> bool {
        tid < 100
    }

    fn ask(futexes: &Futexes, key: Key, by: Locker, word: &Memory) -> Result<Locked, Errno> {
        futexes.lock(key, by, true, word, &lives).expect("here")
    }

    fn queued(outcome: Result<Locked, Errno>) -> Arc<Waiter> {
        match outcome {
            Ok(Locked::Queued(waiter)) => waiter,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_lock_goes_from_hand_to_hand_by_priority() {
        let (futexes, word) = (Futexes::default(), word(0));
        assert!(matches!(
            ask(&futexes, WORD, by(1, 0), &word),
            Ok(Locked::Taken)
        ));
        assert_eq!(word.0.get(), 1);
        let waiters = [(2, 0), (3, 0), (4, 50), (5, 50), (6, 99)]
            .map(|(tid, priority)| queued(ask(&futexes, WORD, by(tid, priority), &word)));
        assert_eq!(word.0.get(), WAITERS | 1);
        assert_eq!(futexes.unlock(WORD, 2, &word), Some(Err(errno::EPERM)));
        let mut owner = 1;
        for next in [6, 4, 5, 2, 3] {
            assert_eq!(futexes.unlock(WORD, owner, &word), Some(Ok(())));
            assert_eq!(word.0.get(), WAITERS | next);
            let waiter = &waiters[next as usize - 2];
            assert!(woken(waiter));
            assert_eq!(futexes.leave(waiter), WaiterEnd::Owner);
            owner = next;
        }
        assert_eq!(futexes.unlock(WORD, 3, &word), Some(Ok(())));
        assert_eq!(word.0.get(), 0);
    }

    #[test]
    fn a_word_that_is_away_or_changes_is_asked_for_again() {
        let (futexes, word) = (Futexes::default(), word(9));
        word.1.set(false);
        assert!(futexes.lock(WORD, by(1, 0), true, &word, &lives).is_none());
        assert!(futexes.unlock(WORD, 9, &word).is_none());
        word.1.set(true);
        let waiter = queued(ask(&futexes, WORD, by(1, 0), &word));
        word.1.set(false);
        assert!(futexes.unlock(WORD, 9, &word).is_none());
        assert!(!woken(&waiter));
    }

    #[test]
    fn words_that_lie_are_refused() {
        let futexes = Futexes::default();
        let refused = |value: u32, tid: u32| {
            let word = word(value);
            (ask(&futexes, WORD, by(tid, 0), &word).err(), word.0.get())
        };
        assert_eq!(refused(7, 7), (Some(errno::EDEADLK), 7));
        assert_eq!(refused(WAITERS | 7, 7).0, Some(errno::EDEADLK));
        assert_eq!(refused(200, 7), (Some(errno::ESRCH), WAITERS | 200));
        assert_eq!(refused(OWNER_DIED, 7), (None, OWNER_DIED | 7));
        // The kernel knows the owner as 1.
        let known = word(1);
        let waiter = queued(ask(&futexes, WORD, by(2, 0), &known));
        assert_eq!(refused(WAITERS | 3, 7).0, Some(errno::EINVAL));
        assert_eq!(futexes.unlock(WORD, 3, &word(3)), Some(Err(errno::EINVAL)));
        assert_eq!(
            futexes
                .lock(WORD, by(4, 0), false, &known, &lives)
                .unwrap()
                .err(),
            Some(errno::EAGAIN)
        );
        assert_eq!(futexes.wake(WORD, 1, ANY), Err(errno::EINVAL));
        assert_eq!(
            futexes.requeue(WORD, OTHER, (1, 1), || true),
            Some(Err(errno::EINVAL))
        );
        assert_eq!(futexes.leave(&waiter), WaiterEnd::Without);
        assert_eq!(futexes.wake(WORD, 1, ANY), Ok(0));
        // Somebody waits here without wanting the lock.
        futexes.wait(OTHER, ANY, || true).unwrap();
        assert_eq!(
            ask(&futexes, OTHER, by(2, 0), &known).err(),
            Some(errno::EINVAL)
        );
        assert_eq!(futexes.unlock(OTHER, 1, &known), Some(Err(errno::EINVAL)));
    }

    #[test]
    fn chains_of_waits_that_close_are_deadlocks() {
        let futexes = Futexes::default();
        let keys = [0x1000, 0x2000, 0x3000].map(|addr| Key::Private(SpaceId(1), addr));
        let words = [1, 2, 3].map(word);
        // 1 waits for 2's, 2 for 3's.
        let first = queued(ask(&futexes, keys[1], by(1, 0), &words[1]));
        queued(ask(&futexes, keys[2], by(2, 0), &words[2]));
        assert_eq!(
            ask(&futexes, keys[0], by(3, 0), &words[0]).err(),
            Some(errno::EDEADLK)
        );
        assert_eq!(futexes.leave(&first), WaiterEnd::Without);
        queued(ask(&futexes, keys[0], by(3, 0), &words[0]));
    }

    #[test]
    fn a_dead_owner_s_lock_is_inherited_or_passed_on() {
        let (futexes, word) = (Futexes::default(), word(1));
        let [second, third, fourth] =
            [2, 3, 4].map(|tid| queued(ask(&futexes, WORD, by(tid, 0), &word)));
        futexes.exit(1, || {});
        assert!(woken(&second) && !woken(&third));
        assert_eq!(futexes.leave(&second), WaiterEnd::Heir);
        assert_eq!(futexes.inherit(WORD, 2, &word), Some(()));
        assert_eq!(word.0.get(), OWNER_DIED | WAITERS | 2);
        futexes.exit(2, || {});
        assert_eq!(futexes.leave(&third), WaiterEnd::Heir);
        // It can't reach the word.
        futexes.disclaim(WORD);
        assert_eq!(futexes.leave(&fourth), WaiterEnd::Heir);
        assert_eq!(futexes.inherit(WORD, 4, &word), Some(()));
        assert_eq!(futexes.unlock(WORD, 4, &word), Some(Ok(())));
        assert_eq!(word.0.get(), 0);
        assert!(matches!(
            ask(&futexes, WORD, by(5, 0), &word),
            Ok(Locked::Taken)
        ));
    }

    #[test]
    fn waiters_are_moved_to_a_lock_one_by_one() {
        let futexes = Futexes::default();
        let (condition, lock) = (word(0), word(0));
        let wait = |tid: u32| {
            futexes
                .wait_for_move((WORD, OTHER), by(tid, 0), || true)
                .unwrap()
        };
        let waiters = [1, 2, 3, 4].map(wait);
        let moved = |most: u32, expected: u32| {
            futexes.move_to_lock((WORD, expected), OTHER, most, (&condition, &lock), &lives)
        };
        assert_eq!(moved(1, 5), Some(Err(errno::EAGAIN)));
        assert_eq!(futexes.wake(WORD, 1, ANY), Err(errno::EINVAL));
        assert_eq!(
            futexes.requeue(WORD, OTHER, (0, 1), || true),
            Some(Err(errno::EINVAL))
        );
        assert_eq!(moved(1, 0), Some(Ok(2)));
        assert_eq!(lock.0.get(), WAITERS | 1);
        assert_eq!(
            waiters.each_ref().map(|w| woken(w)),
            [true, false, false, false]
        );
        assert_eq!(futexes.leave(&waiters[0]), WaiterEnd::Owner);
        assert_eq!(futexes.leave(&waiters[2]), WaiterEnd::Unmoved);
        assert_eq!(moved(0, 0), Some(Ok(1)), "the fourth, behind the second");
        assert_eq!(futexes.unlock(OTHER, 1, &lock), Some(Ok(())));
        assert_eq!(futexes.leave(&waiters[3]), WaiterEnd::Without);
        assert_eq!(futexes.leave(&waiters[1]), WaiterEnd::Owner);
        assert_eq!(futexes.unlock(OTHER, 2, &lock), Some(Ok(())));
        assert_eq!((lock.0.get(), moved(9, 0)), (0, Some(Ok(0))));
        // Those that wait for another lock, or for none, are not moved.
        wait(1);
        let elsewhere = futexes.move_to_lock((WORD, 0), WORD, 1, (&condition, &lock), &lives);
        assert_eq!(elsewhere, Some(Err(errno::EINVAL)));
    }
}
