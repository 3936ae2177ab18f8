//! Links that are found, configured and brought up.

use super::*;

#[test]
fn ports_are_configured_armed_and_activated_in_turn() {
    let mut fabric = Fabric::new(FabricConfig::default());
    let now = Instant::from_nanos(1);
    let port = fabric.add_port();
    fabric.set_link(now, port, true);
    assert_eq!(settle(&mut fabric, now), [(0, 0), (0, 3), (0, 4)]);
    assert_eq!(fabric.deadline(), None, "nothing is left to wait for");
}

#[test]
fn a_port_that_does_not_answer_is_asked_again_ever_more_slowly() {
    let mut fabric = Fabric::new(FabricConfig::default());
    let mut now = Instant::from_nanos(1);
    let port = fabric.add_port();
    fabric.set_link(now, port, true);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        assert!(fabric.next(now).is_some());
        let due = fabric.poll(now).expect("a retry");
        pauses.push(due.since(now));
        now = due;
        fabric.poll(now);
    }
    assert!(
        pauses.is_sorted() && pauses[0] < pauses[7] && pauses[7] < Duration::from_secs(1),
        "{pauses:?}"
    );
}

#[test]
fn a_link_in_training_is_left_alone() {
    let mut fabric = Fabric::new(FabricConfig {
        training: Duration::from_millis(300),
        ..FabricConfig::default()
    });
    let now = Instant::from_nanos(1);
    let port = fabric.add_port();
    fabric.set_link(now, port, true);
    assert_eq!(settle(&mut fabric, now + Duration::from_millis(299)), []);
    assert!(!settle(&mut fabric, now + Duration::from_millis(300)).is_empty());
}
