//! Trace of a bring-up and of one WRITE.

use std::io::Write;
use std::sync::{Arc, Mutex};

use harness::Testbed;
use harness::trace::Text;
use verbs::{Payload, SendOp, Status};

use crate::common::{ALL, RC, connect, rc_config, two_nodes};

/// A file in memory.
#[derive(Clone, Default)]
struct File(Arc<Mutex<Vec<u8>>>);

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl File {
    fn take(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().expect("no panic"));
        let text = String::from_utf8(bytes).expect("a trace is text");
        text.lines().map(str::to_owned).collect()
    }
}

/// The first line of which one part is `what` and the others are among its parts.
fn find<'a>(lines: &'a [String], parts: &[&str]) -> &'a str {
    let has = |line: &&String| {
        let found: Vec<&str> = line.split('\t').collect();
        parts.iter().all(|part| found.contains(part))
    };
    lines
        .iter()
        .find(has)
        .unwrap_or_else(|| panic!("no line with {parts:?} in\n{}", lines.join("\n")))
}

#[test]
fn commands_doorbells_and_dma_are_told_with_their_fields() {
    let file = File::default();
    let mut bed = Testbed::default();
    bed.with_cluster(|cluster, _| cluster.record(Arc::new(Text::new(file.clone()))));
    let (a, b) = two_nodes(&mut bed);
    let bring_up = file.take();
    find(&bring_up, &["a", "reset"]);
    find(
        &bring_up,
        &["a", "command", "QUERY_FW", "status=OK", "out.pages=0x200"],
    );
    let init = find(&bring_up, &["b", "command", "INIT_HCA", "in.version=0x2"]);
    assert!(init.contains("\tin.qpc=0x"), "{init}");
    find(&bring_up, &["a", "command", "SW2HW_EQ", "in.log_size=0x8"]);
    find(&bring_up, &["a", "write", "Eqe", "event=COMMAND"]);
    find(&bring_up, &["a", "doorbell", "events", "arm=true"]);

    bed.block_on(async {
        let (mut left, _right) = connect(&a, &b, &rc_config(8), &RC).await;
        let from = a.memory(4096, ALL).await;
        let into = b.memory(4096, ALL).await;
        file.take();
        let write = SendOp::Write {
            to: into.remote(0),
            imm: None,
        };
        left.send(1, write, Payload::Gather(&[from.sge(0, 100)]));
        assert_eq!(left.next(&a.platform).await.status, Status::Success);
    });
    let lines = file.take();
    let qpn = find(&lines, &["a", "doorbell", "send"]);
    assert!(qpn.contains("\tqpn=0x"), "{qpn}");
    find(&lines, &["a", "read", "SendWqe", "owner.opcode=RDMA_WRITE"]);
    find(&lines, &["a", "read", "Mpt"]);
    find(&lines, &["a", "read", "Payload", "len=0x64"]);
    find(&lines, &["b", "write", "Payload", "len=0x64"]);
    find(&lines, &["a", "write", "Cqe"]);
}
