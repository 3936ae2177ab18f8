//! Reports of members that join and are lost, a line each; see `docs/user/nodes.md`.

use fit::{LostCause, Member};
use hal::Duration;
use node::Fit;
use verbs::Gid;

use super::micros;

/// Poll interval of the view.
const LOOK: Duration = Duration::from_millis(20);

/// Tells of a member that joins.
pub(crate) fn tell_joined(member: &Member) {
    let (at, name, life) = (micros(), member.name, member.incarnation);
    libos::report("joined", format_args!("{at}\t{name}\t{life}"));
}

/// Tells of a member that is lost.
pub(crate) fn tell_lost(member: &Member, cause: Option<LostCause>) {
    let (at, name, life) = (micros(), member.name, member.incarnation);
    match cause {
        Some(cause) => libos::report("lost", format_args!("{at}\t{name}\t{life}\t{cause}")),
        None => libos::report("lost", format_args!("{at}\t{name}\t{life}\t-")),
    }
}

/// Tells who this node is, its view as often as it changes, and what was refused.
pub(crate) async fn tell_view(fit: Fit) {
    let (mut told, mut refused, mut is_up) = (None, [0; 3], false);
    loop {
        let view = fit.view();
        if !is_up && view.me.name.gid != Gid::default() {
            is_up = true;
            let (at, me) = (micros(), view.me);
            libos::report("up", format_args!("{at}\t{}\t{}", me.name, me.incarnation));
        }
        let now = (view.members.len() + 1, view.digest, view.agreeing);
        if is_up && told.replace(now) != Some(now) {
            let (at, (members, digest, agreeing)) = (micros(), now);
            libos::report(
                "view",
                format_args!("{at}\t{members}\t{digest:016x}\t{agreeing}"),
            );
        }
        let counters = fit.membership_counters();
        let now = [
            counters.nr_bad_proof,
            counters.nr_other_version,
            counters.nr_duplicate,
        ];
        if core::mem::replace(&mut refused, now) != now {
            let (at, [proof, version, duplicate]) = (micros(), now);
            libos::report(
                "refused",
                format_args!("{at}\t{proof}\t{version}\t{duplicate}"),
            );
        }
        libos::sleep(LOOK).await;
    }
}
