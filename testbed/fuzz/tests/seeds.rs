//! Each target takes its seeds and what is near them: cut anywhere, with bits changed, and joined
//! to each other.
//!
//! The changes follow from the seed's place alone, so a failure comes again.

use fuzz::{TARGETS, Target};

/// Inputs that are made of each seed.
const CHANGED: u64 = 16;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits")
    }

    fn below(&mut self, end: usize) -> usize {
        self.next() % end.max(1)
    }

    fn byte(&mut self) -> u8 {
        let bytes = [0, 1, 0x7f, 0x80, 0xff, self.next().to_le_bytes()[0]];
        bytes[self.below(bytes.len())]
    }
}

fn changed(seed: &[u8], rng: &mut Rng, target: &Target) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    match rng.below(4) {
        0 => bytes.truncate(rng.below(seed.len() + 1)),
        1 => bytes.extend((0..rng.below(64)).map(|_| rng.byte()).collect::<Vec<_>>()),
        2 => bytes.extend_from_slice(&seed[rng.below(seed.len())..]),
        _ => {}
    }
    for _ in 0..rng.below(6) {
        let at = rng.below(bytes.len());
        if let Some(byte) = bytes.get_mut(at) {
            *byte = rng.byte();
        }
    }
    bytes.truncate(target.max_len);
    bytes
}

fn feed(target: &Target, bytes: &[u8]) {
    let done = std::panic::catch_unwind(|| (target.run)(bytes));
    assert!(done.is_ok(), "{} fails on {bytes:02x?}", target.name);
}

#[test]
fn seeds_and_what_is_near_them_are_taken() {
    for target in TARGETS {
        feed(target, &[]);
        for (place, seed) in (target.seeds)().iter().enumerate() {
            assert!(
                seed.len() <= target.max_len,
                "{}: seed {place} is too long",
                target.name
            );
            feed(target, seed);
            let mut rng = Rng(0x9e37_79b9_7f4a_7c15 ^ place as u64);
            for _ in 0..CHANGED {
                feed(target, &changed(seed, &mut rng, target));
            }
        }
    }
}

#[test]
fn targets_have_names_of_their_own() {
    let mut names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), TARGETS.len());
    assert!(names.iter().all(|name| fuzz::find(name).is_some()));
}

#[test]
fn what_was_planted_is_there() {
    let bytes = [0x0d, 0xf0, 0xde, 0xc0, 0xa1, 0xe4, 0x55, 0x7e, b'!'];
    let done = std::panic::catch_unwind(|| (fuzz::PLANTED.run)(&bytes));
    assert!(
        done.is_err(),
        "without it nothing shows that the search is guided"
    );
}
