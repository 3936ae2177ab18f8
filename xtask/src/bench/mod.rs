//! `bench`: figures, for people to compare over time; nothing fails for being slow.
//!
//! * [`hca`]: the modelled adapter under Linux's perftest.
//! * [`rpc`]: a short call, counted. * [`profile`]: calls between two machines, timed. * [`table`]: how figures are shown.

mod hca;
mod profile;
mod rpc;
mod table;

use anyhow::Result;

/// Measures a part of Tessera
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Hca(hca::Args),
    Rpc(rpc::Args),
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        match self.what {
            What::Hca(args) => args.run(),
            What::Rpc(args) => args.run(),
        }
    }
}
