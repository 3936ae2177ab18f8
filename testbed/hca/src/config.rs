//! Parameters of a testbed.

use fabric::FabricConfig;
use hal::Duration;
use verbs::Guid;

/// The parameters of a testbed.
#[derive(Debug, Clone, Default)]
pub struct ClusterConfig {
    /// The fabric's links and faults.
    pub fabric: FabricConfig,
}

/// Model of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// ConnectX-3: 15b3:1003.
    #[default]
    ConnectX3,
    /// ConnectX-3 Pro: 15b3:1007.
    ConnectX3Pro,
}

impl Device {
    /// Returns the PCI device number.
    #[must_use]
    pub const fn id(self) -> u16 {
        match self {
            Self::ConnectX3 => 0x1003,
            Self::ConnectX3Pro => 0x1007,
        }
    }
}

/// Differences between cards, by their boards and firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Board {
    /// Its model.
    pub device: Device,
    /// MSI-X messages, at most 128; 0 for a card with the interrupt pin only.
    pub vectors: u16,
    /// Completions and events may have 64 bytes.
    pub wide_entries: bool,
    /// Event queues may be numbered as QUERY_FUNC says.
    pub system_eqs: bool,
    /// MAD_DEMUX is known.
    pub mad_demux: bool,
    /// Requests may be written to BlueFlame registers.
    pub blueflame: bool,
    /// The first answers of QUERY_DEV_CAP with a maximum ICM of 0.
    pub empty_limits: u32,
    /// Time that firmware takes for a command at least; it takes up to four times as long.
    pub command_time: Duration,
    /// Time that the card is away after a reset.
    pub away: Duration,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            device: Device::ConnectX3,
            vectors: 128,
            wide_entries: true,
            system_eqs: true,
            mad_demux: false,
            blueflame: false,
            empty_limits: 0,
            command_time: Duration::ZERO,
            away: Duration::from_millis(1000),
        }
    }
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
    /// Its kind.
    pub board: Board,
}

impl NodeConfig {
    /// Creates the usual card with this name, node GUID and number of ports.
    #[must_use]
    pub fn new(name: impl Into<String>, guid: Guid, ports: u8) -> Self {
        Self {
            name: name.into(),
            guid,
            ports,
            board: Board::default(),
        }
    }
}

/// A node's place in the cluster, in the order of [`Cluster::add_node`](crate::Cluster::add_node).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(pub usize);
