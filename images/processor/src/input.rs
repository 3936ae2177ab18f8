//! Standard input as it comes from the host: frames of a length and that many bytes, the empty one being the end (see
//! `docs/architecture.md`).

use alloc::collections::VecDeque;

/// Bytes of a frame's length.
const LENGTH: usize = 4;

/// The input channel, taken apart.
#[derive(Debug, Default)]
pub struct Input {
    /// Bytes that came and were not read.
    bytes: VecDeque<u8>,
    /// Bytes of the current frame that did not come yet.
    frame_left: usize,
    /// The length of the next frame, as far as it came.
    length: [u8; LENGTH],
    length_came: usize,
    ended: bool,
}

impl Input {
    /// Takes what came from the channel, cut anywhere. What follows the end is dropped.
    pub fn take(&mut self, mut came: &[u8]) {
        while !self.ended && !came.is_empty() {
            if self.frame_left > 0 {
                let (now, later) = came.split_at(came.len().min(self.frame_left));
                self.bytes.extend(now);
                self.frame_left -= now.len();
                came = later;
            } else {
                self.length[self.length_came] = came[0];
                self.length_came += 1;
                came = &came[1..];
                if self.length_came == LENGTH {
                    self.length_came = 0;
                    self.frame_left = u32::from_le_bytes(self.length) as usize;
                    self.ended = self.frame_left == 0;
                }
            }
        }
    }

    /// Reads what there is, as far as it fits; how many bytes.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        let count = self.bytes.len().min(into.len());
        for (place, byte) in into.iter_mut().zip(self.bytes.drain(..count)) {
            *place = byte;
        }
        count
    }

    /// Nothing more will come.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Whether nothing more will come.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Whether a read would give something, or the end, at once.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.ended || !self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn drain(input: &mut Input) -> Vec<u8> {
        let mut all = vec![0; 1 << 16];
        let count = input.read(&mut all);
        all.truncate(count);
        all
    }

    proptest! {
        #[test]
        fn frames_arrive_whole_however_they_are_cut(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..8),
            cut in 1_usize..40,
        ) {
            let mut channel = Vec::new();
            for frame in &frames {
                channel.extend(u32::try_from(frame.len()).unwrap().to_le_bytes());
                channel.extend(frame);
            }
            let mut input = Input::default();
            channel.chunks(cut).for_each(|piece| input.take(piece));
            prop_assert!(!input.ended());
            input.take(&[0; LENGTH]);
            input.take(b"too late");
            prop_assert!(input.ended());
            prop_assert_eq!(drain(&mut input), frames.concat());
        }

        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut input = Input::default();
            input.take(&bytes);
            prop_assert!(drain(&mut input).len() <= bytes.len());
        }
    }
}
