//! Figures of counted runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Result, ensure};

use super::counts::{CostlyInstruction, Counts, KernelEntry, Phase};
use super::groups::{self, Group};
use super::model::{self, Trace};
use super::runs::{Bed, Phased, Run, Settings};
use super::split::{PerOperation, Sample, Split, spread};
use super::symbols::{self, Symbols};
use crate::bench::FIXED_LAYOUT;
use crate::bench::figures::{Figure, Kind};
use crate::tools::step;

/// The paces of runs, with the microseconds for which P stops after a store to the adapter. A
/// transfer takes some 30 µs on a quiet machine.
const PACES: [(&str, u64); 3] = [("as it is", 0), ("held", 150), ("held for long", 600)];
/// Parts of the program that run at each pace, with their arguments.
const PROGRAMS: [(&str, &[&str]); 3] = [
    ("touch", &["touch", "512", "4096", "1", "1"]),
    ("calls", &["calls", "1000"]),
    ("cow", &["cow", "512"]),
];
const OPTIONS: &[&str] = &["--pcache", "4M", "--boot", FIXED_LAYOUT];
/// Of a cache of one set of 64 lines, random pages of 56 to 76, of which many have just been chosen
/// to leave.
const AGAIN: &[&str] = &["again", "56", "76", "40"];
const AGAIN_OPTIONS: &[&str] = &["--pcache", "256K", "--ways", "64", "--boot", FIXED_LAYOUT];
/// Operations that wait in several places, so that timing changes their path.
const ROUGH: [&str; 2] = ["zero-fill-dirty", "mmap-munmap"];
/// The name of the hit on a page that is on its way out.
pub(super) const WRITE_BACK_HIT: &str = "write-back hit";
/// Faults a page of a sequential scan below which P has prefetched.
const PREFETCHED: f64 = 0.95;

/// Frames with their groups and instructions.
pub(super) type Frames = Vec<(String, Group, f64)>;

/// An operation, counted.
pub(super) struct Case {
    /// Its name in tables and records.
    pub(super) name: String,
    /// Instructions by group.
    pub(super) groups: BTreeMap<Group, f64>,
    /// Instructions by the frame that decided the group, the most first.
    pub(super) frames: Frames,
    /// All figures.
    pub(super) figures: Vec<Figure>,
}

/// All that was measured.
#[derive(Default)]
pub(super) struct Measured {
    /// Operations in the order in which the program does them.
    pub(super) cases: Vec<Case>,
    /// The adapters' events for a clean miss and for one with dirty eviction.
    pub(super) model: Option<[Trace; 2]>,
    /// Operations that could not be measured, with the reason.
    pub(super) notes: Vec<String>,
}

impl Measured {
    /// Returns all figures, the model's after the instructions.
    pub(super) fn figures(&self) -> Vec<Figure> {
        let counted = self.cases.iter().flat_map(|case| case.figures.clone());
        let model = self.model.iter().flat_map(|[clean, dirty]| {
            [("clean", clean), ("dirty", dirty)]
                .into_iter()
                .flat_map(|(case, trace)| model_figures(case, trace))
        });
        counted.chain(model).collect()
    }
}

/// Places in P's code that the counting needs.
#[derive(Default)]
pub(super) struct Places {
    /// Beginnings of looks for completions.
    look: Vec<u64>,
    /// Addresses that follow a completion.
    pub(super) seen: Vec<u64>,
}

/// Finds the places among the code that a few misses execute.
pub(super) fn places(bed: &Bed<'_>, symbols: &Symbols) -> Result<Places> {
    let settings = Settings {
        options: OPTIONS,
        hold_us: 0,
    };
    let run = step("Finding places in P's code", || {
        bed.count("places", settings, &["touch", "512", "2048", "1", "0"])
    })?;
    let executed = run
        .counts
        .executed
        .values()
        .flat_map(|counts| counts.keys().copied());
    let chains = symbols.chains(executed, bed.folder)?;
    let find = |patterns| symbols::first_instructions(&chains, patterns);
    Ok(Places {
        look: find(groups::LOOK),
        seen: find(groups::SEEN),
    })
}

/// Measures everything, each operation `runs` times at each pace.
pub(super) fn measure(
    bed: &Bed<'_>,
    symbols: &Symbols,
    places: &Places,
    runs: usize,
) -> Result<Measured> {
    let mut measured = Measured::default();
    let stale = |what| {
        format!("{what} in xtask/src/bench/miss/groups.rs fits no code that a miss executes")
    };
    if places.look.is_empty() {
        measured.notes.push(
            stale("LOOK")
                + ": looks are executions of the instruction that waiting repeats most often",
        );
    }
    if places.seen.is_empty() {
        measured
            .notes
            .push(stale("SEEN") + ": what follows a completion is counted as behind the transfer");
    }
    for (name, args) in PROGRAMS {
        let runs = repeat(bed, name, args, runs)?;
        let said = &runs[0][0].said;
        measured.notes.extend(skipped(&said.skipped));
        for phase in &said.phases {
            if phase.name != "hit" {
                measured
                    .cases
                    .push(case(phase, &runs, &places.look, symbols, bed.folder)?);
            }
        }
    }
    prefetch(&mut measured);
    measured.cases.push(write_back_hit(bed, runs)?);
    measured.model = Some(step("Tracing the adapters", || model::measure(bed))?);
    Ok(measured)
}

fn skipped(parts: &[(String, String)]) -> impl Iterator<Item = String> + '_ {
    parts
        .iter()
        .map(|(part, reason)| format!("{part}: left out, for P does not offer it yet ({reason})"))
}

/// Runs a program at each pace in turn, several times. One that skips all it should do runs once.
fn repeat(bed: &Bed<'_>, name: &str, args: &[&str], times: usize) -> Result<Vec<[Run; 3]>> {
    let mut all = Vec::new();
    for index in 0..times {
        let run = |pace: usize| {
            let (how, hold_us) = PACES[pace];
            step(
                &format!("Counting {name}, {how}, {} of {times}", index + 1),
                || {
                    let settings = Settings {
                        options: OPTIONS,
                        hold_us,
                    };
                    bed.count(&format!("{name}-{hold_us}-{index}"), settings, args)
                },
            )
        };
        let first = run(0)?;
        if first.said.phases.is_empty() {
            all.push([first, Run::default(), Run::default()]);
            break;
        }
        all.push([first, run(1)?, run(2)?]);
    }
    Ok(all)
}

/// Returns a phase of a run for each operation, its looks not yet counted.
fn sample(run: &Run, phase: Phase) -> Sample {
    let said = run.said.phases.iter().find(|said| said.number == phase);
    let (operations, nanos) = said.map_or((1.0, 0.0), |said| {
        (said.operations as f64, said.nanos as f64)
    });
    let executed = run.counts.executed.get(&phase);
    let counts: PerOperation = executed
        .into_iter()
        .flatten()
        .map(|(&address, &count)| (address, count as f64 / operations))
        .collect();
    let stage = |at: usize| {
        run.counts
            .excursions(phase)
            .map(|one| one.stages[at])
            .sum::<u64>()
    };
    Sample {
        looks: 0.0,
        counts,
        time_us: nanos / 1000.0 / operations,
        stages: [0, 1, 2].map(|at| stage(at) as f64 / operations),
    }
}

/// Counts looks by where they begin; without that, by the instruction that runs most often more as
/// it is than held, for waiting is what they differ in.
fn with_looks(mut samples: Vec<[Sample; 3]>, look: &[u64]) -> Vec<[Sample; 3]> {
    let waiting = |address: u64| {
        let difference = |[free, held, _]: &[Sample; 3]| free.count(address) - held.count(address);
        samples.iter().map(difference).sum::<f64>()
    };
    let places = if look.is_empty() {
        let all = samples
            .iter()
            .flat_map(|[free, ..]| free.counts.keys().copied());
        let most = all.max_by(|&a, &b| waiting(a).total_cmp(&waiting(b)));
        most.filter(|&address| waiting(address) > 0.0)
            .into_iter()
            .collect()
    } else {
        look.to_vec()
    };
    for sample in samples.as_flattened_mut() {
        sample.looks = places.iter().map(|&address| sample.count(address)).sum();
    }
    samples
}

/// Makes a phase's figures of repeated runs.
fn case(
    phase: &Phased,
    runs: &[[Run; 3]],
    look: &[u64],
    symbols: &Symbols,
    folder: &Path,
) -> Result<Case> {
    ensure!(phase.operations > 0, "the phase {} did nothing", phase.name);
    let number = phase.number;
    // Of the held runs, where a completion is there at once.
    let held: Vec<&Counts> = runs.iter().map(|[_, held, _]| &held.counts).collect();
    let all = held.len() as f64 * phase.operations as f64;
    let counted = |count: &dyn Fn(&Counts) -> u64| {
        held.iter().map(|counts| count(counts)).sum::<u64>() as f64 / all
    };
    let sum = |wanted: fn(&KernelEntry) -> u64| {
        counted(&|counts: &Counts| counts.excursions(number).map(wanted).sum())
    };
    let waits = sum(|one| if one.stores > 0 { one.count } else { 0 });
    let samples = runs
        .iter()
        .map(|paces| [0, 1, 2].map(|pace| sample(&paces[pace], number)))
        .collect();
    let samples = with_looks(samples, look);
    // Without their place looks have another unit. Where P is held, those that find are all there
    // are.
    let fewest = samples
        .as_flattened()
        .iter()
        .map(|sample| sample.looks)
        .fold(f64::MAX, f64::min);
    let finds = if look.is_empty() { fewest } else { waits };
    let split = Split::of(samples.as_flattened(), finds);
    let totals: Vec<f64> = samples
        .iter()
        .map(|samples| Split::of(samples, finds).total())
        .collect();
    let looks = samples.iter().map(|[free, ..]| free.looks).sum::<f64>() / samples.len() as f64;
    let name = phase.name.replace('_', "-");
    let (groups, frames) = grouped(&split.work, symbols, folder)?;
    let counted_kind = if ROUGH.contains(&&name[..]) {
        Kind::Rough
    } else {
        Kind::Counted
    };
    let mut total = Figure::new(&name, "instructions", split.total(), counted_kind);
    total.spread = (runs.len() > 1).then(|| spread(&totals));
    let mut figures = vec![total];
    let mut add =
        |what: &str, value: f64, kind| figures.push(Figure::new(&name, what, value, kind));
    for group in Group::ALL {
        add(
            group.name(),
            groups.get(&group).copied().unwrap_or(0.0),
            Kind::Part,
        );
    }
    let doorbells = counted(&|counts| counts.adapter(number, true));
    // A system call may wait several times: it has no such stages.
    if waits > 0.5 && sum(|one| one.count) < 1.5 {
        // Of two completions either may be the later one.
        let kind = if doorbells > 1.5 {
            Kind::Rough
        } else {
            counted_kind
        };
        add("trap to doorbell", split.stages[0], kind);
        add("behind the transfer", split.stages[1], Kind::Part);
        add("completion to return", split.stages[2], kind);
    }
    if let Some(a_look) = split.a_look {
        add("a look that finds nothing", a_look, counted_kind);
        add("looks", looks, Kind::Timed);
        add("waiting", a_look * (looks - finds), Kind::Timed);
    }
    add("background, a ms", split.background, Kind::Timed);
    add("traps", sum(|one| one.count), counted_kind);
    add("doorbells", doorbells, counted_kind);
    add(
        "loads from the adapter",
        counted(&|counts| counts.adapter(number, false)),
        counted_kind,
    );
    for (costly, what) in CostlyInstruction::ALL {
        let is_it = |address: &u64| {
            held[0]
                .code
                .get(address)
                .and_then(|code| CostlyInstruction::of(code))
                == Some(costly)
        };
        let of_it = split.work.iter().filter(|(address, _)| is_it(address));
        add(what, of_it.map(|(_, count)| count).sum(), counted_kind);
    }
    Ok(Case {
        name,
        groups,
        frames,
        figures,
    })
}

/// Sums instructions by group and by the frame that decided it.
fn grouped(
    work: &PerOperation,
    symbols: &Symbols,
    folder: &Path,
) -> Result<(BTreeMap<Group, f64>, Frames)> {
    let chains = symbols.chains(work.keys().copied(), folder)?;
    let (mut groups, mut frames) = (BTreeMap::new(), BTreeMap::<(String, Group), f64>::new());
    for (address, count) in work {
        let unknown = [format!("?? {address:#x}")];
        let chain = chains.get(address).map_or(&unknown[..], |chain| &chain[..]);
        let (group, frame) = groups::group_of(chain);
        *groups.entry(group).or_default() += count;
        *frames.entry((frame.to_owned(), group)).or_default() += count;
    }
    let mut frames: Frames = frames
        .into_iter()
        .map(|((frame, group), count)| (frame, group, count))
        .collect();
    frames.sort_by(|a, b| b.2.total_cmp(&a.2));
    Ok((groups, frames))
}

/// Counts faults that ring no doorbell, among accesses to few more pages than the cache holds:
/// their pages were on the way out.
///
/// They can't be held: what is to be met is a write-back on its way.
fn write_back_hit(bed: &Bed<'_>, runs: usize) -> Result<Case> {
    let (mut totals, mut hits) = (Vec::new(), 0);
    for index in 0..runs {
        let run = step(
            &format!("Counting write-back hits, {} of {runs}", index + 1),
            || {
                let settings = Settings {
                    options: AGAIN_OPTIONS,
                    hold_us: 0,
                };
                bed.count(&format!("again{index}"), settings, AGAIN)
            },
        )?;
        let number = run.said.phases.first().map_or(0, |phase| phase.number);
        let mut entries = BTreeMap::<u64, u64>::new();
        for one in run.counts.excursions(number) {
            *entries.entry(one.entry).or_default() += one.count;
        }
        let fault = entries
            .iter()
            .max_by_key(|(_, count)| **count)
            .map(|(&entry, _)| entry);
        let of_hits = run
            .counts
            .excursions(number)
            .filter(|one| one.stores == 0 && Some(one.entry) == fault);
        let (count, instructions) = of_hits.fold((0, 0), |(count, sum), one| {
            (count + one.count, sum + one.instructions())
        });
        hits += count;
        if count > 0 {
            totals.push(instructions as f64 / count as f64);
        }
    }
    let mut figures = Vec::new();
    if !totals.is_empty() {
        let mean = totals.iter().sum::<f64>() / totals.len() as f64;
        let mut total = Figure::new(WRITE_BACK_HIT, "instructions", mean, Kind::Counted);
        total.spread = (totals.len() > 1).then(|| spread(&totals));
        figures.push(total);
    }
    figures.push(Figure::new(
        WRITE_BACK_HIT,
        "hits in a run",
        hits as f64 / runs as f64,
        Kind::Timed,
    ));
    Ok(Case {
        name: WRITE_BACK_HIT.into(),
        groups: BTreeMap::new(),
        frames: Vec::new(),
        figures,
    })
}

/// Notes whether P prefetched in the sequential scan.
fn prefetch(measured: &mut Measured) {
    let traps = measured
        .cases
        .iter()
        .filter(|case| case.name == "sequential")
        .find_map(|case| {
            case.figures
                .iter()
                .find(|figure| figure.what == "traps")
                .map(|figure| figure.value)
        });
    if traps.is_none_or(|traps| traps > PREFETCHED) {
        measured
            .notes
            .push("prefetch hit: left out, for P faults on each page of a sequential scan".into());
    }
}

/// Returns the figures of the trace of a node's adapter.
fn model_figures(case: &str, trace: &Trace) -> Vec<Figure> {
    let figure = |what: &str, value, kind| Figure::new(case, what, value, kind);
    let of = |kind: &str| model::sum(trace, "processor", kind);
    let theirs = |kind: &str| model::sum(trace, "memory", kind).count;
    vec![
        figure("pages in", of("write Payload").count, Kind::Counted),
        figure("pages out", of("read Payload").count, Kind::Counted),
        figure(
            "doorbells for sends",
            of("doorbell send").count,
            Kind::Counted,
        ),
        figure("PCIe reads", of("read").count, Kind::Part),
        figure("PCIe bytes read", of("read").bytes, Kind::Part),
        figure("PCIe writes", of("write").count, Kind::Part),
        figure("PCIe bytes written", of("write").bytes, Kind::Part),
        figure("interrupts", of("interrupt").count, Kind::Timed),
        figure(
            "M's doorbells for sends",
            theirs("doorbell send"),
            Kind::Counted,
        ),
        figure("M's interrupts", theirs("interrupt"), Kind::Counted),
    ]
}

/// Returns the names of all figures of the cases, each once, in the order of their first
/// appearance.
pub(super) fn names(cases: &[Case]) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    let all = cases
        .iter()
        .flat_map(|case| &case.figures)
        .map(|figure| &figure.what[..]);
    all.filter(|name| seen.insert(*name)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::model::Events;
    use super::*;
    use crate::bench::figures::find;

    #[test]
    fn the_models_figures_are_sums() {
        let key = |node: &str, kind: &str| (node.to_owned(), kind.to_owned());
        let events = |count, bytes| Events { count, bytes };
        let trace: Trace = [
            (key("processor", "write Payload"), events(1.0, 4096.0)),
            (key("processor", "write Cqe"), events(2.0, 65.0)),
            (key("processor", "doorbell send"), events(1.0, 0.0)),
            (key("memory", "read Payload"), events(1.0, 4096.0)),
        ]
        .into();
        let figures = model_figures("clean", &trace);
        let value = |what| find(&figures, "clean", what).map(|figure| figure.value);
        assert_eq!(value("pages in"), Some(1.0));
        assert_eq!(value("PCIe bytes written"), Some(4161.0));
        assert_eq!(value("M's interrupts"), Some(0.0));
    }

    #[test]
    fn without_a_place_the_hottest_instruction_of_waiting_counts_looks() {
        let sample = |looks: f64| Sample {
            counts: [(1, looks), (2, 3.0 * looks), (3, 500.0)].into(),
            ..Sample::default()
        };
        let samples = || vec![[sample(8.0), sample(1.0), sample(1.0)]];
        assert_eq!(with_looks(samples(), &[1])[0][0].looks, 8.0);
        assert_eq!(with_looks(samples(), &[])[0][0].looks, 24.0);
        let still = vec![[sample(1.0), sample(1.0), sample(1.0)]];
        assert_eq!(with_looks(still, &[])[0][0].looks, 0.0);
    }

    #[test]
    fn names_appear_once() {
        let case = |whats: &[&str]| Case {
            name: "x".into(),
            groups: BTreeMap::new(),
            frames: Vec::new(),
            figures: whats
                .iter()
                .map(|what| Figure::new("x", what, 1.0, Kind::Part))
                .collect(),
        };
        assert_eq!(
            names(&[case(&["a", "b"]), case(&["b", "c"])]),
            ["a", "b", "c"]
        );
    }
}
