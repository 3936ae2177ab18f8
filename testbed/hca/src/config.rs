//! Parameters of a testbed.

use fabric::FabricConfig;
use verbs::Guid;

/// The parameters of a testbed.
#[derive(Debug, Clone, Default)]
pub struct ClusterConfig {
    /// The fabric's links and faults.
    pub fabric: FabricConfig,
}

/// One card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// The node's name: in logs and as its node description.
    pub name: String,
    /// The node GUID; port `n` has the GUID that is `n` larger.
    pub guid: Guid,
    /// Ports: 1 or 2. Port 1 is joined to the fabric's switch, and so is port 2.
    pub ports: u8,
}

/// A node's place in the cluster, in the order of [`Cluster::add_node`](crate::Cluster::add_node).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(pub usize);
