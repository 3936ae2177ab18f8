//! Peers that are reached by several connections, one for each core.

use std::sync::{Arc, Mutex};

use fit::{Config, Role};
use hal::{Duration, Instant, Platform};
use harness::Testbed;
use harness::trace::{Direction, Event, Purpose, Recorder};
use mad::Mad;
use mad::cm::CmMessage;

use super::{config, converge, machine, node, start};

/// Remembers the messages of the connection manager, and their senders.
#[derive(Default)]
struct Messages(Mutex<Vec<(String, CmMessage)>>);

impl Recorder for Messages {
    fn record(&self, node: &str, _: Instant, event: &Event<'_>) {
        let Event::Dma {
            direction: Direction::Read,
            purpose: Purpose::Payload,
            bytes,
            ..
        } = *event
        else {
            return;
        };
        let Ok(mad) = Mad::try_from(bytes) else {
            return;
        };
        if let Ok((_, message)) = CmMessage::parse(&mad) {
            self.0.lock().unwrap().push((node.to_owned(), message));
        }
    }
}

/// A node of two cores gets one of its connections only, as its peer has no more, and crashes. Its
/// next life gets none before the former one's is dead.
#[test]
fn lanes_of_two_lives_of_a_node_are_refused() {
    let mut bed = Testbed::default();
    let messages = Arc::new(Messages::default());
    bed.with_cluster(|cluster, _| cluster.record(Arc::clone(&messages) as _));
    let small = Config {
        peers: 2,
        keepalive: Duration::from_secs(20),
        ..config(2)
    };
    let two = |entropy| Config {
        cores: 2,
        entropy: [entropy; 32],
        ..config(1)
    };
    let here = machine(&bed, 2, Role::Memory);
    let memory = start(&mut bed, here, Role::Memory, small);
    let storage = node(&mut bed, 3, Role::Storage);
    converge(&mut bed, &[&storage, &memory]);
    messages.0.lock().unwrap().clear();
    let here = machine(&bed, 1, Role::Processor);
    let processor = start(&mut bed, here, Role::Processor, two(1));
    bed.block_on(memory.machine.sleep(Duration::from_millis(300)));
    let of_memory = |wanted: fn(&CmMessage) -> bool| {
        let sent = messages.0.lock().unwrap();
        let sent = sent.iter().filter(|(node, _)| node == Role::Memory.name());
        sent.filter(|(_, message)| wanted(message)).count()
    };
    let makes = |message: &CmMessage| matches!(message, CmMessage::Rep(_) | CmMessage::Rtu(_));
    assert_eq!(of_memory(makes), 1);
    assert!(of_memory(|message| matches!(message, CmMessage::Rej(_))) > 0);
    let here = processor.crash(&mut bed);
    // Its connection becomes free, and is kept for nobody.
    storage.fit.leave();
    bed.block_on(memory.machine.sleep(Duration::from_millis(300)));
    storage.crash(&mut bed);
    messages.0.lock().unwrap().clear();
    let processor = start(&mut bed, here, Role::Processor, two(99));
    converge(&mut bed, &[&processor, &memory]);
    assert_eq!(of_memory(makes), 2, "the new life's, each once");
}
