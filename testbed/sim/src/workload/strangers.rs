//! Strangers: nodes that must not become members.

use std::sync::Arc;

use fit::PeerSpec;
use verbs::Gid;

use super::{NodeLife, role};
use crate::fault::Impostor;
use crate::rng::Rng;
use crate::rule::Rule;

/// Calls the nodes of the cluster by hand, again and again. Only who holds the key may get through.
pub(super) async fn intrude(node: Arc<NodeLife>) {
    let machine = &node.machine;
    let guise = node.plan.guise(machine.life.node);
    let mut rng = Rng::of(node.plan.seed, machine.life.node as u64 ^ 0x57a6);
    loop {
        machine.pause(rng.between(10_000_000, 500_000_000)).await;
        let victim = rng.index(node.plan.nodes);
        let gid = machine.living(|world| world.nodes[victim].gid());
        let own = machine.living(|world| world.nodes[machine.life.node].gid());
        let Some(gid) = gid.filter(|_| gid != own) else {
            continue;
        };
        let spec = PeerSpec {
            role: role(victim),
            gid,
        };
        let connected = node.fit.connect(spec).await;
        if connected.is_ok() && !matches!(guise, Some(Impostor::Twin(_))) {
            machine.living(|world| {
                let place = machine.life.node;
                world.violate(
                    Rule::Stranger,
                    format_args!("the stranger {place} has connected to node {victim}"),
                );
            });
        }
    }
}

/// Calls ever more nodes that do not exist: a deliberate bug.
pub(super) async fn call_nobody(node: Arc<NodeLife>) {
    for number in 0_u64.. {
        node.machine.pause(2_000_000).await;
        let (fit, gid) = (node.fit.clone(), Gid::new(number, verbs::Guid(1)));
        let spec = PeerSpec { role: role(0), gid };
        node.machine.spawn(async move {
            let _ = fit.connect(spec).await;
        });
    }
}
