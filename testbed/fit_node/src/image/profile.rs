//! The RPC profile: calls of several sizes by several tasks, each reply checked, each series
//! compared with what the callee counted.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use fit::{Call, PeerId, Piece, Role};
use fit_node::options::Options;
use fit_node::payload::{ECHO, MAX_BULK, TALLY, TestRequest};
use fit_node::tally::{CalleeTally, CallerTally, SERVED_LEN, compare};
use fit_node::times::Times;
use hal::{DmaBuffer, Platform};
use libos::dma::Buffer;
use node::{Core, Error, Node};
use verbs::{Access, Device, Region};

/// Bytes of requests and replies, as LegoOS's journal has them.
const SIZES: [(u32, u32); 4] = [(32, 4), (32, 4096), (4200, 4), (4200, 4096)];
/// Tasks that call.
const CALLERS: [u16; 3] = [1, 2, 4];
/// Calls of each series if the command line names no number.
const CALLS: u32 = 1000;
/// Calls before the first series, so that QEMU has translated what runs.
const WARM: u32 = 200;

/// Bytes of a request that are its body, and the longest reply that comes in its message; what is
/// longer is bulk.
const BODY: usize = 32;
/// Bytes of a task's memory for the bulk of its requests, and of as much for that of its replies.
const BULK: usize = MAX_BULK as usize;
/// A task's memory.
const PLACE: usize = 2 * BULK;

/// Calls of one size by some tasks.
#[derive(Debug, Clone, Copy)]
struct Series {
    peer: PeerId,
    request: u32,
    reply: u32,
    callers: u16,
    calls: u32,
}

/// Runs all series, and tells a line of each.
pub(crate) async fn run(node: &Node, options: &Options) -> Result<(), Error> {
    let peer = node.fit.find(options.to.unwrap_or(Role::Memory)).await?;
    let from = Caller::new(node, peer).await?;
    let calls = options.calls.unwrap_or(CALLS);
    let series = |(request, reply), callers, calls| Series {
        peer,
        request,
        reply,
        callers,
        calls,
    };
    let mut total = measure(&from, &series(SIZES[3], CALLERS[2], WARM), false).await?;
    for sizes in SIZES {
        for callers in CALLERS {
            total += measure(&from, &series(sizes, callers, calls), true).await?;
        }
    }
    // Each series has been compared: any difference would have ended the run.
    libos::report("nothing_lost", format_args!("{total}"));
    Ok(())
}

/// Makes one series and compares what both sides counted; the number of its calls.
async fn measure(from: &Caller, series: &Series, tell: bool) -> Result<u64, Error> {
    let core = &from.core;
    let (ours_before, theirs_before) = (ours(core, series.peer), theirs(core, series.peer).await?);
    let next = Arc::new(AtomicU64::new(0));
    let began = libos::now();
    let tasks: Vec<_> = (0..series.callers)
        .map(|task| libos::spawn(call(from.clone(), task.into(), *series, next.clone())))
        .collect();
    let mut times = Times::default();
    for task in tasks {
        times.append(task.await?);
    }
    let elapsed = libos::now().since(began);
    let ours = ours(core, series.peer).since(&ours_before);
    let served = theirs(core, series.peer).await? - theirs_before;
    let made = CallerTally {
        calls: series.calls.into(),
        checked: times.len() as u64,
        started: ours.started,
        request: series.request.into(),
        reply: series.reply.into(),
        stray: ours.stray,
        late: ours.late,
    };
    compare(&made, &served).map_err(|error| Error::Role(format!("{error}")))?;
    if tell {
        let times = times.summary();
        libos::report(
            "profile",
            format_args!(
                "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
                series.request,
                series.reply,
                series.callers,
                made.calls,
                made.checked,
                times.typical_ns,
                times.average_ns,
                times.p99_ns,
                elapsed.as_nanos(),
                ours.doorbells,
                served.doorbells,
                ours.waits,
                served.waits,
            ),
        );
    }
    Ok(made.calls)
}

/// Resources that all calling tasks share. Each task has its own part of the memory.
#[derive(Clone)]
struct Caller {
    core: Core,
    memory: Arc<Buffer>,
    region: Region,
}

impl Caller {
    async fn new(node: &Node, peer: PeerId) -> Result<Self, Error> {
        let len = PLACE * usize::from(CALLERS[CALLERS.len() - 1]);
        let memory = node.function.alloc(len, 4096);
        let memory = memory.map_err(|error| Error::Role(format!("{error}")))?;
        let access = Access {
            local_write: true,
            remote_read: true,
            remote_write: true,
        };
        let (domain, addr) = (node.fit.domain(peer), memory.bus_addr().0);
        let region = node.card.register(domain, addr, len as u64, access).await?;
        Ok(Self {
            core: node.fit.core(0),
            memory: Arc::new(memory),
            region,
        })
    }

    fn piece(&self, at: usize, len: usize) -> Piece {
        let len = u32::try_from(len).expect("a task's memory");
        Piece::of(&self.region, at as u64, len)
    }
}

/// Makes one task's calls: takes the next number until all are taken.
async fn call(
    from: Caller,
    task: usize,
    series: Series,
    next: Arc<AtomicU64>,
) -> Result<Times, Error> {
    let mut request = vec![0; series.request as usize];
    let mut reply = vec![0; series.reply as usize];
    let (bulk_out, bulk_in) = (task * PLACE, task * PLACE + BULK);
    let (out, into) = (
        request.len().saturating_sub(BODY),
        if reply.len() > BODY { reply.len() } else { 0 },
    );
    let (gather, scatter) = (from.piece(bulk_out, out), from.piece(bulk_in, into));
    let gather = &[gather][..usize::from(out > 0)];
    let scatter = &[scatter][..usize::from(into > 0)];
    let mut times = Times::with_capacity(series.calls as usize);
    loop {
        let number = next.fetch_add(1, Relaxed);
        if number >= series.calls.into() {
            return Ok(times);
        }
        let ask = TestRequest {
            number,
            reply: series.reply,
        };
        ask.write(&mut request);
        let (body, bulk) = request.split_at(request.len() - out);
        from.memory.write(bulk_out, bulk);
        let call = Call::new(ECHO, body).gather(gather).scatter(scatter);
        let began = libos::now();
        let ended = from.core.call(series.peer, call, &mut reply).await?;
        let nanos = libos::now().nanos.saturating_sub(began.nanos);
        let len = if into > 0 {
            let came = (ended.bulk as usize).min(into);
            from.memory.read(bulk_in, &mut reply[..came]);
            came
        } else {
            ended.len
        };
        if !ask.is_answered_by(&reply[..len]) {
            return Err(Error::Role(format!(
                "the reply to call {number} is damaged"
            )));
        }
        times.add(nanos);
    }
}

/// Counters of this side's FIT.
#[derive(Default)]
struct Ours {
    started: u64,
    stray: u64,
    late: u64,
    doorbells: u64,
    waits: u64,
}

impl Ours {
    /// Returns the growth since `earlier`; 0 where the connection has been lost.
    fn since(self, earlier: &Self) -> Self {
        Self {
            started: self.started.saturating_sub(earlier.started),
            stray: self.stray.saturating_sub(earlier.stray),
            late: self.late.saturating_sub(earlier.late),
            doorbells: self.doorbells.saturating_sub(earlier.doorbells),
            waits: self.waits.saturating_sub(earlier.waits),
        }
    }
}

fn ours(core: &Core, peer: PeerId) -> Ours {
    let links = core.link_counters();
    let Some((_, _, link)) = links.iter().rfind(|(of, ..)| *of == peer) else {
        return Ours::default();
    };
    Ours {
        started: link.calls[usize::from(ECHO)],
        stray: link.nr_stray,
        late: link.nr_deadline,
        doorbells: link.nr_doorbells,
        waits: core.counters().nr_interrupt_waits,
    }
}

/// Asks the callee for its tally.
async fn theirs(core: &Core, peer: PeerId) -> Result<CalleeTally, Error> {
    let mut reply = [0; SERVED_LEN];
    let ended = core.call(peer, Call::new(TALLY, &[]), &mut reply).await?;
    CalleeTally::decode(&reply[..ended.len])
        .ok_or_else(|| Error::Role("the callee's tally makes no sense".into()))
}
