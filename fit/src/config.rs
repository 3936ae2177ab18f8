//! Depths and times, and the arithmetic that keeps every queue from overflowing.

use hal::Duration;
use verbs::DeviceLimits;

use crate::error::Resource;
use crate::keepalive::PINGS;
use crate::{Cluster, Error, HEADER_LEN};

/// How FIT is set up on a node. Nothing here must be equal on both sides: what matters to the peer is negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// The HCA's port, from 1.
    pub port: u8,
    /// Cores, each with its own completion queue and its own queue pair to each peer.
    pub cores: u16,
    /// The interrupt vector of the first core's completion queue; the next core's is the next.
    pub first_vector: u16,
    /// Connections that a core can have.
    pub peers: u16,
    /// The version of the messages that the calls carry; both sides must agree.
    pub message_version: u16,
    /// Calls this side may have outstanding at a peer.
    pub calls: u16,
    /// Calls of a peer that this side takes at once.
    pub serves: u16,
    /// READs and WRITEs in flight or queued on a connection.
    pub one_sided: u16,
    /// Bytes of a message with its header.
    pub message_size: u32,
    /// Bytes of the longest bulk reply this side sends; 0 if it sends none.
    pub bulk_size: u32,
    /// Every how many requests one is signalled that would not need to be.
    pub signal_every: u16,
    /// Empty polls of the completion queue before the core arms it and waits for the interrupt.
    pub poll_budget: u32,
    /// The deadline of a call, READ or WRITE for which none is given.
    pub timeout: Duration,
    /// How long [`Fit::connect`](crate::Fit::connect) and [`Fit::find`](crate::Fit::find) try.
    pub connect_timeout: Duration,
    /// The cluster that this node is of.
    pub cluster: Cluster,
    /// Whether to look for the other members by multicast, and to connect to them.
    pub discover: bool,
    /// What this node has to offer, in MiB; told to the others.
    pub capacity: u32,
    /// How long a peer may be silent before it is lost; zero for as long as it likes.
    pub keepalive: Duration,
    /// Bytes that nobody can guess: nonces and the incarnation are drawn from them.
    pub entropy: [u8; 32],
    /// Which protection domains the connections and what is registered for them lie in.
    pub domains: Domains,
}

/// How peers are kept out of each other's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domains {
    /// All connections lie in [`verbs::Domain::default`]: a peer reaches whatever is registered for any of them.
    Shared,
    /// Each peer has a domain of its own, which no other peer gets later: [`Fit::domain`](crate::Fit::domain) names it.
    PerPeer,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            port: 1,
            cores: 1,
            first_vector: 0,
            peers: 4,
            message_version: 0,
            calls: 16,
            serves: 16,
            one_sided: 64,
            message_size: 4096,
            bulk_size: 0,
            signal_every: 16,
            poll_budget: 200,
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(30),
            cluster: Cluster::default(),
            discover: false,
            capacity: 0,
            keepalive: Duration::from_secs(2),
            entropy: [0; 32],
            domains: Domains::Shared,
        }
    }
}

/// What one connection takes of its queues.
///
/// * Receive queue: one for each call the peer may make, one for each reply we may be owed, and those for pings and pongs. Each is posted again before
///   the credit it stands for goes back, so an honest peer never finds the queue empty.
/// * Send queue: a request for each call, a WRITE and a SEND for each reply, one for each READ or WRITE, and
///   the run of unsignalled requests that no completion has freed yet, and pings and pongs.
/// * Completion queue: each request of either queue may complete, so the sum of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depths {
    /// Receive requests.
    pub receive: u32,
    /// Send requests.
    pub send: u32,
    /// Completion queue entries.
    pub completions: u32,
}

impl Config {
    /// The depths of one connection.
    #[must_use]
    pub fn depths(&self) -> Depths {
        let receive = u32::from(self.calls) + u32::from(self.serves) + 2 * PINGS;
        let send = u32::from(self.calls)
            + 2 * u32::from(self.serves)
            + u32::from(self.one_sided)
            + 2 * u32::from(self.signal_every)
            + 2 * PINGS;
        Depths {
            receive,
            send,
            completions: receive + send,
        }
    }

    /// Completion queue entries of one core.
    #[must_use]
    pub fn completion_queue_depth(&self) -> u32 {
        self.depths().completions * u32::from(self.peers)
    }

    /// Checks the depths against the device.
    ///
    /// # Errors
    ///
    /// [`Error::TooDeep`] names what does not fit.
    ///
    /// # Panics
    ///
    /// When a number that must not be zero is, or a message has no room for its header: the image's own mistake.
    pub fn check(&self, limits: &DeviceLimits) -> Result<(), Error> {
        assert!(
            self.calls > 0 && self.serves > 0 && self.one_sided > 0,
            "a connection of depth zero"
        );
        assert!(
            self.cores > 0 && self.peers > 0 && self.signal_every > 0,
            "cores, peers and signal_every"
        );
        assert!(
            self.message_size as usize >= 2 * HEADER_LEN,
            "a message holds its header"
        );
        let depths = self.depths();
        let wants = [
            (Resource::SendQueue, depths.send, limits.max_queue_depth),
            (Resource::ReceiveQueue, depths.receive, limits.max_queue_depth),
            (
                Resource::CompletionQueue,
                self.completion_queue_depth(),
                limits.max_cq_depth,
            ),
        ];
        for (what, wanted, have) in wants {
            if wanted > have {
                return Err(Error::TooDeep { what, wanted, have });
            }
        }
        Ok(())
    }
}

/// A ping and a pong.
const SIGNS: usize = 2;

/// How one connection's memory is cut: receives, then requests, then replies, then bulk replies, then a ping and a pong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    message: usize,
    bulk: usize,
    receives: usize,
    calls: usize,
    serves: usize,
}

impl Layout {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            message: config.message_size as usize,
            bulk: config.bulk_size as usize,
            receives: config.depths().receive as usize,
            calls: usize::from(config.calls),
            serves: usize::from(config.serves),
        }
    }
    pub(crate) fn receive(&self, index: usize) -> usize {
        assert!(index < self.receives, "receive {index} of {}", self.receives);
        index * self.message
    }
    pub(crate) fn call(&self, index: usize) -> usize {
        assert!(index < self.calls, "call {index} of {}", self.calls);
        (self.receives + index) * self.message
    }
    pub(crate) fn reply(&self, index: usize) -> usize {
        assert!(index < self.serves, "reply {index} of {}", self.serves);
        (self.receives + self.calls + index) * self.message
    }
    pub(crate) fn bulk(&self, index: usize) -> usize {
        assert!(index < self.serves, "bulk {index} of {}", self.serves);
        (self.receives + self.calls + self.serves) * self.message + index * self.bulk
    }
    /// Where a ping (0) or a pong (1) stands.
    pub(crate) fn sign(&self, index: usize) -> usize {
        assert!(index < SIGNS, "sign {index} of {SIGNS}");
        (self.receives + self.calls + self.serves) * self.message
            + self.serves * self.bulk
            + index * HEADER_LEN
    }
    pub(crate) fn len(&self) -> usize {
        (self.receives + self.calls + self.serves) * self.message
            + self.serves * self.bulk
            + SIGNS * HEADER_LEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_of_a_connections_memory_touch_and_do_not_overlap() {
        let config = Config {
            calls: 2,
            serves: 3,
            message_size: 128,
            bulk_size: 1000,
            ..Config::default()
        };
        let layout = Layout::new(&config);
        assert_eq!(layout.receive(12) + 128, layout.call(0));
        assert_eq!(layout.call(1) + 128, layout.reply(0));
        assert_eq!(layout.reply(2) + 128, layout.bulk(0));
        assert_eq!(layout.bulk(2) + 1000, layout.sign(0));
        assert_eq!(layout.sign(1) + HEADER_LEN, layout.len());
    }

    #[test]
    fn depths_past_the_device_are_named() {
        let limits = DeviceLimits {
            max_reads: 16,
            max_reads_as_responder: 16,
            max_queue_depth: 64,
            max_sge: 1,
            max_inline: 200,
            max_cq_depth: 4096,
            ports: 1,
            max_domains: 1,
        };
        let error = Config::default().check(&limits).unwrap_err();
        assert_eq!(error.to_string(), "send requests: 152 wanted, the device has 64");
    }
}
