//! The real model behind the server's seam.

use hca_model::{ClusterConfig, NodeConfig};
use hca_server::Function;
use hca_server::node::Cluster;
use verbs::Guid;

#[test]
fn the_sizes_are_the_connectx_3s() {
    let cluster = Cluster::new(ClusterConfig::default());
    let node = cluster.add_node(NodeConfig::new("p", Guid(0x2_c903_0000_0100), 1));
    let layout = node.layout();
    // 1 MiB of registers and 8 MiB of UAR pages: `lspci -vv` of a ConnectX-3 as its owners post it.
    assert_eq!(layout.bars, [1 << 20, 0, 8 << 20, 0, 0, 0]);
    assert!(layout.vectors >= 4, "{layout:?}");
    node.attach();
    let mut id = [0; 4];
    node.config_read(0, &mut id);
    assert_eq!(id, [0xb3, 0x15, 0x03, 0x10]);
    let mut bar = [0; 4];
    node.config_read(0x10, &mut bar);
    assert_eq!(bar, [0x04, 0, 0, 0], "the probe left its mark");
}
