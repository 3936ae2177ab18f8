//! [`Line`]: bytes in order over a serial line that loses, changes or adds some.
//!
//! Packets are parted by [`FLAG`] and escaped, as in RFC 1662 (section 4.2):
//!
//! ```text
//!  0x7e | kind | number | room or bytes … | CRC-32, little-endian | 0x7e
//!   kind 1, data: number of the packet, up to 240 bytes
//!   kind 2, news: number of the packet that is expected, packets that there is room for
//! ```
//!
//! The receiver takes packets in order only, and answers each with news. The sender keeps at most
//! [`WINDOW`] packets until news says that they were taken, and never more than there is room for:
//! so a reader that stops makes the writer wait. Where no news comes it sends again.
//!
//! An engine without a clock: the time is an argument, in milliseconds.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

const FLAG: u8 = 0x7e;
const ESCAPE: u8 = 0x7d;
const FLIP: u8 = 0x20;
const DATA: u8 = 1;
const NEWS: u8 = 2;
/// The most bytes of a packet's data.
const PIECE: usize = 240;
/// Kind, number and CRC.
const FRAMING: usize = 6;
/// Packets that are sent before there is news of them. Half of the numbers could be told apart.
const WINDOW: u8 = 16;
/// Time without news after which packets are sent again: twice that of a window at 115200 bits a
/// second, 0.35 s.
const PATIENCE_MS: u64 = 700;
/// Bytes that wait to be sent, at most.
const QUEUE: usize = 16 << 10;

/// One end of a line.
#[derive(Debug, Default)]
pub struct Line {
    /// Packets without news, the oldest first.
    sent: VecDeque<Vec<u8>>,
    /// Number of the oldest.
    first: u8,
    /// Packets from the oldest on that are on their way since the last news or timeout.
    flying: usize,
    /// Packets that the other end has room for, from the oldest on.
    room: u8,
    queue: VecDeque<u8>,
    /// Time of the last news, or of the last packet sent after none was on its way.
    quiet_since: u64,
    /// Bytes of a packet that is on its way out.
    wire: VecDeque<u8>,
    tells: bool,
    /// Number of the packet that is expected.
    expected: u8,
    came: VecDeque<u8>,
    /// Room that was told last.
    told: u8,
    packet: Vec<u8>,
    escaped: bool,
    spoiled: bool,
}

impl Line {
    /// Creates an end that has sent and got nothing.
    #[must_use]
    pub fn new() -> Self {
        Self {
            // News of the first packet says how much more.
            room: 1,
            ..Self::default()
        }
    }

    /// Takes bytes to be sent, as many as there is room for; returns their number.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(QUEUE - self.queue.len());
        self.queue.extend(&bytes[..count]);
        count
    }

    /// Returns whether all that was written has been taken by the other end.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.sent.is_empty()
    }

    /// Gives bytes that came, in order; returns their number.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.came.len());
        for (into, byte) in into.iter_mut().zip(self.came.drain(..count)) {
            *into = byte;
        }
        // The other end waits for news of room.
        self.tells |= self.told == 0 && self.own_room() > 0;
        count
    }

    /// Packets that there is room for.
    fn own_room(&self) -> u8 {
        let free = (QUEUE - self.came.len().min(QUEUE)) / PIECE;
        u8::try_from(free).unwrap_or(u8::MAX).min(WINDOW)
    }

    /// Takes what came over the wire.
    pub fn receive(&mut self, wire: &[u8], now_ms: u64) {
        for &byte in wire {
            match byte {
                FLAG => {
                    if !self.spoiled && !self.escaped {
                        self.take_packet(now_ms);
                    }
                    self.packet.clear();
                    (self.escaped, self.spoiled) = (false, false);
                }
                _ if self.packet.len() >= PIECE + FRAMING => self.spoiled = true,
                ESCAPE => self.escaped = true,
                _ => {
                    let flip = if self.escaped { FLIP } else { 0 };
                    self.packet.push(byte ^ flip);
                    self.escaped = false;
                }
            }
        }
    }

    fn take_packet(&mut self, now_ms: u64) {
        let Some((body, sum)) = self.packet.split_last_chunk::<4>() else {
            return;
        };
        if u32::from_le_bytes(*sum) != crc(body) {
            return;
        }
        match body {
            [DATA, number, bytes @ ..] => {
                if *number == self.expected && self.own_room() > 0 {
                    self.expected = self.expected.wrapping_add(1);
                    self.came.extend(bytes);
                }
                // What is not expected was sent again: the news of it was lost.
                self.tells = true;
            }
            &[NEWS, expected, room] => {
                let taken = usize::from(expected.wrapping_sub(self.first));
                if taken > self.sent.len() {
                    return;
                }
                self.sent.drain(..taken);
                self.first = expected;
                self.flying = self.flying.saturating_sub(taken);
                self.room = room.min(WINDOW);
                if taken > 0 {
                    self.quiet_since = now_ms;
                }
            }
            _ => {}
        }
    }

    /// Gives bytes for the wire; returns their number, 0 if there are none now.
    pub fn transmit(&mut self, into: &mut [u8], now_ms: u64) -> usize {
        let mut count = 0;
        while count < into.len() {
            if self.wire.is_empty() && !self.next_packet(now_ms) {
                break;
            }
            while let Some(into) = into.get_mut(count)
                && let Some(byte) = self.wire.pop_front()
            {
                *into = byte;
                count += 1;
            }
        }
        count
    }

    /// Puts the next packet on the wire; false if none is due.
    fn next_packet(&mut self, now_ms: u64) -> bool {
        if self.tells {
            self.tells = false;
            self.told = self.own_room();
            let news = [NEWS, self.expected, self.told];
            self.encode(&news);
            return true;
        }
        let late = now_ms.saturating_sub(self.quiet_since) >= PATIENCE_MS;
        if late && (self.flying > 0 || self.room == 0) {
            // Sends again; or asks, by one packet, whether there is room now.
            self.flying = 0;
            self.room = self.room.max(1);
            self.quiet_since = now_ms;
        }
        if self.flying >= usize::from(self.room) {
            return false;
        }
        if self.flying == self.sent.len() {
            let len = self.queue.len().min(PIECE);
            if len == 0 {
                return false;
            }
            self.sent.push_back(self.queue.drain(..len).collect());
        }
        if self.flying == 0 {
            self.quiet_since = now_ms;
        }
        // At most WINDOW packets are flying.
        let [ahead, ..] = self.flying.to_le_bytes();
        let mut packet = alloc::vec![DATA, self.first.wrapping_add(ahead)];
        packet.extend_from_slice(&self.sent[self.flying]);
        self.flying += 1;
        self.encode(&packet);
        true
    }

    fn encode(&mut self, body: &[u8]) {
        let sum = crc(body).to_le_bytes();
        self.wire.push_back(FLAG);
        for &byte in body.iter().chain(&sum) {
            if matches!(byte, FLAG | ESCAPE) {
                self.wire.extend([ESCAPE, byte ^ FLIP]);
            } else {
                self.wire.push_back(byte);
            }
        }
        self.wire.push_back(FLAG);
    }
}

/// Returns the CRC-32 of IEEE 802.3, reflected, bit by bit: a serial line is slower.
fn crc(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for &byte in bytes {
        sum ^= u32::from(byte);
        for _ in 0..8 {
            let carry = sum & 1;
            sum >>= 1;
            if carry == 1 {
                sum ^= 0xedb8_8320;
            }
        }
    }
    !sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A wire that harms so many in a thousand bytes.
    struct Wire {
        rng: u64,
        harm: u64,
    }

    impl Wire {
        fn random(&mut self, end: u64) -> u64 {
            self.rng = self
                .rng
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (self.rng >> 33) % end
        }

        fn carry(&mut self, bytes: &[u8]) -> Vec<u8> {
            let mut out = Vec::new();
            for &byte in bytes {
                if self.random(1000) >= self.harm {
                    out.push(byte);
                    continue;
                }
                match self.random(3) {
                    0 => {}
                    1 => out.push(byte ^ 1 << self.random(8)),
                    _ => out.extend([byte, FLAG]),
                }
            }
            out
        }
    }

    fn bytes(len: usize, seed: u8) -> Vec<u8> {
        let byte = |at: usize| (at * 31 + at / 251).to_le_bytes()[0].wrapping_add(seed);
        (0..len).map(byte).collect()
    }

    #[test]
    fn the_sum_is_ethernet_s() {
        assert_eq!(crc(b"123456789"), 0xcbf4_3926);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        /// Both ends send; the reader of one is slow, and the wire harms bytes.
        #[test]
        fn what_is_written_is_read(
            seed: u64,
            harm in 0_u64..4,
            len in 0_usize..60_000,
            slow in 1_usize..2000,
        ) {
            let mut ends = [Line::new(), Line::new()];
            let mut wire = Wire { rng: seed, harm };
            let sent = [bytes(len, 1), bytes(60_000 - len, 2)];
            let mut written = [0, 0];
            let mut read = [Vec::new(), Vec::new()];
            let mut now = 0;
            while read[1].len() < sent[0].len() || read[0].len() < sent[1].len() {
                now += 10;
                prop_assert!(now < 10_000_000, "{:?} read", [read[0].len(), read[1].len()]);
                for end in 0..2 {
                    written[end] += ends[end].write(&sent[end][written[end]..]);
                    let mut out = [0; 300];
                    let count = ends[end].transmit(&mut out, now);
                    let carried = wire.carry(&out[..count]);
                    ends[1 - end].receive(&carried, now);
                    let mut piece = [0; 2000];
                    let count = ends[1 - end].read(&mut piece[..if end == 0 { slow } else { 2000 }]);
                    read[1 - end].extend_from_slice(&piece[..count]);
                    prop_assert!(ends[end].came.len() <= QUEUE);
                    prop_assert!(ends[end].sent.len() <= usize::from(WINDOW));
                }
            }
            prop_assert!(read[1] == sent[0] && read[0] == sent[1]);
        }

        #[test]
        fn any_bytes_are_taken(wire in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut line = Line::new();
            line.receive(&wire, 0);
            let mut out = [0; 64];
            line.transmit(&mut out, 0);
            prop_assert!(line.packet.len() <= PIECE + FRAMING);
        }
    }

    #[test]
    fn a_reader_that_stops_makes_the_writer_wait() {
        let mut ends = [Line::new(), Line::new()];
        let [from, to] = &mut ends;
        let mut taken = 0;
        for now in 0..100_000 {
            taken += from.write(&[7; 100]);
            let mut out = [0; 1000];
            let count = from.transmit(&mut out, now);
            to.receive(&out[..count], now);
            let count = to.transmit(&mut out, now);
            from.receive(&out[..count], now);
        }
        assert!((QUEUE..3 * QUEUE).contains(&taken), "{taken}");
        assert!(!from.is_idle());
    }
}
