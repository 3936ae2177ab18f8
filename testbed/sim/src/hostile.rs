//! Hostile node without the key: it records announcements and connection messages, and sends
//! recorded, garbled and made-up ones.

use verbs::Lid;

use crate::network::{Body, Packet};
use crate::world::{Event, World};

/// Recorded datagrams that are kept.
const KEPT: usize = 64;
/// The most bytes of a packet.
const MTU: u64 = 4096;

/// Hostile node's recorded packets. Some are of lives that ended long ago.
#[derive(Default)]
pub(crate) struct Recorder {
    kept: Vec<Packet>,
}

impl World {
    /// Lets the hostile node record a datagram and perhaps send one.
    pub(crate) fn overhear(&mut self, packet: &Packet) {
        let rate = self.rates.hostile;
        if rate == 0 || !is_worth(&packet.body) {
            return;
        }
        if self.recorder.kept.len() < KEPT {
            self.recorder.kept.push(packet.clone());
        } else if self.rng.chance(200_000) {
            let place = self.rng.index(KEPT);
            self.recorder.kept[place] = packet.clone();
        }
        if self.rng.chance(rate) {
            self.strike();
        }
    }

    fn strike(&mut self) {
        let recorded = self.rng.index(self.recorder.kept.len());
        let mut packet = self.recorder.kept[recorded].clone();
        let what = match self.rng.below(4) {
            0 => "hostile: played again",
            1 => {
                self.garble(&mut packet.body);
                "hostile: garbled"
            }
            2 => {
                self.make_up(&mut packet.body);
                "hostile: made up"
            }
            _ => {
                packet.slid = self.any_lid();
                "hostile: from another port"
            }
        };
        self.stats.count(what);
        if self.rng.chance(500_000) {
            packet.dlid = self.any_lid();
        }
        let delay = if self.rng.chance(500_000) {
            self.rng.between(1000, 1_000_000)
        } else {
            self.rng.between(1_000_000, 5_000_000_000)
        };
        self.after(delay, Event::Packet(Box::new(packet)));
    }

    fn any_lid(&mut self) -> Lid {
        let node = self.rng.index(self.nodes.len());
        self.nodes[node].lid
    }

    fn garble(&mut self, body: &mut Body) {
        let bytes: &mut [u8] = match body {
            Body::Datagram { data, .. } => data,
            Body::Mad(mad) => &mut mad[..],
            _ => return,
        };
        if bytes.is_empty() {
            return;
        }
        for _ in 0..self.rng.between(1, 4) {
            let bit = self.rng.index(8);
            let byte = self.rng.index(bytes.len());
            bytes[byte] ^= 1 << bit;
        }
    }

    fn make_up(&mut self, body: &mut Body) {
        match body {
            Body::Datagram { data, .. } => {
                let random = self.rng.below(MTU + 1);
                let len = self.rng.pick(&[0, 95, 96, 97, 216, 217, MTU, random]);
                *data = (0..len)
                    .map(|_| self.rng.number().to_le_bytes()[0])
                    .collect();
            }
            // The header stays, so that it is taken for a connection message.
            Body::Mad(mad) => mad[24..].fill_with(|| self.rng.number().to_le_bytes()[0]),
            _ => {}
        }
    }
}

/// Announcements, and messages of the connection manager. Answers of the subnet administrator prove
/// nothing, so whoever could forge them could keep nodes apart for as long as he likes.
fn is_worth(body: &Body) -> bool {
    match body {
        Body::Datagram { .. } => true,
        Body::Mad(mad) => mad[1] == mad::MgmtClass::CM.0,
        _ => false,
    }
}
