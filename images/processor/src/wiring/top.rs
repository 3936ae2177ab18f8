//! Snapshots of a run for who watches it (`top=`).

use core::time::Duration;

use node::Core;
use processor::{Node as _, Platform as _, Report, top};

use super::{Parts, add_figures};

/// The least milliseconds between two snapshots.
const MIN_PAUSE: u64 = 100;

/// Sends a snapshot every so many milliseconds, for ever.
pub(crate) async fn show(parts: &'static Parts, core: Core, millis: u64) {
    let pause = Duration::from_millis(millis.max(MIN_PAUSE));
    loop {
        libos::sleep_until(parts.machine.now() + pause).await;
        let mut lines = top::snapshot(parts).await;
        let mut report = Report::default();
        report.counter("nr_pages_committed", parts.supply.committed());
        add_figures(&mut report, parts, &core);
        lines.extend(report.into_lines());
        lines.push("end\n".into());
        let console = parts.kernel().console();
        console.show_top(lines.join("\n").as_bytes()).await;
    }
}
