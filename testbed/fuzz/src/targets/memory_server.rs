//! M under a hostile P: any requests of two borrowers, and what must hold after each.

use memory::{Backing, LotId, Manager, Order, PeerKey, Pool, Step};
use messages::memory::{
    MapFlags, MapRequest, MemoryRequest, ProcessCreate, ProcessCreateRequest, ProcessId, ProcessRequest,
    Prot, ProtectRequest, RangeRequest, WindowsRequest,
};
use messages::{Kind, MAX_MESSAGE, PAGE_SIZE, WINDOW_SIZE, decode_reply};
use verbs::Rkey;

use crate::input::Input;

const CHUNKS: u64 = 12;
const LOT: usize = 2;

struct Nowhere;

impl Backing for Nowhere {
    fn zero(&mut self, addr: u64) {
        assert!(addr.is_multiple_of(WINDOW_SIZE) && addr < (CHUNKS + 1) * WINDOW_SIZE);
    }
}

fn carry_out(manager: &mut Manager<Nowhere>, order: Order, input: &mut Input<'_>) {
    let (pool, backing) = manager.pool_mut();
    match order {
        Order::Register {
            lot: LotId(lot), to, ..
        } if input.u8() != 0xff => {
            pool.registered(LotId(lot), Rkey(u32::from(to.0) << 16 | u32::from(lot)));
        }
        Order::Register { lot, .. } => pool.refused(lot),
        Order::TakeBack { lot } => pool.taken_back(lot, backing),
    }
}

fn answer(
    manager: &mut Manager<Nowhere>,
    from: PeerKey,
    kind: u16,
    request: &[u8],
    input: &mut Input<'_>,
) -> Vec<u8> {
    let mut reply = vec![0; MAX_MESSAGE];
    for _ in 0..2 * manager.pool().lots() + 1 {
        match manager.handle(from, kind, request, &mut reply) {
            Step::Replied(len) => {
                reply.truncate(len);
                return reply;
            }
            Step::First(order) => {
                let refused_at_once = matches!(order, Order::Register { .. });
                let before = *input;
                carry_out(manager, order, input);
                if refused_at_once && before.clone().u8() == 0xff {
                    let len = manager.handle_at_once(from, kind, request, &mut reply);
                    reply.truncate(len);
                    return reply;
                }
            }
        }
    }
    panic!("more orders than lots");
}

/// An address that has something to do with the others, or any.
fn address(input: &mut Input<'_>) -> u64 {
    match input.u8() % 4 {
        0 => 0,
        1 => u64::from(input.u16()) * PAGE_SIZE,
        2 => (1 << 30) + u64::from(input.u8()) * WINDOW_SIZE,
        _ => input.u64(),
    }
}

fn length(input: &mut Input<'_>) -> u64 {
    match input.u8() % 4 {
        0 => u64::from(input.u8()) * PAGE_SIZE,
        1 => u64::from(input.u8() % 16) * WINDOW_SIZE,
        2 => input.u16().into(),
        _ => input.u64(),
    }
}

fn request(input: &mut Input<'_>) -> MemoryRequest {
    let process = ProcessId(u64::from(input.u8() % 8));
    let prot = Prot::from_bits_truncate(input.u8());
    match input.u8() % 6 {
        0 => MemoryRequest::ProcessCreate(ProcessCreateRequest { pid: input.u32() }),
        1 => MemoryRequest::Map(MapRequest {
            process,
            hint: address(input),
            len: length(input),
            prot,
            flags: MapFlags::from_bits_truncate(input.u8()),
        }),
        2 => MemoryRequest::Unmap(RangeRequest {
            process,
            address: address(input),
            len: length(input),
        }),
        3 => MemoryRequest::Protect(ProtectRequest {
            process,
            address: address(input),
            len: length(input),
            prot,
        }),
        4 => MemoryRequest::Windows(WindowsRequest {
            process,
            first: input.u32(),
            count: input.u32(),
        }),
        _ => MemoryRequest::ProcessEnd(ProcessRequest { process }),
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut pool = Pool::new();
    pool.add_memory(WINDOW_SIZE, CHUNKS * WINDOW_SIZE, LOT);
    let total = pool.total();
    let mut manager = Manager::new(pool, Nowhere);
    let mut input = Input::new(bytes);
    while !input.is_empty() {
        let from = PeerKey(u16::from(input.u8() & 1));
        let choice = input.u8();
        match choice {
            0 => manager.peer_lost(from),
            1 => {
                let kind = input.u8().into();
                let raw = input.string().to_vec();
                answer(&mut manager, from, kind, &raw, &mut input);
            }
            _ => {
                let mut raw = [0; MAX_MESSAGE];
                let (Kind(kind), len) = request(&mut input).encode(&mut raw).expect("a request fits");
                let reply = answer(&mut manager, from, kind, &raw[..len], &mut input);
                assert!(reply.len() >= 4, "an answer has an errno");
                if kind == 1 {
                    decode_reply::<ProcessCreate>(&reply)
                        .expect("an answer is one")
                        .expect("few processes");
                }
            }
        }
        assert_eq!(manager.pool().total(), total);
        assert!(manager.pool().free() <= total);
    }
    for peer in [PeerKey(0), PeerKey(1)] {
        manager.peer_lost(peer);
    }
    assert_eq!(
        (manager.pool().free(), manager.processes()),
        (total, 0),
        "nothing is lost"
    );
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // Make two processes, map, protect, list, unmap.
    let make = [0, 2, 0, 0, 0, 1, 0, 0, 0];
    let map = |process: u8, pages: u8| [0, 2, process, 3, 1, 0, 0, pages, 0];
    let list = [0, 2, 1, 0, 4, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    let unmap = [0, 2, 1, 0, 2, 2, 0, 1, 2];
    vec![
        [&make[..], &make, &map(1, 7), &map(2, 200), &list, &unmap].concat(),
        [&make[..], &map(1, 9), &[1, 0], &[0, 0]].concat(),
        vec![0, 1, 2, 3, 0, 0, 0],
    ]
}
