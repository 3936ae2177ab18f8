//! Commands for users and developers of Tessera: `cargo xtask COMMAND`.
//!
//! Each command is one file. The crate depends on no crate of the kernel except `ksyms`, the format
//! of an image's symbol table, and on the list in `mutants`; it runs programs (cargo, apt-get,
//! QEMU) to do its work.
//!
//! * [`run`]: starts a cluster and runs a program on it.
//! * [`linux`]: starts Linux guests on a modelled fabric.
//! * [`nodes`]: starts nodes of FIT, and kills, stops and unplugs them on request.
//! * [`machines`]: boots an image on machines of many kinds.
//! * [`build_image`]: builds the unikernels.
//! * [`pxe`]: makes the files of a boot server for a rack.
//! * [`passthrough`]: runs a role in a machine that has a card of this host's.
//! * [`streams`]: is the other end of a serial line that has a program's streams.
//! * [`mod@test`]: runs every check and test.
//! * [`mod@bench`]: runs the benchmarks.
//! * [`sim`]: simulates clusters of FIT, each run from a seed.
//! * [`mod@fuzz`]: fuzzes every parser of untrusted input.
//! * [`mod@mutants`]: breaks the product on purpose, and sees that tests find each break.
//! * [`interleave`]: model-checks shared state under loom and shuttle.
//! * [`conformance`]: runs foreign test suites and compares with Linux.
//! * [`card_report`]: collects what a log says of a card.
//! * [`doctor`]: lists the required programs that are present or missing.
//! * [`lint`]: checks the house rules that no compiler checks.
//! * [`test_programs`]: gets and builds the programs that the tests run on a cluster.
//!
//! Beside the commands: [`bed`] runs VMs on a modelled fabric, [`debian`] fetches Debian packages
//! without installing them, [`qemu`] finds a QEMU, [`project`] knows the source tree and calls
//! cargo, [`tools`] finds programs and reports steps.
#![forbid(unsafe_code)]

mod bed;
mod bench;
mod build_image;
mod card_report;
mod conformance;
mod debian;
mod doctor;
#[cfg(test)]
mod fakes;
mod fuzz;
mod grub;
mod interleave;
mod ipxe;
mod lint;
mod linux;
mod machines;
mod mutants;
mod nodes;
mod passthrough;
mod project;
mod pxe;
mod qemu;
mod run;
mod sim;
mod streams;
mod test;
mod test_programs;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, runs and tests Tessera
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(Box<run::Args>),
    Linux(linux::Args),
    Nodes(nodes::Args),
    Machines(machines::Args),
    BuildImage(build_image::Args),
    Pxe(pxe::Args),
    Passthrough(passthrough::Args),
    Streams(streams::Args),
    Conformance(conformance::Args),
    Test(test::Args),
    Bench(bench::Args),
    Sim(sim::Args),
    Fuzz(fuzz::Args),
    Interleave(interleave::Args),
    Mutants(mutants::Args),
    CardReport(card_report::Args),
    Doctor(doctor::Args),
    Lint(lint::Args),
    TestPrograms(test_programs::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Run(args) => return run::main(*args),
        Command::Linux(args) => return linux::main(args),
        Command::Nodes(args) => return nodes::main(args),
        Command::Streams(args) => return streams::main(&args),
        Command::Machines(args) => args.run(),
        Command::BuildImage(args) => args.run(),
        Command::Pxe(args) => args.run(),
        Command::Passthrough(args) => args.run(),
        Command::Conformance(args) => args.run(),
        Command::Test(args) => args.run(),
        Command::Bench(args) => args.run(),
        Command::Sim(args) => args.run(),
        Command::Fuzz(args) => args.run(),
        Command::Interleave(args) => args.run(),
        Command::Mutants(args) => args.run(),
        Command::CardReport(args) => args.run(),
        Command::Doctor(args) => args.run(),
        Command::Lint(args) => args.run(),
        Command::TestPrograms(args) => args.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
