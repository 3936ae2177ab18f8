//! The manager against a map of pages.

use std::collections::{BTreeMap, BTreeSet};

use messages::memory::*;
use messages::{Call, Errno, MAX_MESSAGE, PAGE_SIZE, USER_END, WINDOW_SIZE, decode_reply, encode_request};
use proptest::prelude::*;
use verbs::Rkey;

use crate::*;

/// Remembers which chunks were zeroed, and plays the HCA: which lots are registered, and for whom.
#[derive(Default)]
struct Zeroes(Vec<u64>);

impl Backing for Zeroes {
    fn zero(&mut self, addr: u64) {
        self.0.push(addr);
    }
}

/// A request's bytes until they are answered, doing what must be done first. Keys tell the borrower and the lot.
fn answer(
    manager: &mut Manager<Zeroes>,
    from: PeerKey,
    kind: u16,
    request: &[u8],
    reply: &mut [u8],
) -> usize {
    for _ in 0..2 * manager.pool().lots() + 1 {
        match manager.handle(from, kind, request, reply) {
            Step::Replied(len) => return len,
            Step::First(order) => carry_out(manager, order),
        }
    }
    panic!("more orders than lots");
}

fn carry_out(manager: &mut Manager<Zeroes>, order: Order) {
    let (pool, backing) = manager.pool_mut();
    match order {
        Order::Register { lot, to, .. } => pool.registered(lot, key(to, lot)),
        Order::TakeBack { lot } => pool.taken_back(lot, backing),
    }
}

fn key(of: PeerKey, lot: LotId) -> Rkey {
    Rkey(u32::from(of.0) << 16 | u32::from(lot.0))
}

const P: PeerKey = PeerKey(0);

fn manager(chunks: u64) -> Manager<Zeroes> {
    let mut pool = Pool::new();
    pool.add_memory(0x1000_0000, chunks * WINDOW_SIZE + 5, 2);
    Manager::new(pool, Zeroes::default())
}

/// Makes a call through the bytes, and decodes the reply.
macro_rules! call {
    ($manager:expr, $from:expr, $call:ty, $request:expr) => {{
        let (mut request, mut reply) = ([0; MAX_MESSAGE], vec![0; MAX_MESSAGE]);
        let len = encode_request::<$call>(&$request, &mut request).unwrap();
        let len = answer(&mut $manager, $from, <$call>::KIND.0, &request[..len], &mut reply);
        decode_reply::<$call>(&reply[..len]).unwrap()
    }};
}

fn new_process(manager: &mut Manager<Zeroes>, from: PeerKey) -> ProcessId {
    call!(*manager, from, ProcessCreate, ProcessCreateRequest { pid: 1 }).unwrap()
}

fn map(
    manager: &mut Manager<Zeroes>,
    process: ProcessId,
    hint: u64,
    len: u64,
    flags: MapFlags,
) -> Result<Mapped, Errno> {
    let prot = Prot::READ | Prot::WRITE;
    call!(
        *manager,
        P,
        Map,
        MapRequest {
            process,
            hint,
            len,
            prot,
            flags
        }
    )
}

#[test]
fn neighbouring_mappings_share_a_window() {
    let mut manager = manager(4);
    let process = new_process(&mut manager, P);
    let first = map(&mut manager, process, 0, 5000, MapFlags::empty()).unwrap();
    assert_eq!(first.address, MMAP_BASE - 2 * PAGE_SIZE);
    assert_eq!(first.windows.as_slice().len(), 1);
    let second = map(&mut manager, process, 0, 4096, MapFlags::empty()).unwrap();
    assert_eq!(second.address, first.address - PAGE_SIZE);
    assert_eq!(second.windows.as_slice(), []);
}

#[test]
fn more_than_there_is_is_enomem_and_changes_nothing() {
    let mut manager = manager(2);
    let process = new_process(&mut manager, P);
    assert_eq!(
        map(&mut manager, process, 0, 3 * WINDOW_SIZE, MapFlags::empty()),
        Err(Errno::ENOMEM)
    );
    assert_eq!(manager.space(P, process).unwrap().mappings().count(), 0);
    assert_eq!(manager.pool().free(), 2);
    assert!(map(&mut manager, process, 0, 2 * WINDOW_SIZE, MapFlags::empty()).is_ok());
    assert_eq!(manager.counters().nr_enomem, 1);
    assert_eq!(manager.counters().max_chunks_lent, 2);
}

#[test]
fn a_mapping_without_rights_costs_nothing_until_it_gets_one() {
    let mut manager = manager(2);
    let process = new_process(&mut manager, P);
    let (hint, len) = (0x4000_0000, 1 << 40);
    let request = MapRequest {
        process,
        hint,
        len,
        prot: Prot::empty(),
        flags: MapFlags::FIXED_NOREPLACE,
    };
    assert_eq!(call!(manager, P, Map, request).unwrap().windows.as_slice(), []);
    assert_eq!(manager.pool().free(), 2);
    let prot = Prot::READ;
    let protect = ProtectRequest {
        process,
        address: hint + WINDOW_SIZE,
        len: 4096,
        prot,
    };
    let windows = call!(manager, P, Protect, protect).unwrap();
    assert_eq!(windows.as_slice()[0].base(), hint + WINDOW_SIZE);
    // Taking the right away keeps the contents, so the chunk too.
    call!(
        manager,
        P,
        Protect,
        ProtectRequest {
            prot: Prot::empty(),
            ..protect
        }
    )
    .unwrap();
    assert_eq!(manager.pool().free(), 1);
    let protect = ProtectRequest {
        len: 1 << 39,
        ..protect
    };
    assert_eq!(call!(manager, P, Protect, protect), Err(Errno::ENOMEM));
}

#[test]
fn a_lost_peer_gives_everything_back_zeroed() {
    let mut manager = manager(4);
    let other = PeerKey(1);
    let (process, theirs) = (new_process(&mut manager, P), new_process(&mut manager, other));
    map(&mut manager, process, 0, 3 * WINDOW_SIZE, MapFlags::empty()).unwrap();
    // A handle is worth nothing in another peer's hands.
    let stolen = ProcessRequest { process };
    assert_eq!(call!(manager, other, ProcessEnd, stolen), Err(Errno::ESRCH));
    manager.peer_lost(P);
    assert_eq!((manager.pool().free(), manager.processes()), (4, 1));
    assert_eq!(manager.backing_zeroed(), 3);
    assert_eq!(
        call!(manager, other, ProcessEnd, ProcessRequest { process: theirs }),
        Ok(())
    );
}

impl Manager<Zeroes> {
    fn backing_zeroed(&self) -> usize {
        self.backing().0.len()
    }
}

#[test]
fn hostile_ranges_are_errors() {
    let mut manager = manager(4);
    let process = new_process(&mut manager, P);
    let fixed = MapFlags::FIXED;
    for (hint, len, flags, errno) in [
        (0, 0, MapFlags::empty(), Errno::EINVAL),
        (0, u64::MAX, MapFlags::empty(), Errno::ENOMEM),
        (0x10_0001, 4096, fixed, Errno::EINVAL),
        (0, 4096, fixed, Errno::EPERM),
        (USER_END, 4096, fixed, Errno::ENOMEM),
        (u64::MAX - 4095, 4096, fixed, Errno::ENOMEM),
        (USER_END - 4096, 8192, fixed, Errno::ENOMEM),
    ] {
        assert_eq!(
            map(&mut manager, process, hint, len, flags),
            Err(errno),
            "{hint:#x} {len:#x}"
        );
    }
    for (address, len) in [(0, 0), (1, 4096), (USER_END, 4096), (!4095, 4096), (0, u64::MAX)] {
        let range = RangeRequest {
            process,
            address,
            len,
        };
        assert_eq!(
            call!(manager, P, Unmap, range),
            Err(Errno::EINVAL),
            "{address:#x} {len:#x}"
        );
    }
    let mut reply = [0; MAX_MESSAGE];
    let len = answer(&mut manager, P, 999, &[1, 2, 3], &mut reply);
    assert_eq!(
        decode_reply::<ProcessEnd>(&reply[..len]).unwrap(),
        Err(Errno::EPROTO)
    );
}

#[test]
fn a_long_list_of_windows_is_fetched_in_parts() {
    let windows = MAX_WINDOWS as u64 + 3;
    let mut manager = manager(windows);
    let process = new_process(&mut manager, P);
    let mapped = map(
        &mut manager,
        process,
        0x4000_0000,
        windows * WINDOW_SIZE,
        MapFlags::FIXED,
    )
    .unwrap();
    assert!(mapped.windows.more);
    let first = mapped.windows.as_slice().last().unwrap().index + 1;
    let rest = call!(
        manager,
        P,
        Windows,
        WindowsRequest {
            process,
            first,
            count: 1000
        }
    )
    .unwrap();
    assert_eq!((rest.as_slice().len(), rest.more), (3, false));
}

/// A universe of four windows of which some pages around the borders are played with.
const BASE: u64 = 0x4000_0000;
const CHUNKS: u64 = 3;

fn page() -> impl Strategy<Value = u64> {
    (0u64..4, 0u64..6).prop_map(|(window, page)| {
        let page = if page < 3 {
            page
        } else {
            WINDOW_SIZE / PAGE_SIZE - 6 + page
        };
        BASE + window * WINDOW_SIZE + page * PAGE_SIZE
    })
}

#[derive(Debug, Clone)]
enum Action {
    Map { prot: Prot, replace: bool },
    Unmap,
    Protect { prot: Prot },
}

fn action() -> impl Strategy<Value = (u64, u64, Action)> {
    let prot = || {
        prop_oneof![
            Just(Prot::empty()),
            Just(Prot::READ),
            Just(Prot::READ | Prot::WRITE)
        ]
    };
    let action = prop_oneof![
        (prot(), any::<bool>()).prop_map(|(prot, replace)| Action::Map { prot, replace }),
        Just(Action::Unmap),
        prot().prop_map(|prot| Action::Protect { prot }),
    ];
    (page(), page(), action).prop_map(|(a, b, action)| (a.min(b), a.abs_diff(b) + PAGE_SIZE, action))
}

/// Page to rights, and whether it ever had any.
type Pages = BTreeMap<u64, (Prot, bool)>;

fn windows_needed(pages: &Pages) -> BTreeSet<u64> {
    pages
        .iter()
        .filter(|(_, (_, committed))| *committed)
        .map(|(page, _)| page / WINDOW_SIZE)
        .collect()
}

/// What the pages look like afterwards, or the errno.
fn expect(pages: &Pages, range: &[u64], action: &Action) -> Result<Pages, Errno> {
    let mut after = pages.clone();
    match action {
        Action::Map { prot, replace } => {
            if !replace && range.iter().any(|page| pages.contains_key(page)) {
                return Err(Errno::EEXIST);
            }
            after.extend(range.iter().map(|page| (*page, (*prot, !prot.is_empty()))));
        }
        Action::Unmap => after.retain(|page, _| !range.contains(page)),
        Action::Protect { prot } => {
            if range.iter().any(|page| !pages.contains_key(page)) {
                return Err(Errno::ENOMEM);
            }
            for page in range {
                let (rights, committed) = after.get_mut(page).unwrap();
                *rights = *prot;
                *committed |= !prot.is_empty();
            }
        }
    }
    Ok(after)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn an_address_space_is_a_map_of_pages(actions in proptest::collection::vec(action(), 1..25)) {
        let mut manager = manager(CHUNKS);
        let process = new_process(&mut manager, P);
        let mut pages = Pages::new();
        for (address, len, action) in actions {
            let range: Vec<u64> = (address..address + len).step_by(4096).collect();
            let expected = expect(&pages, &range, &action);
            let done = match action {
                Action::Map { prot, replace } => {
                    let flags = if replace { MapFlags::FIXED } else { MapFlags::FIXED_NOREPLACE };
                    let request = MapRequest { process, hint: address, len, prot, flags };
                    call!(manager, P, Map, request).map(|mapped| assert_eq!(mapped.address, address))
                }
                Action::Unmap => {
                    let before = windows_needed(&pages);
                    call!(manager, P, Unmap, RangeRequest { process, address, len }).map(|run| {
                        let after = windows_needed(expected.as_ref().unwrap());
                        let run = u64::from(run.first)..u64::from(run.first + run.count);
                        assert!(after.iter().all(|window| !run.contains(window)));
                        assert!(before.difference(&after).all(|window| run.contains(window)));
                    })
                }
                Action::Protect { prot } => {
                    call!(manager, P, Protect, ProtectRequest { process, address, len, prot }).map(|_| ())
                }
            };
            match (done, expected) {
                (Ok(()), Ok(after)) => pages = after,
                // The pool may be short: of the chunks that are needed on the way, at least as many as afterwards.
                (Err(Errno::ENOMEM), Ok(after)) => {
                    let on_the_way = windows_needed(&pages).union(&windows_needed(&after)).count();
                    let slack = usize::from(matches!(action, Action::Protect { .. })) * 3;
                    prop_assert!(on_the_way + slack > 3);
                }
                (done, expected) => prop_assert_eq!(done.err(), expected.err()),
            }
            let space = manager.space(P, process).unwrap();
            let mapped: Pages = space
                .mappings()
                .flat_map(|(range, prot)| range.step_by(4096).map(move |page| (page, prot)))
                .map(|(page, prot)| (page, (prot, pages.get(&page).is_some_and(|(_, committed)| *committed))))
                .collect();
            prop_assert_eq!(&mapped, &pages);
            let backed: BTreeSet<u64> =
                space.windows(0, u32::MAX).as_slice().iter().map(|window| window.index.into()).collect();
            prop_assert_eq!(&backed, &windows_needed(&pages));
            prop_assert_eq!(manager.pool().free() + backed.len(), 3);
        }
    }
}

#[test]
fn a_borrowers_keys_reach_only_its_own_lots() {
    let mut manager = manager(6);
    let other = PeerKey(1);
    let (process, theirs) = (new_process(&mut manager, P), new_process(&mut manager, other));
    let ours = map(&mut manager, process, 0, 3 * WINDOW_SIZE, MapFlags::empty()).unwrap();
    let request = MapRequest {
        process: theirs,
        hint: 0,
        len: WINDOW_SIZE / 2,
        prot: Prot::READ,
        flags: MapFlags::empty(),
    };
    let foreign = call!(manager, other, Map, request).unwrap();
    let lots = |list: &WindowList, of: PeerKey| -> BTreeSet<u32> {
        let keys = list.as_slice().iter().map(|window| window.chunk.rkey.0);
        keys.inspect(|key| assert_eq!(key >> 16, u32::from(of.0)))
            .collect()
    };
    assert_eq!(
        (lots(&ours.windows, P).len(), lots(&foreign.windows, other).len()),
        (2, 1)
    );
    // The rest of the other's lot is out of our reach, so the pool has one chunk for us and not two.
    let more = map(&mut manager, process, 0, 2 * WINDOW_SIZE, MapFlags::empty());
    assert_eq!((more, manager.pool().free()), (Err(Errno::ENOMEM), 2));
}

#[test]
fn an_empty_lot_goes_to_another_only_zeroed_and_without_its_region() {
    let mut manager = manager(4);
    let other = PeerKey(1);
    let (process, theirs) = (new_process(&mut manager, P), new_process(&mut manager, other));
    let mapped = map(&mut manager, process, 0, 4 * WINDOW_SIZE, MapFlags::empty()).unwrap();
    let range = RangeRequest {
        process,
        address: mapped.address,
        len: 4 * WINDOW_SIZE,
    };
    call!(manager, P, Unmap, range).unwrap();
    let zeroed = manager.backing_zeroed();
    let request = MapRequest {
        process: theirs,
        hint: 0,
        len: WINDOW_SIZE,
        prot: Prot::READ,
        flags: MapFlags::empty(),
    };
    let (mut bytes, mut reply) = ([0; MAX_MESSAGE], vec![0; MAX_MESSAGE]);
    let len = encode_request::<Map>(&request, &mut bytes).unwrap();
    let mut orders = Vec::new();
    while let Step::First(order) = manager.handle(other, Map::KIND.0, &bytes[..len], &mut reply) {
        orders.push(matches!(order, Order::TakeBack { .. }));
        carry_out(&mut manager, order);
        // What a lot was fetched for comes first: its former borrower can't take it back meanwhile.
        if orders.len() == 2 {
            let more = map(&mut manager, process, 0, 3 * WINDOW_SIZE, MapFlags::empty());
            assert_eq!(more, Err(Errno::ENOMEM));
        }
    }
    // Who gave the lot back may have written to it since.
    assert_eq!(
        (orders, manager.backing_zeroed()),
        (vec![true, false], zeroed + 2)
    );
}

#[test]
fn a_lot_that_cannot_be_registered_is_enomem() {
    let mut manager = manager(2);
    let process = new_process(&mut manager, P);
    let request = MapRequest {
        process,
        hint: 0,
        len: WINDOW_SIZE,
        prot: Prot::READ,
        flags: MapFlags::empty(),
    };
    let (mut bytes, mut reply) = ([0; MAX_MESSAGE], vec![0; MAX_MESSAGE]);
    let len = encode_request::<Map>(&request, &mut bytes).unwrap();
    let Step::First(Order::Register { lot, .. }) = manager.handle(P, Map::KIND.0, &bytes[..len], &mut reply)
    else {
        panic!("no order");
    };
    manager.pool_mut().0.refused(lot);
    let len = manager.handle_at_once(P, Map::KIND.0, &bytes[..len], &mut reply);
    assert_eq!(decode_reply::<Map>(&reply[..len]).unwrap(), Err(Errno::ENOMEM));
    assert_eq!((manager.counters().nr_enomem, manager.pool().free()), (1, 2));
}
