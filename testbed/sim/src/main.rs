//! Runs simulations: many seeds, or one with its trace. `cargo xtask sim` builds and starts it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use sim::{Detail, Outcome, Plan, Removals, Sabotage, run, shrink};

/// Runs whole clusters of FIT in virtual time, each from a seed
#[derive(Parser, Clone)]
#[command(name = "cargo xtask sim", bin_name = "cargo xtask sim")]
struct Args {
    /// Number of seeds to run
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Runs this seed alone and prints what happened
    #[arg(long)]
    seed: Option<u64>,
    /// Nodes, 2 to 64; otherwise each seed chooses
    #[arg(long)]
    nodes: Option<usize>,
    /// Goes on with further seeds until this many minutes are over
    #[arg(long)]
    minutes: Option<f64>,
    /// Takes away what the failing seed does not need
    #[arg(long, requires = "seed")]
    shrink: bool,
    /// Prints packets as well
    #[arg(long, requires = "seed")]
    packets: bool,
    /// Leaves out a fault of the plan, by its number
    #[arg(long, value_name = "N")]
    without_fault: Vec<usize>,
    /// Leaves out a kind of small fault, by its name
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
    /// Operations of each node with each peer
    #[arg(long)]
    operations: Option<u32>,
    /// Lets every clock run alike
    #[arg(long)]
    no_skew: bool,
    /// Builds a bug into the simulated hardware, to see that it is found
    #[arg(long)]
    sabotage: Option<Sabotage>,
}

impl Args {
    fn plan(&self, seed: u64) -> Plan {
        Plan {
            sabotage: self.sabotage,
            ..Plan::new(seed, self.nodes)
        }
    }

    fn cuts(&self) -> Removals {
        Removals {
            faults: self.without_fault.clone(),
            rates: self.without.clone(),
            operations: self.operations,
            no_skew: self.no_skew,
        }
    }

    /// Returns the command that repeats the run.
    fn command(&self, seed: u64, cuts: &Removals) -> String {
        let mut words = vec![format!("cargo xtask sim --seed {seed}")];
        words.extend(self.nodes.map(|nodes| format!("--nodes {nodes}")));
        words.extend(
            cuts.faults
                .iter()
                .map(|fault| format!("--without-fault {fault}")),
        );
        words.extend(cuts.rates.iter().map(|name| format!("--without {name}")));
        words.extend(
            cuts.operations
                .map(|operations| format!("--operations {operations}")),
        );
        words.extend(cuts.no_skew.then(|| "--no-skew".to_owned()));
        if let Some(sabotage) = self.sabotage {
            let name = clap::ValueEnum::to_possible_value(&sabotage).expect("each has a name");
            words.push(format!("--sabotage {}", name.get_name()));
        }
        words.join(" ")
    }
}

fn main() -> ExitCode {
    // A panic is a finding, told with its seed; the default message would only disturb.
    std::panic::set_hook(Box::new(|_| {}));
    let args = Args::parse();
    let held = match args.seed {
        Some(seed) => one(&args, seed),
        None => many(&args),
    };
    if held {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs one seed and prints its trace.
fn one(args: &Args, seed: u64) -> bool {
    let plan = args.plan(seed);
    let mut cuts = args.cuts();
    if args.shrink {
        let Some(violation) = run(&cuts.apply(&plan), Detail::None).violation else {
            println!("seed {seed} holds: there is nothing to shrink");
            return true;
        };
        println!("{violation}");
        cuts = shrink(&plan, violation.rule, cuts, |cuts| {
            println!("still broken: {}", args.command(seed, cuts));
        });
    }
    let plan = cuts.apply(&plan);
    println!("{plan:#?}");
    let detail = if args.packets {
        Detail::All
    } else {
        Detail::Events
    };
    let outcome = run(&plan, detail);
    for line in &outcome.lines {
        println!("{line}");
    }
    println!("trace {:016x}, {} events", outcome.hash, outcome.events);
    match &outcome.violation {
        Some(violation) => println!("{violation}\nagain: {}", args.command(seed, &cuts)),
        None => println!("seed {seed} holds"),
    }
    outcome.violation.is_none()
}

/// Sum of the outcomes of many runs.
#[derive(Default)]
struct Sum {
    seeds: u64,
    events: u64,
    time: u64,
    ended: u64,
    failed: u64,
    /// The longest that views took to agree after the last fault, and the seed.
    settled: (u64, u64),
    faults: BTreeMap<&'static str, u64>,
    broken: Vec<(u64, String)>,
}

impl Sum {
    fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.seeds += 1;
        self.events += outcome.events;
        self.time += outcome.time;
        self.ended += outcome.stats.ended;
        self.failed += outcome.stats.failed;
        self.settled = self.settled.max((outcome.stats.settled, seed));
        for (kind, count) in &outcome.stats.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        if let Some(violation) = &outcome.violation {
            self.broken.push((seed, violation.to_string()));
        }
    }
}

/// Runs many seeds on all cores.
fn many(args: &Args) -> bool {
    let began = Instant::now();
    let limit = args
        .minutes
        .map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let next = AtomicU64::new(args.first);
    let sum = Mutex::new(Sum::default());
    let finished = AtomicBool::new(false);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let runners: Vec<_> = (0..workers)
            .map(|_| scope.spawn(|| runner(args, began, limit, &next, &sum)))
            .collect();
        scope.spawn(|| progress(began, &finished, &sum));
        for runner in runners {
            let _ = runner.join();
        }
        finished.store(true, Ordering::Release);
    });
    let sum = sum
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    report(args, &sum, began.elapsed())
}

fn runner(
    args: &Args,
    began: Instant,
    limit: Option<Duration>,
    next: &AtomicU64,
    sum: &Mutex<Sum>,
) {
    loop {
        let seed = next.fetch_add(1, Ordering::AcqRel);
        let over = match limit {
            Some(limit) => began.elapsed() >= limit,
            None => seed >= args.first + args.seeds,
        };
        if over {
            return;
        }
        let outcome = run(&args.cuts().apply(&args.plan(seed)), Detail::None);
        if let Some(violation) = &outcome.violation {
            println!("seed {seed}: {violation}");
        }
        sum.lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .add(seed, &outcome);
    }
}

fn progress(began: Instant, finished: &AtomicBool, sum: &Mutex<Sum>) {
    let mut told = 0;
    while !finished.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(200));
        let seconds = began.elapsed().as_secs();
        if seconds >= told + 10 {
            told = seconds;
            let sum = sum
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            println!(
                "{seconds} s: {} seeds, {} broken, {} events",
                sum.seeds,
                sum.broken.len(),
                sum.events
            );
        }
    }
}

fn report(args: &Args, sum: &Sum, took: Duration) -> bool {
    let seconds = took.as_secs_f64();
    println!(
        "{} seeds, {} events, {:.0} events a second, {} s of virtual time in {seconds:.0} s",
        sum.seeds,
        sum.events,
        sum.events as f64 / seconds,
        sum.time / 1_000_000_000
    );
    println!(
        "{} operations ended well, {} with an error",
        sum.ended, sum.failed
    );
    let (settled, seed) = sum.settled;
    println!(
        "all was well at most {:.1} s after the last fault (seed {seed})",
        settled as f64 / 1e9
    );
    for (kind, count) in &sum.faults {
        println!("{count:>10}  {kind}");
    }
    for (seed, violation) in &sum.broken {
        println!(
            "seed {seed}: {violation}\n  again: {}",
            args.command(*seed, &args.cuts())
        );
    }
    println!("{} of {} seeds broken", sum.broken.len(), sum.seeds);
    sum.broken.is_empty()
}
