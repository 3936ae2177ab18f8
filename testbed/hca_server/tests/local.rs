//! A driver in the server's own process.

use std::sync::Arc;
use std::time::Duration;

use hal::Platform;
use hca_model::{ClusterConfig, NodeConfig};
use hca_server::local::Tasks;
use hca_server::node::Cluster;
use mlx4::{Config, Mlx4};
use verbs::{Device, Guid, PortState};

#[test]
fn a_local_node_joins_the_fabric() {
    let cluster = Cluster::new(ClusterConfig::default());
    let machine = cluster.add_local(NodeConfig::new("here", Guid(0x0002_c903_0000_1000), 1));
    std::thread::spawn({
        let cluster = Arc::clone(&cluster);
        move || cluster.keep_time()
    });
    let mut tasks = Tasks::default();
    let card = tasks.block_on(Mlx4::start(machine.clone(), Config::default()));
    let card = Arc::new(card.expect("the card starts"));
    let served = Arc::clone(&card);
    tasks.spawn(async move {
        // It ends with the card.
        let _ = served.service().await;
    });
    let deadline = machine.now() + Duration::from_secs(20);
    tasks.block_on(async {
        while card.port(1).await.expect("the port answers").state != PortState::Active {
            assert!(machine.now() < deadline, "the port is not active");
            machine.sleep(Duration::from_millis(1)).await;
        }
        card.stop().await.expect("the card is given back");
    });
    assert_eq!(machine.violations(), 0);
}
