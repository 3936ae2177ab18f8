//! Every fault of the testbed at once, by seed: of the card, of its firmware, of its links and of
//! what the driver reads. Nothing panics, every wait ends, no card reaches memory that is not its
//! own, what ends well has the right bytes, and a card that is honest again works.
//!
//! `MLX4_SEEDS=1000` runs that many seeds, from `MLX4_SEED` on.

use std::collections::BTreeMap;
use std::sync::Arc;

use hal::{Duration, Platform};
use harness::{
    CardBoard, ClusterConfig, Device as Card, FabricConfig, Faults, Faulty, Fired, LinkFaults,
    LinkRate, Machine, NodeConfig, Rng, Testbed,
};
use mlx4::{Config, Mlx4, Pages};
use verbs::{
    Completion, Device, PAGE_LEN, PageOp, PageQueue, PagesConfig, PathToPeer, Payload, PortState,
    Psn, QpSlot, Qpn, QueueSet, RcParameters, SendOp, Status,
};

use crate::common::{ALL, End, Node, Piece, guid, log, pattern, rc_config, request};
use crate::personalities::exchange;

type Spoiled = Faulty<Machine>;

/// Seeds of an ordinary run.
const SEEDS: u64 = 40;
/// Time between two looks of a card's service: seldom, as commands are waited for for a minute.
const SERVICE: Duration = Duration::from_millis(5);
/// Time after which a card is back from a reset.
const AWAY: Duration = Duration::from_secs(2);
const MESSAGE: usize = 3000;
const ROUNDS: usize = 6;
const PARAMETERS: RcParameters = RcParameters {
    ack_timeout: 12,
    retry_count: 7,
    rnr_retry: 6,
    min_rnr_timer: 1,
    reads_as_requester: 4,
    reads_as_responder: 4,
};

/// Counts of each fault and each ending, over all seeds.
#[derive(Default)]
struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    fn add(&mut self, fault: &'static str, count: impl Into<u64>) {
        *self.0.entry(fault).or_default() += count.into();
    }

    fn add_fired(&mut self, fired: Fired) {
        self.add("command dropped", fired.dropped);
        self.add("command refused", fired.refused);
        self.add("interrupt lost", fired.lost_interrupts);
        self.add("bytes spoiled", fired.spoiled);
        self.add("word spoiled", fired.spoiled_words);
        self.add("card gone", fired.gone);
    }
}

fn board(dice: &mut Rng, tally: &mut Tally) -> CardBoard {
    let mut board = CardBoard::default();
    if dice.one_in(2) {
        board.device = Card::ConnectX3Pro;
    }
    board.vectors = [128, 3, 2, 1, 0][usize::try_from(dice.below(5)).unwrap()];
    board.wide_entries = dice.one_in(2);
    board.system_eqs = dice.one_in(2);
    board.mad_demux = dice.one_in(2);
    board.blueflame = dice.one_in(2);
    board.empty_limits = dice.below(3);
    if dice.one_in(3) {
        board.command_time = Duration::from_micros(300);
        tally.add("slow firmware", 1_u64);
    }
    if dice.one_in(3) {
        board.away = Duration::from_millis(1700);
        tally.add("late from its reset", 1_u64);
    }
    tally.add("empty limits", board.empty_limits);
    board
}

fn links(dice: &mut Rng) -> FabricConfig {
    let mut rate = |of: u64| {
        if dice.one_in(of) { 0.0 } else { 0.02 }
    };
    let faults = LinkFaults {
        loss: rate(3),
        duplicate: rate(3),
        reorder: rate(3),
        delay: Duration::from_micros(30),
    };
    FabricConfig {
        faults,
        latency: Duration::from_micros(dice.below(4).into()),
        rate: dice.one_in(2).then_some(LinkRate::Qdr),
        seed: dice.next_word(),
        ..FabricConfig::default()
    }
}

/// Faults of one machine that are on from now.
fn switch_on(dice: &mut Rng, faults: &Faults) {
    let sent = u32::try_from(faults.opcodes().len()).unwrap();
    if dice.one_in(3) {
        faults.drop_command(sent + dice.below(120));
    }
    if dice.one_in(3) {
        faults.refuse_command(sent + dice.below(120));
    }
    if dice.one_in(2) {
        faults.lose_interrupts(1 + dice.below(19));
    }
    if dice.one_in(3) {
        faults.spoil_one_in(20 + dice.below(380));
    }
    if dice.one_in(3) {
        faults.spoil_words_one_in(20 + dice.below(380));
    }
}

fn switch_off(faults: &Faults) {
    faults.drop_command(u32::MAX);
    faults.refuse_command(u32::MAX);
    faults.lose_interrupts(0);
    faults.spoil_one_in(0);
    faults.spoil_words_one_in(0);
    faults.set_gone(false);
}

/// A machine, and what is wrong with it.
struct Side {
    machine: Machine,
    faults: Arc<Faults>,
    node: Option<Node<Spoiled>>,
}

impl Side {
    fn new(bed: &Testbed, n: u64, board: CardBoard, seed: u64) -> Self {
        let config = NodeConfig {
            board,
            ..NodeConfig::new(format!("node{n}"), guid(n), 1)
        };
        Self {
            machine: bed.add(config),
            faults: Faults::new(seed),
            node: None,
        }
    }

    /// Starts the card and its service, unless it fails.
    fn start(&mut self, bed: &mut Testbed) -> Result<(), mlx4::Error> {
        let platform = Faulty::new(self.machine.clone(), Arc::clone(&self.faults));
        let device = bed.block_on(Mlx4::start(platform.clone(), Config::default()))?;
        let device = Arc::new(device);
        let (served, clock) = (Arc::downgrade(&device), platform.clone());
        bed.spawn(async move {
            while let Some(device) = served.upgrade() {
                if device.service_once().await.is_err() {
                    return;
                }
                drop(device);
                clock.sleep(SERVICE).await;
            }
        });
        self.node = Some(Node { platform, device });
        Ok(())
    }

    /// Ends the card, well or not, and checks that it is off this machine's memory.
    fn end(&mut self, bed: &mut Testbed, seed: u64) {
        if let Some(node) = self.node.take() {
            let _ = bed.block_on(node.device.stop());
        }
        bed.block_on(self.machine.sleep(SERVICE * 4));
        let left = (self.machine.allocated(), self.machine.violations());
        assert_eq!(
            left,
            (0, 0),
            "seed {seed}: memory that is left, accesses beyond it"
        );
    }
}

async fn active(node: &Node<Spoiled>) -> Result<(), verbs::Error> {
    for _ in 0..500 {
        if node.device.port(1).await?.state == PortState::Active {
            break;
        }
        node.platform.sleep(Duration::from_millis(4)).await;
    }
    Ok(())
}

async fn end(node: &Node<Spoiled>) -> Result<End<Spoiled>, verbs::Error> {
    let config = rc_config(8);
    let mut queues = node.device.create_queues(64, 0).await?;
    match node.device.create_qp(&mut queues, &config).await {
        Ok((slot, qpn)) => Ok(End { queues, slot, qpn }),
        Err(error) => {
            let _ = node.device.destroy_queues(queues).await;
            Err(error)
        }
    }
}

async fn ready(
    node: &Node<Spoiled>,
    own: Qpn,
    peer: &Node<Spoiled>,
    qpn: Qpn,
) -> Result<(), verbs::Error> {
    let path = PathToPeer {
        address: peer.device.port(1).await?.address,
        qpn,
        their_psn: Psn(0xff_fff0),
        our_psn: Psn(0xff_fff0),
        mtu: 1024,
        sl: 0,
    };
    node.device
        .ready_to_receive(own, &path, &PARAMETERS)
        .await?;
    node.device
        .ready_to_send(own, Some(&path), &PARAMETERS)
        .await
}

async fn memory(node: &Node<Spoiled>) -> Result<Piece<Spoiled>, verbs::Error> {
    use hal::DmaBuffer;
    let len = 2 * PAGE_LEN as usize;
    let none = verbs::Error::NoMemory { bytes: len as u64 };
    let buffer = node.platform.alloc(len, 4096).map_err(|_| none)?;
    let domain = verbs::Domain::default();
    let at = buffer.bus_addr().0;
    let region = node.device.register(domain, at, len as u64, ALL).await?;
    Ok(Piece { buffer, region })
}

/// Waits for a completion, for some 50 ms at most.
async fn next(end: &mut End<Spoiled>, clock: &Spoiled) -> Option<Completion> {
    for _ in 0..500 {
        let mut completion = [Completion::EMPTY];
        match end.queues.poll(&mut completion) {
            Ok(1) => return Some(completion[0]),
            Ok(_) => clock.sleep(Duration::from_micros(100)).await,
            Err(_) => return None,
        }
    }
    None
}

/// Two connected ends, with memory.
struct Pair {
    left: End<Spoiled>,
    right: End<Spoiled>,
    from: Piece<Spoiled>,
    into: Piece<Spoiled>,
    /// A page queue of the left side, its lines, and the end that it is connected to.
    pages: Pages<Spoiled>,
    lines: Piece<Spoiled>,
    far: End<Spoiled>,
}

async fn open(a: &Node<Spoiled>, b: &Node<Spoiled>) -> Result<Pair, verbs::Error> {
    active(a).await?;
    active(b).await?;
    let lines = memory(a).await?;
    let config = PagesConfig {
        domain: verbs::Domain::default(),
        port: 1,
        depth: 8,
        lkey: lines.region.lkey,
        vector: 0,
    };
    let (pages, qpn) = a.device.create_pages(&config).await?;
    let pair = Pair {
        left: end(a).await?,
        right: end(b).await?,
        from: memory(a).await?,
        into: memory(b).await?,
        pages,
        lines,
        far: end(b).await?,
    };
    ready(a, qpn, b, pair.far.qpn).await?;
    ready(b, pair.far.qpn, a, qpn).await?;
    ready(a, pair.left.qpn, b, pair.right.qpn).await?;
    ready(b, pair.right.qpn, a, pair.left.qpn).await?;
    Ok(pair)
}

impl Pair {
    /// Posts a WRITE and a SEND; nothing if a queue is full.
    fn post(&mut self, data: &[u8]) {
        self.from.write(data);
        let len = u32::try_from(MESSAGE).unwrap();
        let to = self.into.remote(0);
        let piece = [self.from.sge(0, len)];
        let receive = [self.into.sge(u64::from(len), len)];
        let _ = self.right.queues.post_receive(self.right.slot, 1, &receive);
        let ring = |end: &mut End<Spoiled>, slot: QpSlot, op| {
            let request = request(2, op, Payload::Gather(&piece));
            let _ = end.queues.post_send(slot, &request);
            end.queues.ring(slot);
        };
        let slot = self.left.slot;
        ring(&mut self.left, slot, SendOp::Write { to, imm: None });
        ring(&mut self.left, slot, SendOp::Send { imm: None });
        self.left.queues.arm(false);
        self.right.queues.arm(false);
        let line = self.lines.region.addr;
        let _ = self.pages.post(PageOp::Read, 0, line, to, true);
        self.pages.ring();
    }

    /// Waits for the page, for some 50 ms at most.
    async fn page(&mut self, clock: &Spoiled) -> bool {
        for _ in 0..500 {
            let mut ended = false;
            while self.pages.is_ready() {
                let taken = self.pages.take(&mut |_, _| ended = true);
                if taken.is_err() {
                    return false;
                }
            }
            if ended {
                return true;
            }
            clock.sleep(Duration::from_micros(100)).await;
        }
        false
    }

    /// Takes the completions; says whether all ended well.
    async fn collect(&mut self, a: &Node<Spoiled>, b: &Node<Spoiled>) -> bool {
        let mut good = self.page(&a.platform).await;
        for _ in 0..2 {
            let done = next(&mut self.left, &a.platform).await;
            good &= done.is_some_and(|done| done.status == Status::Success);
        }
        let got = next(&mut self.right, &b.platform).await;
        good & got.is_some_and(|got| got.status == Status::Success)
    }
}

/// Does something to the machines from outside.
fn disturb(bed: &mut Testbed, dice: &mut Rng, sides: &[Side; 2], tally: &mut Tally) {
    let side = &sides[usize::try_from(dice.below(2)).unwrap()];
    let node = side.machine.node();
    match dice.below(12) {
        0 => {
            tally.add("cable pulled", 1_u64);
            bed.with_cluster(|cluster, now| cluster.set_link(node, now, 1, false));
            bed.block_on(side.machine.sleep(Duration::from_millis(3)));
            bed.with_cluster(|cluster, now| cluster.set_link(node, now, 1, true));
        }
        1 => {
            let reports = dice.one_in(2);
            tally.add("firmware died", 1_u64);
            bed.with_cluster(|cluster, now| cluster.kill_firmware(node, now, reports));
        }
        2 => side.faults.set_gone(true),
        3 => bed.read_ahead_always(),
        _ => {}
    }
}

/// The job while everything goes wrong. Says how many rounds ended well.
fn work(bed: &mut Testbed, dice: &mut Rng, sides: &[Side; 2], tally: &mut Tally, seed: u64) {
    let [Some(a), Some(b)] = [&sides[0].node, &sides[1].node] else {
        return;
    };
    let mut pair = match bed.block_on(open(a, b)) {
        Ok(pair) => pair,
        Err(error) => {
            log::info!("seed {seed}: not connected: {error}");
            tally.add("not connected", 1_u64);
            return;
        }
    };
    for round in 0..ROUNDS {
        let data = pattern(MESSAGE, round);
        pair.post(&data);
        disturb(bed, dice, sides, tally);
        let good = bed.block_on(pair.collect(a, b));
        let honest = sides.iter().all(|side| {
            let fired = side.faults.fired();
            (fired.spoiled, fired.spoiled_words) == (0, 0)
        });
        if good && honest {
            tally.add("round that ended well", 1_u64);
            let got = pair.into.bytes(2 * MESSAGE);
            let whole = got[..MESSAGE] == data && got[MESSAGE..] == data;
            assert!(whole, "seed {seed}: other bytes arrived");
        }
        if !good {
            tally.add("round that failed", 1_u64);
            break;
        }
    }
    bed.block_on(async {
        let _ = a.device.deregister(&pair.from.region).await;
        let _ = a.device.destroy_pages(pair.pages).await;
        let _ = a.device.destroy_queues(pair.left.queues).await;
        let _ = b.device.destroy_queues(pair.far.queues).await;
        let _ = b.device.destroy_queues(pair.right.queues).await;
        let _ = b.device.deregister(&pair.into.region).await;
    });
}

fn run(seed: u64, tally: &mut Tally) {
    let mut dice = Rng::new(seed);
    let mut bed = Testbed::new(ClusterConfig {
        fabric: links(&mut dice),
    });
    let mut sides = [0, 1].map(|n| {
        let board = board(&mut dice, tally);
        Side::new(&bed, n, board, seed * 2 + n)
    });
    for side in &mut sides {
        if dice.one_in(4) {
            switch_on(&mut dice, &side.faults);
        }
        if side.start(&mut bed).is_err() {
            tally.add("not started", 1_u64);
        }
    }
    for side in &sides {
        switch_on(&mut dice, &side.faults);
    }
    work(&mut bed, &mut dice, &sides, tally, seed);
    for side in &mut sides {
        side.end(&mut bed, seed);
        let fired = side.faults.fired();
        tally.add_fired(fired);
        switch_off(&side.faults);
        if fired.gone > 0 {
            bed.reset_bus(&side.machine);
            bed.block_on(side.machine.sleep(AWAY));
        }
    }
    for side in &mut sides {
        let started = side.start(&mut bed);
        assert_eq!(started, Ok(()), "seed {seed}: an honest card starts");
    }
    if let [Some(a), Some(b)] = [&sides[0].node, &sides[1].node] {
        bed.block_on(a.active(1));
        bed.block_on(b.active(1));
        bed.block_on(exchange(a, b, 1));
    }
    for side in &mut sides {
        side.end(&mut bed, seed);
    }
    let counts = bed.with_cluster(|cluster, _| cluster.fault_counts());
    tally.add("packet lost", counts.lost);
    tally.add("packet duplicated", counts.duplicated);
    tally.add("packet late", counts.reordered);
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn all_faults_at_once_cost_no_more_than_the_job() {
    log();
    let count = variable("MLX4_SEEDS").unwrap_or(SEEDS);
    let first = variable("MLX4_SEED").unwrap_or(0);
    let mut tally = Tally::default();
    for seed in first..first + count {
        let ended =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed, &mut tally)));
        assert!(ended.is_ok(), "MLX4_SEED={seed} MLX4_SEEDS=1 repeats it");
    }
    for (what, times) in &tally.0 {
        println!("{times:>8} {what}");
    }
    if count >= SEEDS {
        // Every fault, and both ends.
        for (what, times) in tally.0 {
            assert!(
                times * 10 >= count,
                "{what}: {times} times in {count} seeds"
            );
        }
    }
}
