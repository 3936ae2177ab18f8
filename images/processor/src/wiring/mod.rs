//! P on the machine: hardware for the cache, calls for M and S, consoles for the program.

mod answers;
mod carrier;
mod cpu;
mod hardware;
mod stdio;
mod streams;
mod thread;
mod top;

use alloc::collections::BTreeMap;
use alloc::format;

use fit::{CompletionSource, Config, Domains, KINDS, PeerId, PeerName, Role};
use hal::Instant;
use libos::{Boot, CommandLine, Exit};
use node::{Core, Error, Fit, Node};
use pcache::{Cache, Chunks, Geometry, Slot};
use processor::cached_files::CachedFiles;
use processor::gather::{Gathered, Gathering};
use processor::mm::layout::Randomize;
use processor::mm::supply::ChunkSupply;
use processor::remote::Remote;
use processor::{Command, Kernel, Peer, Platform, Refusal, Report, Thread};
use raw_cpuid::{CpuId, cpuid};
use spin::Once;

use answers::Answers;
use carrier::FitCarrier;
use hardware::{Hardware, Tables};
use stdio::Machine;
use streams::Channel;
use thread::Context;

/// The cache's size if the command line names none.
const DEFAULT_PCACHE: u64 = 64 << 20;
const DEFAULT_WAYS: u32 = 8;
/// The most chunks that M may lend: 2 TB.
const MAX_CHUNKS: u32 = 1 << 20;
const _: () = assert!(MAX_CHUNKS <= Slot::MAX_CHUNKS);

/// The parts of the machine that the processor's logic uses.
struct Parts {
    cache: Cache<Hardware>,
    supply: ChunkSupply,
    reads_ahead: bool,
    machine: Machine,
    memory: Remote<FitCarrier>,
    files: CachedFiles<Gathering<Remote<FitCarrier>>>,
    kernel: Kernel<Parts>,
    cores: usize,
}

impl processor::Node for Parts {
    type Machine = Hardware;
    type Tables = Tables;
    type Cpu = Context;
    type Platform = Machine;
    type Memory = Remote<FitCarrier>;
    type Files = CachedFiles<Gathering<Remote<FitCarrier>>>;

    fn cache(&self) -> &Cache<Hardware> {
        &self.cache
    }
    fn supply(&self) -> &ChunkSupply {
        &self.supply
    }
    fn new_tables(&self) -> Option<Tables> {
        Tables::create()
    }
    fn poll_pages(&self, now: Instant) -> bool {
        self.cache.machine().look(&self.cache, now);
        true
    }
    fn reads_ahead(&self) -> bool {
        self.reads_ahead
    }
    fn platform(&self) -> &Machine {
        &self.machine
    }
    fn memory(&self) -> &Remote<FitCarrier> {
        &self.memory
    }
    fn files(&self) -> &CachedFiles<Gathering<Remote<FitCarrier>>> {
        &self.files
    }
    fn kernel(&self) -> &Kernel<Self> {
        &self.kernel
    }
    fn cores(&self) -> usize {
        self.cores
    }
    fn spawn(&'static self, thread: Thread<Self>, core: usize) {
        libos::spawn_on(core, thread.run()).detach();
    }
    fn kick(&self, core: usize) {
        // A core with a task to run leaves user mode.
        libos::spawn_on(core, async {}).detach();
    }
    fn fail(&self, error: processor::Error) {
        node::end(Err(failed(error)))
    }
}

/// P's main task.
pub(crate) async fn main(boot: Boot) -> Exit {
    node::finish(run(&boot.command_line).await)
}

async fn run(line: &CommandLine) -> Result<(), Error> {
    let geometry = geometry(line)?;
    let (cache_config, reads_ahead) = cache_config(line)?;
    let randomize = randomize(line)?;
    let machine = Machine::new(line)?;
    let channel = Channel::open(line)?;
    let config = Config {
        message_version: messages::VERSION,
        message_size: messages::MESSAGE_SIZE,
        domains: Domains::PerPeer,
        // Every core runs threads, and each looks for its own pages.
        cores: u16::try_from(libos::cores()).unwrap_or(u16::MAX),
        ..Config::default()
    };
    let node = Node::start(Role::Processor, line, config).await?;
    let fit = node.fit.clone();
    static PARTS: Once<Parts> = Once::new();
    libos::spawn(async move { node::end(drive(&fit, 0, &PARTS).await) }).detach();
    let cores = usize::from(node.fit.cores());
    for core in 1..node.fit.cores() {
        let fit = node.fit.clone();
        libos::spawn_on(core.into(), async move {
            node::end(drive(&fit, core, &PARTS).await)
        })
        .detach();
    }
    for index in 0..node.fit.cores() {
        let core = node.fit.core(index);
        libos::spawn_on(
            index.into(),
            async move { core.serve(&Answers(&PARTS)).await },
        )
        .detach();
    }
    node.join();
    let [memory, storage] = node.find([Role::Memory, Role::Storage]).await?;
    let core = node.fit.core(0);
    let lines = geometry.lines() + cache_config.further_lines();
    // A piggybacked WRITE goes in its READ's doorbell.
    let writes_apart = cache_config.mechanism != pcache::Mechanism::Piggyback;
    let hardware = Hardware::new(lines, &node, memory, writes_apart).await?;
    let files = FitCarrier::with_data(core.clone(), storage, &node).await?;
    let chunks = Chunks::new(MAX_CHUNKS);
    let parts = PARTS.call_once(|| Parts {
        cache: Cache::new(geometry, cache_config, chunks, hardware),
        supply: ChunkSupply::default(),
        reads_ahead,
        machine,
        memory: Remote::new(Peer::Memory, FitCarrier::new(core.clone(), memory)),
        files: CachedFiles::new(
            Gathering::new(Remote::new(Peer::Storage, files), libos::now),
            libos::now,
        ),
        kernel: Kernel::new(hwcap(), line.has("strace"), randomize),
        cores,
    });
    libos::spawn(stdio::receive(parts, channel.reader)).detach();
    libos::spawn(stdio::send(parts, channel.writer)).detach();
    let keeper =
        libos::spawn(async move { node::end(parts.supply.keep(parts).await.map_err(failed)) });
    libos::spawn(async move { parts.kernel.keep_timers(parts).await }).detach();
    libos::spawn(async move { node::end(parts.kernel.keep_files(parts).await.map_err(failed)) })
        .detach();
    libos::spawn(async move { node::end(parts.kernel.keep_written(parts).await.map_err(failed)) })
        .detach();
    log::info!(
        "pcache: {} lines in {} ways",
        geometry.lines(),
        geometry.ways()
    );
    let command = command(line, parts).await?;
    if let Some(millis) = line.parsed("top")? {
        libos::spawn(top::show(parts, core.clone(), millis)).detach();
    }
    libos::line(format_args!("report\tready"));
    let (report, status) = execute(parts, command).await?;
    parts.kernel.end_trace().await;
    parts.kernel.console().finish().await;
    finish(report, status, parts, &core);
    // It may wait for M's reply, which does not come once this node has left.
    keeper.cancel().await;
    node.leave().await;
    Ok(())
}

/// Polls the HCA: FIT's connections, and the way of pages beside them.
async fn drive(fit: &Fit, core: u16, parts: &'static Once<Parts>) -> Result<(), Error> {
    Ok(fit.run_core_beside(core, |_, _| {}, Pages(parts)).await?)
}

/// The way of pages of the core that calls, once there is one.
struct Pages(&'static Once<Parts>);

impl CompletionSource for Pages {
    fn look(&mut self, now: Instant) -> bool {
        // A core does not rest while pages are on their way: most come sooner than an interrupt.
        let look = |parts: &Parts| {
            let machine = parts.cache.machine();
            machine.look(&parts.cache, now) || machine.pending()
        };
        self.0.get().is_some_and(look)
    }

    fn arm(&mut self) {
        if let Some(parts) = self.0.get() {
            parts.cache.machine().arm();
        }
    }
}

/// Runs the program and what it starts; gives what is to be reported, and its exit status.
async fn execute(parts: &'static Parts, command: Command) -> Result<(Report, u8), Error> {
    use processor::Node as _;
    let mut report = Report::default();
    let found = processor::find(parts, command).await;
    let thread = match found {
        Ok(command) => Thread::first(parts, &command).await,
        Err(refusal) => Err(refusal),
    };
    let thread = match thread {
        Ok(thread) => thread,
        Err(Refusal::Failed { path, cause }) if !matches!(cause, processor::Error::Errno(_)) => {
            return Err(Error::Role(format!("{path}: {cause}")));
        }
        Err(refusal) => {
            let text = format!("tessera: {refusal}\n");
            parts.kernel.console().say(text.as_bytes()).await;
            return Ok((report, refusal.status()));
        }
    };
    let started = parts.machine.now();
    let core = thread.core();
    parts.spawn(thread, core);
    let ended = parts.kernel.finish(parts).await.map_err(failed)?;
    report.run_time(parts.machine.now().since(started));
    for (number, count) in parts.kernel.unimplemented() {
        report.unimplemented(number, count);
    }
    report.counter("nr_pgfault", parts.kernel.faults());
    if let processor::Exit::Signal(signal) = ended {
        let (addr, ip) = parts.kernel.fatal();
        report.killed(signal, addr, ip);
    }
    Ok((report, ended.status()))
}

fn failed(error: processor::Error) -> Error {
    Error::Role(format!("{error}"))
}

/// Adds what the cache and FIT counted, and prints all.
fn finish(mut report: Report, status: u8, parts: &Parts, core: &Core) {
    add_figures(&mut report, parts, core);
    for text in report.finish(status) {
        libos::line(format_args!("{text}"));
    }
}

/// Adds what the cache and FIT counted.
fn add_figures(report: &mut Report, parts: &Parts, core: &Core) {
    use processor::Files as _;
    report.cache(&parts.cache);
    let kept = parts.files.gathered().map_or(0, Gathered::kept);
    report.counter("nr_writes_gathered", kept);
    report.counter("nr_kernel_frames_free", libos::frames::free() as u64);
    // A peer with several cores has several connections.
    let mut peers: BTreeMap<PeerId, (PeerName, [u64; KINDS], u64, u64)> = BTreeMap::new();
    for (peer, name, counters) in core.link_counters() {
        let (_, calls, sent, received) = peers.entry(peer).or_insert((name, [0; KINDS], 0, 0));
        calls
            .iter_mut()
            .zip(&counters.calls)
            .for_each(|(sum, count)| *sum += count);
        *sent += counters.nr_bytes_tx;
        *received += counters.nr_bytes_rx;
    }
    for (name, calls, sent, received) in peers.into_values() {
        for (kind, count) in (0..).zip(calls) {
            if let Some(call) = messages::Kind(kind).name().filter(|_| count > 0) {
                report.calls(call, count);
            }
        }
        report.bytes(name.role, sent, received);
    }
    for (point, time) in core.profile().measured() {
        report.time(point.name(), &time);
    }
}

/// Returns what to run: what the command line says after `--`, or else what the host says.
async fn command(line: &CommandLine, parts: &'static Parts) -> Result<Command, Error> {
    let args = line.program().to_vec();
    if let Some(path) = args.first().cloned() {
        let env = line
            .values("env")
            .map(|variable| variable.as_bytes().to_vec());
        return Ok(Command {
            path,
            args,
            env: env.collect(),
            cwd: line.value("cwd").unwrap_or_default().as_bytes().to_vec(),
            user: line.value("user").unwrap_or_default().as_bytes().to_vec(),
            ..Command::default()
        });
    }
    let missing = || Error::Role("nobody said what to run".into());
    let start = stdio::start(parts).await.ok_or_else(missing)?;
    Ok(Command {
        path: start.args.first().cloned().ok_or_else(missing)?,
        args: start.args,
        env: start.env,
        cwd: start.folder,
        user: start.user,
        streams: start.sources,
        ..Command::default()
    })
}

/// Returns CPUID leaf 1, `edx`, for programs to see.
fn hwcap() -> u64 {
    CpuId::new()
        .get_feature_info()
        .map_or(0, |_| u64::from(cpuid!(1).edx))
}

/// Reads how address spaces are laid out.
fn randomize(line: &CommandLine) -> Result<Randomize, Error> {
    let value = line.value("aslr").unwrap_or("on");
    let wrong = |why| Error::Role(format!("aslr={value}: {why}"));
    value.parse().map_err(wrong)
}

fn geometry(line: &CommandLine) -> Result<Geometry, Error> {
    let size = line.size("pcache")?.unwrap_or(DEFAULT_PCACHE);
    let ways = line.parsed("ways")?.unwrap_or(DEFAULT_WAYS);
    Geometry::new(size, ways)
        .map_err(|error| Error::Role(format!("pcache={size} ways={ways}: {error}")))
}

/// Reads how the cache chooses its victims, and whether misses read ahead.
fn cache_config(line: &CommandLine) -> Result<(pcache::Config, bool), Error> {
    let wrong = |option: &str, value: &str, why: &dyn core::fmt::Display| {
        Error::Role(format!("{option}={value}: {why}"))
    };
    let mut config = pcache::Config::default();
    if let Some(value) = line.value("policy") {
        config.policy = value.parse().map_err(|why| wrong("policy", value, &why))?;
    }
    if let Some(value) = line.value("mechanism") {
        config.mechanism = value
            .parse()
            .map_err(|why| wrong("mechanism", value, &why))?;
    }
    if let Some(entries) = line.parsed("victims")? {
        config.victims = entries;
    }
    let reads_ahead = match line.value("prefetch") {
        None | Some("on") => true,
        Some("off") => false,
        Some(value) => return Err(wrong("prefetch", value, &"is neither on nor off")),
    };
    config.cores = u32::try_from(libos::cores()).unwrap_or(1);
    Ok((config, reads_ahead))
}
