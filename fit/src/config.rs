//! Depths and times, and the arithmetic that keeps every queue from overflowing.

use hal::Duration;
use verbs::DeviceLimits;

use crate::error::Resource;
use crate::keepalive::PINGS;
use crate::wire::{HEADER_BYTES, MAX_DESCRIPTORS_LEN};
use crate::{Cluster, Error, HEADER_LEN, MAX_PIECES};

/// Settings of FIT on a node. They need not be equal on both sides: a value that matters to the
/// peer is negotiated.
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
    /// Requests that a page path of this node's holds at least.
    pub page_depth: u16,
    /// Page paths of peers that this side accepts at once; 0 if it lends no memory by pages.
    pub page_paths: u16,
    /// Bytes of a message with its header.
    pub message_size: u32,
    /// One-way messages of a peer that this side keeps until a handler takes them; also the most
    /// that this side has under way.
    pub one_ways: u16,
    /// Bytes of the longest bulk that this side takes with a request or sends with a reply, beyond
    /// what fits a message; 0 if none.
    pub bulk_size: u32,
    /// Buffers of that size a connection has: calls with bulk wait for one for each direction that
    /// they use.
    pub bulk_buffers: u16,
    /// Every how many requests one is signalled that would not need to be.
    pub signal_every: u16,
    /// The way in which a core learns of completions.
    pub polling: Polling,
    /// Tasks a core that run handlers, 1 to [`MAX_WORKERS`]; 0 if the polling task runs them
    /// itself, one at a time.
    pub workers: u16,
    /// Whether to measure the [profile points](crate::ProfilePoint).
    pub profile: bool,
    /// The deadline of a call, READ or WRITE for which none is given.
    pub timeout: Duration,
    /// Time for which [`Fit::connect`](crate::Fit::connect) and [`Fit::find`](crate::Fit::find)
    /// try.
    pub connect_timeout: Duration,
    /// The cluster that this node is of.
    pub cluster: Cluster,
    /// Whether to look for the other members by multicast, and to connect to them.
    pub discover: bool,
    /// Capacity that this node offers, in MiB; told to the others.
    pub capacity: u32,
    /// Time that a peer may be silent before it is lost; zero for no limit.
    pub keepalive: Duration,
    /// Bytes that nobody can guess: nonces and the incarnation are drawn from them.
    pub entropy: [u8; 32],
    /// Protection domains of the connections and of the regions registered for them.
    pub domains: Domains,
}

/// The most worker tasks of a core.
pub const MAX_WORKERS: u16 = 16;

/// Ways in which a core learns of completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polling {
    /// It looks again and again and never rests: the shortest time, and a whole processor core.
    Busy,
    /// It looks in vain this many times, then asks for an interrupt and rests.
    Adaptive(u32),
    /// It asks for an interrupt whenever it finds nothing.
    Interrupt,
}

impl Polling {
    /// Looks in vain before the core rests; nothing if it never does.
    pub(crate) fn budget(self) -> Option<u32> {
        match self {
            Self::Busy => None,
            Self::Adaptive(looks) => Some(looks),
            Self::Interrupt => Some(0),
        }
    }
}

/// Not one of the ways of polling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is `busy`, `adaptive`, `adaptive:LOOKS` or `interrupt`")]
pub struct BadPolling;

impl core::str::FromStr for Polling {
    type Err = BadPolling;
    fn from_str(text: &str) -> Result<Self, BadPolling> {
        match (text, text.split_once(':')) {
            ("busy", _) => Ok(Self::Busy),
            ("adaptive", _) => Ok(Config::default().polling),
            ("interrupt", _) => Ok(Self::Interrupt),
            (_, Some(("adaptive", looks))) => {
                looks.parse().map(Self::Adaptive).map_err(|_| BadPolling)
            }
            _ => Err(BadPolling),
        }
    }
}

/// Protection domains that keep peers out of each other's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domains {
    /// All connections lie in [`verbs::Domain::default`]: a peer reaches whatever is registered for
    /// any of them.
    Shared,
    /// Each peer has a domain of its own, which no other peer gets before some thousand others have
    /// come: [`Fit::domain`](crate::Fit::domain) names it. What was registered for a lost peer must
    /// be deregistered.
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
            page_depth: 128,
            page_paths: 0,
            message_size: 4096,
            one_ways: 8,
            bulk_size: 0,
            bulk_buffers: 4,
            signal_every: 16,
            polling: Polling::Adaptive(200),
            workers: 1,
            profile: false,
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

/// Entries of its queues that one connection takes.
///
/// * Receive queue: one for each call and one-way message the peer may have under way, one for each
///   reply we may be owed, and those for pings, pongs and credits. Each is posted again before the
///   credit it stands for goes back, so an honest peer never finds the queue empty.
/// * Send queue: a request for each call and one-way message, a WRITE and a SEND for each reply and
///   the further WRITEs of one whose bulk is scattered, one for each READ or WRITE, the run of
///   unsignalled requests that no completion has freed yet, and pings, pongs and credits. Nothing
///   is posted without room: what finds none waits.
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
        let [calls, serves, one_ways] = [self.calls, self.serves, self.one_ways].map(u32::from);
        let signs = 2 * PINGS + CREDITS;
        let receive = calls + serves + one_ways + signs;
        let send = calls
            + one_ways
            + 2 * serves
            + u32::from(SEND_PIECES)
            + u32::from(self.one_sided)
            + 2 * u32::from(self.signal_every)
            + signs;
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
    /// When a number that must not be zero is, or a message has no room for its header: the image's
    /// own mistake.
    pub fn check(&self, limits: &DeviceLimits) -> Result<(), Error> {
        assert!(
            self.calls > 0 && self.serves > 0 && self.one_sided > 0,
            "a connection of depth zero"
        );
        assert!(self.page_depth > 0, "a page path of depth zero");
        assert!(
            self.cores > 0 && self.peers > 0 && self.signal_every > 0,
            "cores, peers and signal_every"
        );
        assert!(
            self.message_size as usize >= MIN_MESSAGE,
            "a message holds its header and all descriptors"
        );
        assert!(self.workers <= MAX_WORKERS, "{} workers", self.workers);
        // A call may want two at once, so fewer would keep it waiting for ever.
        assert!(
            self.bulk_size == 0 || self.bulk_buffers >= 2,
            "{} buffers for bulk",
            self.bulk_buffers
        );
        let depths = self.depths();
        let wants = [
            (Resource::SendQueue, depths.send, limits.max_queue_depth),
            (
                Resource::ReceiveQueue,
                depths.receive,
                limits.max_queue_depth,
            ),
            (
                Resource::CompletionQueue,
                self.completion_queue_depth(),
                limits.max_cq_depth,
            ),
            // Messages that are only a header have no memory that they could stand in.
            (Resource::Inline, INLINE, limits.max_inline),
            (Resource::Pieces, SEND_PIECES.into(), limits.max_sge.into()),
        ];
        for (what, wanted, have) in wants {
            if wanted > have {
                return Err(Error::TooDeep { what, wanted, have });
            }
        }
        Ok(())
    }
}

/// Pieces of a send: what FIT itself says, and what a call gathers behind it.
pub(crate) const SEND_PIECES: u8 = 9;
const _: () = assert!(SEND_PIECES as usize == 1 + MAX_PIECES);

/// Bytes inline that a device must take at least.
const INLINE: u32 = HEADER_BYTES;

/// Messages under way that say only how many one-way messages were taken: each speaks of half of
/// the window at least.
const CREDITS: u32 = 2;

/// Bytes that a message must have at least.
pub(crate) const MIN_MESSAGE: usize = HEADER_LEN + MAX_DESCRIPTORS_LEN;

/// Layout of one connection's memory: receives, then requests, replies and one-way messages, then
/// buffers for bulk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    message: usize,
    bulk: usize,
    receives: usize,
    calls: usize,
    serves: usize,
    one_ways: usize,
    bulks: usize,
}

impl Layout {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            message: config.message_size as usize,
            bulk: config.bulk_size as usize,
            receives: config.depths().receive as usize,
            calls: config.calls.into(),
            serves: config.serves.into(),
            one_ways: config.one_ways.into(),
            bulks: config.bulk_buffers.into(),
        }
    }
    pub(crate) fn receive(&self, index: usize) -> usize {
        assert!(
            index < self.receives,
            "receive {index} of {}",
            self.receives
        );
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
    pub(crate) fn one_way(&self, index: usize) -> usize {
        assert!(
            index < self.one_ways,
            "one-way {index} of {}",
            self.one_ways
        );
        (self.receives + self.calls + self.serves + index) * self.message
    }
    pub(crate) fn bulk(&self, index: usize) -> usize {
        assert!(index < self.bulks, "bulk {index} of {}", self.bulks);
        self.messages() * self.message + index * self.bulk
    }
    /// Returns the number of receives.
    pub(crate) fn receives(&self) -> u16 {
        u16::try_from(self.receives).expect("receives are counted in 16 bits")
    }
    /// Bytes of a message's place.
    pub(crate) fn message_size(&self) -> u32 {
        u32::try_from(self.message).expect("as configured")
    }
    fn messages(&self) -> usize {
        self.receives + self.calls + self.serves + self.one_ways
    }
    pub(crate) fn len(&self) -> usize {
        self.messages() * self.message + self.bulks * self.bulk
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
            one_ways: 2,
            message_size: 128,
            bulk_size: 1000,
            bulk_buffers: 2,
            ..Config::default()
        };
        let layout = Layout::new(&config);
        assert_eq!(layout.receive(2 + 3 + 2 + 8 + 2 - 1) + 128, layout.call(0));
        assert_eq!(layout.call(1) + 128, layout.reply(0));
        assert_eq!(layout.reply(2) + 128, layout.one_way(0));
        assert_eq!(layout.one_way(1) + 128, layout.bulk(0));
        assert_eq!(layout.bulk(1) + 1000, layout.len());
    }

    #[test]
    fn depths_past_the_device_are_named() {
        let limits = DeviceLimits {
            max_reads: 16,
            max_reads_as_responder: 16,
            max_queue_depth: 64,
            max_sge: 9,
            max_inline: 200,
            max_cq_depth: 4096,
            ports: 1,
            max_domains: 1,
        };
        let error = Config::default().check(&limits).unwrap_err();
        assert_eq!(
            error.to_string(),
            "send requests: 171 wanted, the device has 64"
        );
    }

    #[test]
    fn ways_of_polling_are_read_as_the_boot_option_has_them() {
        assert_eq!("busy".parse(), Ok(Polling::Busy));
        assert_eq!("adaptive".parse(), Ok(Config::default().polling));
        assert_eq!("adaptive:7".parse(), Ok(Polling::Adaptive(7)));
        assert_eq!("interrupt".parse(), Ok(Polling::Interrupt));
        for bad in ["", "Busy", "adaptive:", "adaptive:x", "busy:3"] {
            assert_eq!(bad.parse::<Polling>(), Err(BadPolling));
        }
    }
}
