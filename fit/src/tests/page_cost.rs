//! Cost of a page in FIT and the driver together, from "start" to the doorbell and from the
//! completion to "done": allocations here, instructions by `cargo xtask bench rpc`, which runs
//! [`faults`] under callgrind and counts what is executed inside the functions `page_*`, but not
//! inside those named `outside_*`: the card. The driver is the real one; memory and registers are
//! ordinary words, checked as the machine's are.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hal::{
    BusAddr, ConfigSpace, DmaBuffer, Duration, Error, Instant, InterruptVector, Platform, Registers,
};
use mlx4::Pages;
use verbs::{Gid, Lkey, PageOp, Qpn, RemoteAddr, Rkey};

use crate::pages::PageLink;
use crate::{PagePath, PeerId, PeerName, Role};

/// Rounds that [`faults`] makes of each kind; `cargo xtask bench rpc` divides by it.
const ROUNDS: u32 = 2000;
const DEPTH: u32 = 64;
const LOG_SLOTS: u32 = 7;
const LOG_ENTRIES: u32 = 7;

/// Words that the card shares.
#[derive(Clone)]
struct Words(Arc<[AtomicU32]>);

impl Words {
    fn new(len: usize) -> Self {
        Self((0..len / 4).map(|_| AtomicU32::new(0)).collect())
    }
    #[inline]
    fn at(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "misaligned");
        &self.0[offset / 4]
    }
}

impl DmaBuffer for Words {
    fn bus_addr(&self) -> BusAddr {
        BusAddr(0)
    }
    fn len(&self) -> usize {
        self.0.len() * 4
    }
    fn read(&self, _: usize, _: &mut [u8]) {
        unreachable!("pages are read by words")
    }
    fn write(&self, offset: usize, from: &[u8]) {
        for (word, at) in from.as_chunks().0.iter().zip((offset..).step_by(4)) {
            self.write_u32(at, u32::from_le_bytes(*word));
        }
    }
    fn fill(&self, offset: usize, len: usize, value: u8) {
        self.write(offset, &vec![value; len]);
    }
    #[inline]
    fn read_u32(&self, offset: usize) -> u32 {
        self.at(offset).load(Ordering::Relaxed)
    }
    #[inline]
    fn write_u32(&self, offset: usize, value: u32) {
        self.at(offset).store(value, Ordering::Relaxed);
    }
    #[inline]
    fn read_u64(&self, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8), "misaligned");
        let words = &self.0[offset / 4..offset / 4 + 2];
        let [low, high] = [0, 1].map(|at| u64::from(words[at].load(Ordering::Relaxed)));
        low | high << 32
    }
    fn write_u64(&self, offset: usize, value: u64) {
        self.write_words(offset, [value]);
    }
    // Two stores a word where a machine makes one.
    #[inline]
    fn write_words<const N: usize>(&self, offset: usize, words: [u64; N]) {
        assert!(offset.is_multiple_of(8), "misaligned");
        let places = &self.0[offset / 4..offset / 4 + 2 * N];
        for (word, place) in words.into_iter().zip(places.as_chunks::<2>().0) {
            place[0].store(word as u32, Ordering::Relaxed);
            place[1].store((word >> 32) as u32, Ordering::Relaxed);
        }
    }
}

/// Counts doorbells.
#[derive(Clone, Default)]
struct Doorbells(Arc<AtomicU32>);

impl Registers for Doorbells {
    fn len(&self) -> usize {
        1 << 20
    }
    fn read_u32(&self, _: usize) -> u32 {
        unreachable!("a page reads no register")
    }
    fn write_u32(&self, _: usize, _: u32) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn write_u64(&self, _: usize, _: u64) {
        unreachable!("a page arms nothing")
    }
}

/// A device that this machine does not have.
enum Nothing {}

impl ConfigSpace for Nothing {
    fn read_u32(&self, _: u16) -> u32 {
        match *self {}
    }
    fn write_u32(&self, _: u16, _: u32) {
        match *self {}
    }
}

impl InterruptVector for Nothing {
    async fn wait(&self) {
        match *self {}
    }
}

#[derive(Clone)]
struct Machine;

impl Platform for Machine {
    type Bar = Doorbells;
    type Config = Nothing;
    type Buffer = Words;
    type Vector = Nothing;

    fn map_bar(&self, index: u8) -> Result<Doorbells, Error> {
        Err(Error::NoBar { index })
    }
    fn config(&self) -> Nothing {
        unreachable!("no card")
    }
    fn alloc(&self, len: usize, _: usize) -> Result<Words, Error> {
        Err(Error::NoDmaMemory { len })
    }
    fn enable_vectors(
        &self,
        wanted: u16,
    ) -> Result<impl IntoIterator<Item = Nothing> + use<>, Error> {
        Err::<Vec<Nothing>, _>(Error::TooFewVectors { wanted, have: 0 })
    }
    fn now(&self) -> Instant {
        Instant::default()
    }
    async fn sleep(&self, _: Duration) {}
}

/// The card: carries out everything at once.
struct Card {
    ring: Words,
    completions: Words,
    doorbells: Doorbells,
    sent: u32,
    completed: u32,
}

#[inline(never)]
fn outside_card(card: &mut Card) -> u32 {
    let before = card.completed;
    loop {
        let at = (card.sent % (1 << LOG_SLOTS)) as usize * 64;
        let owner = u32::from_be(card.ring.read_u32(at));
        if owner >> 31 != card.sent >> LOG_SLOTS & 1 {
            return card.completed - before;
        }
        assert_eq!(card.ring.read_u32(at + 4), 0x0300_0000, "three units");
        if card.ring.read_u32(at + 8) != 0 {
            let entry = (card.completed % (1 << LOG_ENTRIES)) as usize * 32;
            let pass = card.completed >> LOG_ENTRIES & 1;
            card.completions
                .write_u32(entry, Pages::<Machine>::NO_CARD.to_be());
            card.completions
                .write_u32(entry + 0x18, (card.sent << 16).to_be());
            card.completions
                .write_u32(entry + 0x1c, (pass << 7 | 0x40 | owner & 0x1f).to_be());
            card.completed += 1;
        }
        card.sent += 1;
    }
}

fn bench() -> (PagePath<Pages<Machine>>, Card) {
    let card = Card {
        ring: Words::new((64 << LOG_SLOTS) + 128),
        completions: Words::new((32 << LOG_ENTRIES) + 64),
        doorbells: Doorbells::default(),
        sent: 0,
        completed: 0,
    };
    let (ring, completions) = (card.ring.clone(), card.completions.clone());
    let depths = (DEPTH, LOG_ENTRIES as u8);
    let queue = Pages::without_card(ring, completions, card.doorbells.clone(), depths, Lkey(7));
    let name = PeerName {
        role: Role::Memory,
        gid: Gid::default(),
    };
    let link = Arc::new(PageLink::new(PeerId(1), name, 0, Qpn(0x40), None));
    assert!(link.up());
    let path = PagePath::new(queue, link, Arc::default(), Duration::from_secs(10));
    (path, card)
}

type Path = PagePath<Pages<Machine>>;

/// A clean fault: a READ and a doorbell.
#[inline(never)]
fn page_starts_read(path: &mut Path, line: u32, local: u64, from: RemoteAddr) {
    if path.read(line, local, from).is_err() {
        panic!("a path with room");
    }
    path.ring();
}

/// A fault with a dirty victim: a READ and a WRITE by one doorbell.
#[inline(never)]
fn page_starts_both(path: &mut Path, lines: [u32; 2], locals: [u64; 2], remote: RemoteAddr) {
    let read = path.read(lines[0], locals[0], remote);
    if read
        .and_then(|()| path.write(lines[1], locals[1], remote))
        .is_err()
    {
        panic!("a path with room");
    }
    path.ring();
}

/// A look that finds one completion.
#[inline(never)]
fn page_ends_one(path: &mut Path, now: Instant, ended: &mut [u32; 2]) -> u32 {
    path.look(now, &mut |op, line, result| {
        if result.is_ok() {
            ended[usize::from(op == PageOp::Write)] = line;
        }
    })
}

/// The same, for the two of [`page_starts_both`].
#[inline(never)]
fn page_ends_next(path: &mut Path, now: Instant, ended: &mut [u32; 2]) -> u32 {
    let count = path.look(now, &mut |op, line, result| {
        if result.is_ok() {
            ended[usize::from(op == PageOp::Write)] = line;
        }
    });
    count.min(2)
}

/// A look that finds nothing though something is pending.
#[inline(never)]
fn page_looks_in_vain(path: &mut Path, now: Instant) -> bool {
    path.look(now, &mut |_, _, _| ()) == 0
}

fn one_read(path: &mut Path, card: &mut Card, round: u32) {
    let (local, from) = place(round);
    let now = Instant::from_nanos(u64::from(round) + 1);
    page_starts_read(path, round, local, from);
    // The first look begins the time.
    path.look(now, &mut |_, _, _| ());
    assert!(black_box(page_looks_in_vain(path, now)));
    assert_eq!(outside_card(card), 1);
    let mut ended = [u32::MAX; 2];
    assert_eq!(page_ends_one(path, now, &mut ended), 1);
    assert_eq!(ended[0], round);
}

fn one_of_both(path: &mut Path, card: &mut Card, round: u32) {
    let (local, from) = place(round);
    let now = Instant::from_nanos(u64::from(round) + 1);
    page_starts_both(path, [round, round + 1], [local, local + 4096], from);
    assert_eq!(outside_card(card), 2);
    let mut ended = [u32::MAX; 2];
    for _ in 0..2 {
        assert_eq!(page_ends_next(path, now, &mut ended), 1);
    }
    assert_eq!(ended, [round, round + 1]);
}

fn place(round: u32) -> (u64, RemoteAddr) {
    let addr = u64::from(round) << 12;
    let rkey = Rkey(9);
    (addr, RemoteAddr { addr, rkey })
}

#[test]
fn faults() {
    let (mut path, mut card) = bench();
    for round in 0..ROUNDS {
        one_read(&mut path, &mut card, round);
        one_of_both(&mut path, &mut card, round);
    }
    let counters = path.counters();
    assert_eq!(counters.nr_doorbells, u64::from(2 * ROUNDS));
    assert_eq!(counters.nr_signalled_write, u64::from(ROUNDS));
    assert_eq!(card.doorbells.0.load(Ordering::Relaxed), 2 * ROUNDS);
}

#[test]
fn a_fault_allocates_nothing() {
    let (mut path, mut card) = bench();
    let allocations = allocation_counter::measure(|| {
        for round in 0..500 {
            one_read(&mut path, &mut card, round);
            one_of_both(&mut path, &mut card, round);
        }
    });
    assert_eq!(allocations.count_total, 0);
}

#[test]
fn counters_wrap_at_16_bits() {
    let (mut path, mut card) = bench();
    for round in 0..70_000 {
        one_read(&mut path, &mut card, round);
    }
    assert_eq!(card.sent, 70_000);
}
