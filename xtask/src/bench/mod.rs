//! `bench`: figures, for people to compare over time. No test fails for being slow; `--compare`
//! fails for counting more.
//!
//! * [`boot`]: a node's start, by stage.
//! * [`hca`]: the modelled adapter under Linux's perftest.
//! * [`rpc`]: a short call, counted. * [`profile`]: calls between two machines, timed.
//! * [`miss`]: a page miss, counted. * [`latency`]: what programs wait
//!   for, counted beside Linux. * [`peer`]: programs in little memory, here and on Linux that
//!   swaps. * [`files`]: files on a disk, timed beside Linux.
//! * [`journal`]: a network that is trained in little memory.
//! * [`output`]: runs' folder, and how figures are given.
//! * [`figures`]: values with names. * [`table`]: how they are shown. * [`record`], [`plot`]: how
//!   they are kept in `docs/bench`.
//! * [`mod@compare`]: what changed since. * [`child`]: runs of other commands.

mod boot;
mod child;
mod compare;
mod figures;
mod files;
mod hca;
mod journal;
mod latency;
mod miss;
mod output;
mod peer;
mod plot;
mod profile;
mod record;
mod rpc;
mod table;

use anyhow::Result;

/// The option of a run whose programs lie in the same places each time, so that its counts do not
/// depend on which sets their pages share.
const FIXED_LAYOUT: &str = "processor:aslr=off";

/// Measures a part of Tessera
#[derive(clap::Args)]
#[command(arg_required_else_help = true, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    /// Measures what has a record in docs/bench and shows what changed; fails if a counted figure
    /// grew beyond the tolerance
    #[arg(long)]
    compare: bool,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(clap::Subcommand)]
enum What {
    Boot(boot::Args),
    Hca(hca::Args),
    Rpc(rpc::Args),
    Miss(miss::Args),
    Peer(peer::Args),
    Journal(journal::Args),
    Latency(latency::Args),
    Files(files::Args),
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        match self.what {
            Some(What::Boot(args)) => args.run(),
            Some(What::Hca(args)) => args.run(),
            Some(What::Rpc(args)) => args.run(),
            Some(What::Miss(args)) => args.run(),
            Some(What::Peer(args)) => args.run(),
            Some(What::Journal(args)) => args.run(),
            Some(What::Latency(args)) => args.run(),
            Some(What::Files(args)) => args.run(),
            None => miss::Args::comparing().run(),
        }
    }
}
