//! The cache against a flat memory: whatever the order of uses and completions, nothing is lost, mixed or stale.

mod fake;

use std::collections::BTreeMap;

use fake::{FILE, Fake};
use hal::Instant;
use pcache::{Access, Cache, Config, Error, Geometry, IoFailed, Page, Policy, SpaceId, Vpn};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// The program reads or writes; it gives up if the page needs a wait.
    Touch { page: u8, write: Option<u64> },
    /// The kernel writes through a pin.
    KernelWrite { page: u8, value: u64 },
    /// munmap, and a new mapping at the same place.
    Discard { page: u8 },
    /// mprotect.
    Revoke { page: u8 },
    /// A transfer ends.
    Complete { which: u8, early: bool, fails: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let page = 0u8..24;
    prop_oneof![
        6 => (page.clone(), prop::option::of(any::<u64>())).prop_map(|(page, write)| Op::Touch { page, write }),
        1 => (page.clone(), any::<u64>()).prop_map(|(page, value)| Op::KernelWrite { page, value }),
        1 => page.clone().prop_map(|page| Op::Discard { page }),
        1 => page.prop_map(|page| Op::Revoke { page }),
        5 => (any::<u8>(), any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(which, early, fails)| Op::Complete { which, early, fails }),
    ]
}

/// Two spaces; a third of the pages is a file's.
fn page(n: u8) -> Page {
    let base = if n.is_multiple_of(3) { FILE } else { 0 };
    Page {
        space: SpaceId(u64::from(n % 2)),
        vpn: Vpn(base + u64::from(n)),
    }
}

fn at_first(page: Page) -> u64 {
    if page.vpn.0 >= FILE { page.vpn.0 * 3 } else { 0 }
}

struct World {
    cache: Cache<Fake>,
    reference: BTreeMap<Page, u64>,
    now: u64,
}

impl World {
    fn new(bytes: u64, config: Config) -> Self {
        let geometry = Geometry::new(bytes, 4).unwrap();
        Self {
            cache: Cache::new(geometry, config, Fake::new(geometry.lines())),
            reference: BTreeMap::new(),
            now: 0,
        }
    }

    fn now(&mut self) -> Instant {
        self.now += 1;
        Instant::from_nanos(self.now)
    }

    fn expected(&self, page: Page) -> u64 {
        self.reference
            .get(&page)
            .copied()
            .unwrap_or_else(|| at_first(page))
    }

    /// Brings the page in and maps it; false if that has to wait.
    fn fault(&mut self, page: Page) -> bool {
        let now = self.now();
        let access = match self.cache.access(page, now) {
            // Said once; the next access reads again.
            Err(Error::Fill { .. }) => self.cache.access(page, now),
            access => access,
        };
        match access {
            Ok(Access::Ready(pinned)) => pinned.map(true).unwrap(),
            Ok(Access::Load(load)) => {
                load.zero();
                load.write(64, &at_first(page).to_le_bytes());
                load.finish(false).map(true).unwrap();
            }
            Ok(Access::Wait) => return false,
            Err(error) => panic!("{error}"),
        }
        true
    }

    fn touch(&mut self, page: Page, write: Option<u64>) -> bool {
        let machine = self.cache.machine();
        let mut seen = machine.touch(page, 64, None);
        if seen.is_none() {
            if !self.fault(page) {
                return false;
            }
            seen = self.cache.machine().touch(page, 64, None);
        }
        assert_eq!(seen, Some(self.expected(page)), "{page} read stale");
        if let Some(value) = write {
            self.cache.machine().touch(page, 64, write).unwrap();
            self.reference.insert(page, value);
        }
        true
    }

    fn complete(&mut self, which: usize, early: bool, fails: bool) {
        let pending = self.cache.machine().state().transfers.len();
        if pending == 0 {
            return;
        }
        let which = which % pending;
        let now = self.now();
        if fails {
            let token = self.cache.machine().state().transfers.swap_remove(which).token();
            self.cache.complete(token, Err(IoFailed(5)), now).unwrap_err();
        } else {
            let token = self.cache.machine().carry_out(which, early);
            self.cache.complete(token, Ok(()), now).unwrap();
            assert_eq!(
                self.cache.complete(token, Ok(()), now),
                Err(Error::UnknownToken(token)),
                "completed twice"
            );
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Touch { page: n, write } => {
                self.touch(page(n), write);
            }
            Op::KernelWrite { page: n, value } => {
                let (page, now) = (page(n), self.now());
                if let Ok(Access::Ready(pinned)) = self.cache.access(page, now) {
                    let mut was = [0; 8];
                    pinned.read(64, &mut was);
                    assert_eq!(u64::from_le_bytes(was), self.expected(page), "{page} read stale");
                    pinned.write(64, &value.to_le_bytes());
                    self.reference.insert(page, value);
                }
            }
            Op::Discard { page: n } => {
                self.cache.discard(page(n));
                self.cache.machine().forget(page(n));
                self.reference.remove(&page(n));
            }
            Op::Revoke { page: n } => assert!(self.cache.revoke(page(n)), "one core never finds a page busy"),
            Op::Complete { which, early, fails } => self.complete(usize::from(which), early, fails),
        }
        assert!(self.cache.lines_in_use().0 <= self.cache.geometry().lines() as usize);
    }

    /// Ends all transfers, then reads every page.
    fn settle(&mut self) {
        for n in 0..24 {
            while !self.touch(page(n), None) {
                assert!(
                    !self.cache.machine().state().transfers.is_empty(),
                    "{} waits for nothing",
                    page(n)
                );
                self.complete(0, true, false);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_is_lost_mixed_or_stale(
        sets in 1u64..4,
        reserve in 0u32..3,
        fifo: bool,
        ops in prop::collection::vec(op(), 1..300),
    ) {
        let policy = if fifo { Policy::Fifo } else { Policy::Clock };
        let mut world = World::new(sets * 4 * 4096, Config { policy, reserve });
        for op in ops {
            world.apply(op);
        }
        world.settle();
        for space in [0, 1] {
            world.cache.discard_space(SpaceId(space));
        }
        while !world.cache.machine().state().transfers.is_empty() {
            world.complete(0, false, false);
        }
        prop_assert_eq!(world.cache.lines_in_use(), (0, 0), "pages given up leave no line behind");
        prop_assert!(world.cache.machine().state().tables.is_empty());
    }
}
