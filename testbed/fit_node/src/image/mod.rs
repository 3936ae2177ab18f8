//! The image's tasks. [`member`] answers, with [`echo`], and tells who comes and goes, with
//! [`events`]; [`call`] and [`profile`] call.

mod call;
mod echo;
mod events;
mod member;
mod profile;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::future::pending;

use fit::Config;
use fit_node::options::{Options, Part};
use fit_node::payload::MAX_BULK;
use hal::Duration;
use libos::{Boot, CommandLine, Exit};
use node::{Error, Node};

use call::Callers;
use member::Member;

/// The most other nodes.
const PEERS: u16 = 8;

/// Runs the image: its main task.
pub(crate) async fn main(boot: Boot) -> Exit {
    node::finish(run(&boot.command_line).await)
}

async fn run(line: &CommandLine) -> Result<(), Error> {
    let options = Options::read(line)?;
    let config = Config {
        peers: PEERS,
        bulk_size: MAX_BULK,
        timeout: Duration::from_millis(options.timeout_ms),
        ..Config::default()
    };
    let node = Node::start(options.role, line, config).await?;
    let core = node.fit.core(0);
    let callers = Arc::new(Callers::new(core.clone(), &options));
    let member: &'static Member = Box::leak(Box::new(Member::new(core, callers.clone())));
    match options.part {
        Part::Watch => only_watch(&node, member),
        Part::Serve | Part::Call | Part::Profile => node.serve(member),
    }
    libos::spawn(events::tell_view(node.fit.clone())).detach();
    node.join();
    match options.part {
        Part::Serve | Part::Watch => pending().await,
        Part::Call => callers.done().await,
        Part::Profile => profile::run(&node, &options).await?,
    }
    node.leave().await;
    Ok(())
}

/// Polls, and tells who comes and goes, but takes no request.
fn only_watch(node: &Node, member: &'static Member) {
    let (polled, watched) = (node.fit.clone(), node.fit.clone());
    libos::spawn(async move { node::end(polled.run_core(0).await.map_err(Error::from)) }).detach();
    libos::spawn(async move { watched.watch(member).await }).detach();
}

/// Microseconds since this node started.
fn micros() -> u64 {
    libos::now().nanos / 1000
}
