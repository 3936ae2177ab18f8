//! M under hostile borrowers: any requests of two, in flight at once, and what must hold after
//! each.

use std::collections::BTreeMap;

use memory::{Action, ExtentId, Manager, PIECE, PeerKey, Pool, Step};
use messages::memory::{
    Lend, LendRequest, MAX_CHUNKS, MemoryRequest, ReserveRequest, Return, ReturnRequest,
};
use messages::{CHUNK_SIZE, Call, Kind, MAX_MESSAGE, decode_reply};
use verbs::Rkey;

use crate::input::Input;

const CHUNKS: u64 = 12;
/// Chunks in an extent.
const SIZE: usize = 2;
/// Requests in flight at once.
const FLIGHTS: usize = 4;

/// A request that is not answered yet, and the order that it carries out at present.
struct Flight {
    from: PeerKey,
    kind: u16,
    request: Vec<u8>,
    action: Option<Action>,
}

/// M, and a model of who is lent which chunk.
struct World {
    manager: Manager,
    /// The borrowers of the regions that are registered.
    regions: BTreeMap<ExtentId, PeerKey>,
    lent: BTreeMap<u64, PeerKey>,
    peers: [PeerKey; 2],
    flights: Vec<Flight>,
    cleaning: Option<Action>,
}

impl World {
    fn new() -> Self {
        let pool = Pool::with_extents_of(SIZE, &[(CHUNK_SIZE, CHUNKS * CHUNK_SIZE)]);
        Self {
            manager: Manager::new(pool),
            regions: BTreeMap::new(),
            lent: BTreeMap::new(),
            peers: [PeerKey(0), PeerKey(1)],
            flights: Vec::new(),
            cleaning: None,
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Register {
                extent, to, len, ..
            } => {
                assert_eq!(len, SIZE as u64 * CHUNK_SIZE);
                assert_eq!(self.regions.insert(extent, to), None, "registered twice");
                let rkey = Rkey(u32::from(to.0) << 16 | u32::from(extent.0));
                self.manager.registered(extent, rkey);
            }
            Action::Deregister { extent } => {
                assert!(self.regions.remove(&extent).is_some(), "no region");
                self.manager.deregistered(extent);
            }
            Action::Zero { extent, addr, len } => {
                assert!(
                    !self.regions.contains_key(&extent),
                    "its borrower can write to it"
                );
                assert!(len <= PIECE && addr + len <= (CHUNKS + 1) * CHUNK_SIZE);
                self.manager.zeroed(extent);
            }
        }
    }

    /// Lets a request get on; one whose registration fails is answered at once.
    fn advance(&mut self, which: usize, refuse: bool) {
        let flight = &mut self.flights[which];
        let action = flight.action.take();
        let refused = match action {
            Some(Action::Register { extent, .. }) if refuse => Some(extent),
            _ => None,
        };
        match (refused, action) {
            (Some(extent), _) => self.manager.refused(extent),
            (None, Some(action)) => self.carry_out(action),
            (None, None) => {}
        }
        let flight = &mut self.flights[which];
        let mut reply = [0; MAX_MESSAGE];
        let step = if refused.is_some() {
            let len =
                self.manager
                    .handle_at_once(flight.from, flight.kind, &flight.request, &mut reply);
            Step::Replied(len)
        } else {
            self.manager
                .handle(flight.from, flight.kind, &flight.request, &mut reply)
        };
        match step {
            Step::First(action) => flight.action = Some(action),
            Step::Wait => {}
            Step::Replied(len) => {
                let flight = self.flights.swap_remove(which);
                self.replied(&flight, &reply[..len]);
            }
        }
    }

    /// Holds the reply against the model.
    fn replied(&mut self, flight: &Flight, reply: &[u8]) {
        assert!(reply.len() >= 4, "an answer has an errno");
        let decoded = MemoryRequest::decode(Kind(flight.kind), &flight.request);
        if flight.kind == Lend::KIND.0
            && let Ok(chunks) = decode_reply::<Lend>(reply).expect("a reply")
        {
            assert!(!chunks.is_empty() && self.peers.contains(&flight.from));
            for chunk in chunks {
                let extent = ExtentId((chunk.rkey.0 & 0xffff).try_into().expect("16 bits"));
                assert_eq!(self.regions.get(&extent), Some(&flight.from));
                assert_eq!(
                    self.lent.insert(chunk.addr, flight.from),
                    None,
                    "lent twice"
                );
            }
        }
        if let Ok(MemoryRequest::Return(request)) = decoded
            && decode_reply::<Return>(reply).expect("a reply").is_ok()
        {
            for addr in request.chunks {
                assert_eq!(self.lent.remove(&addr), Some(flight.from), "not lent to it");
            }
        }
    }

    fn clean(&mut self) {
        match self.cleaning.take() {
            Some(action) => self.carry_out(action),
            None => self.cleaning = self.manager.clean(),
        }
    }

    fn lose(&mut self, which: usize) {
        let peer = self.peers[which];
        let had = self.lent.values().filter(|&&of| of == peer).count();
        assert_eq!(self.manager.peer_lost(peer).chunks(), had);
        self.lent.retain(|_, of| *of != peer);
        self.peers[which] = PeerKey(peer.0 + 2);
    }

    /// A request that means something now and then.
    fn request(&self, input: &mut Input<'_>) -> MemoryRequest {
        match input.u8() % 4 {
            0 => MemoryRequest::Reserve(ReserveRequest {
                chunks: match input.u8() {
                    0xff => input.u32(),
                    few => u32::from(few % 16),
                },
            }),
            1 | 2 => MemoryRequest::Lend(LendRequest {
                pid: input.u8().into(),
                count: match input.u8() {
                    0xff => input.u16(),
                    few => u16::from(few % 16),
                },
            }),
            _ => {
                let count = usize::from(input.u8()) % (MAX_CHUNKS + 1);
                let chunks = (0..count.min(16)).map(|_| self.address(input)).collect();
                MemoryRequest::Return(ReturnRequest { chunks })
            }
        }
    }

    fn address(&self, input: &mut Input<'_>) -> u64 {
        match input.u8() {
            0xff => input.u64(),
            0xfe => u64::from(input.u8()) * CHUNK_SIZE,
            place => self
                .lent
                .keys()
                .nth(usize::from(place) % self.lent.len().max(1))
                .copied()
                .unwrap_or(0),
        }
    }

    fn begin(&mut self, from: PeerKey, kind: u16, request: Vec<u8>) {
        self.flights.push(Flight {
            from,
            kind,
            request,
            action: None,
        });
        self.advance(self.flights.len() - 1, false);
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut world = World::new();
    let mut input = Input::new(bytes);
    while !input.is_empty() {
        let choice = input.u8();
        let peer = usize::from(choice & 1);
        let from = world.peers[peer];
        match choice >> 1 {
            0 => world.lose(peer),
            1 => world.clean(),
            _ if world.flights.len() == FLIGHTS => {
                world.advance(usize::from(choice >> 1) % FLIGHTS, input.u8() == 0xff);
            }
            2 => {
                let (kind, raw) = (input.u8().into(), input.string().to_vec());
                world.begin(from, kind, raw);
            }
            3 if !world.flights.is_empty() => {
                let which = usize::from(input.u8()) % world.flights.len();
                world.advance(which, input.u8() == 0xff);
            }
            _ => {
                let mut raw = [0; MAX_MESSAGE];
                let request = world.request(&mut input);
                let (Kind(kind), len) = request.encode(&mut raw).expect("a request fits");
                world.begin(from, kind, raw[..len].to_vec());
            }
        }
        assert_eq!(world.manager.counters().nr_chunks_lent, world.lent.len());
    }
    end(world);
}

/// Every request ends, and all memory comes back.
fn end(mut world: World) {
    let pieces = usize::try_from(CHUNKS * CHUNK_SIZE / PIECE).expect("few");
    for turn in 0..4 * FLIGHTS * pieces {
        if world.flights.is_empty() {
            break;
        }
        world.advance(turn % world.flights.len(), false);
        world.clean();
    }
    assert!(world.flights.is_empty(), "a request does not end");
    (0..2).for_each(|peer| world.lose(peer));
    for _ in 0..4 * pieces {
        world.clean();
    }
    let counters = world.manager.counters();
    assert_eq!(
        (counters.nr_chunks_lent, counters.nr_chunks_promised),
        (0, 0)
    );
    let pool = world.manager.pool();
    assert_eq!(pool.idle(), pool.extents(), "nothing stays away");
    assert!(world.regions.is_empty());
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let reserve = |peer: u8, chunks: u8| [16 | peer, 0, chunks];
    let lend = |peer: u8, pid: u8, count: u8| [16 | peer, 1, pid, count];
    let give = |peer: u8, places: &[u8]| {
        let count = u8::try_from(places.len()).expect("few");
        [&[16 | peer, 3, count][..], places].concat()
    };
    let advance = [6, 0, 0].repeat(40);
    let clean = [2].repeat(80);
    vec![
        [
            &reserve(0, 5)[..],
            &lend(0, 1, 4),
            &advance,
            &give(0, &[0, 1]),
        ]
        .concat(),
        // One borrower has all, and is lost; the other needs it.
        [
            &lend(0, 1, 12)[..],
            &advance,
            &[0],
            &lend(1, 2, 3),
            &advance,
            &clean,
        ]
        .concat(),
        // Both ask at once, and a registration is refused.
        [&lend(0, 1, 1)[..], &lend(1, 1, 9), &[6, 0, 0xff], &advance].concat(),
        // An empty extent changes hands.
        [
            &lend(0, 1, 12)[..],
            &advance,
            &give(0, &[0, 1, 2, 3]),
            &lend(1, 1, 1),
            &advance,
        ]
        .concat(),
        vec![4, 2, 6, 1, 0, 0, 0, 1, 0, 4, 3, 2, 1, 0],
    ]
}
