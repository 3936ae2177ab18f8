//! Result of an image of ours, by QEMU's exit status (see "Leaving" in `docs/architecture.md`).

use std::process::ExitStatus;

/// Result of a node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NodeOutcome {
    /// Its work was done.
    Well,
    /// Its kernel panicked.
    Panic,
    /// It ended with an error that its log names.
    Error,
    /// QEMU ended, whatever the node wanted.
    Otherwise,
}

impl From<ExitStatus> for NodeOutcome {
    fn from(status: ExitStatus) -> Self {
        match status.code() {
            Some(1) => Self::Well,
            Some(3) => Self::Panic,
            Some(5) => Self::Error,
            _ => Self::Otherwise,
        }
    }
}

/// Describes a status in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match NodeOutcome::from(status) {
        NodeOutcome::Well => "left".to_owned(),
        NodeOutcome::Panic => "its kernel panicked".into(),
        NodeOutcome::Error => "it ended with an error".into(),
        NodeOutcome::Otherwise => format!("its QEMU ended with {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn qemus_status_tells_how_a_node_left() {
        let left = |code: i32| NodeOutcome::from(ExitStatus::from_raw(code << 8));
        assert_eq!(
            [left(1), left(3), left(5), left(0)],
            [
                NodeOutcome::Well,
                NodeOutcome::Panic,
                NodeOutcome::Error,
                NodeOutcome::Otherwise
            ]
        );
        assert_eq!(
            NodeOutcome::from(ExitStatus::from_raw(9)),
            NodeOutcome::Otherwise,
            "killed"
        );
    }
}
