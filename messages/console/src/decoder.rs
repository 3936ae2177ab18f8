//! From the channel's bytes, cut anywhere, to frames.

use alloc::vec::Vec;

use crate::{Frame, FrameError, HEADER, check};

/// Takes a channel's bytes apart.
///
/// It keeps the bytes of one frame at most, and what was pushed behind it.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Bytes of `bytes` that were decoded.
    done: usize,
}

impl Decoder {
    /// Takes bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.done > 0 {
            self.bytes.drain(..self.done);
            self.done = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the next frame that is whole.
    ///
    /// # Errors
    ///
    /// [`FrameError`]; the channel is of no use then.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.bytes[self.done..];
        let Some(&[kind, low, middle, high]) = rest.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let len = usize::from(low) | usize::from(middle) << 8 | usize::from(high) << 16;
        check(kind, len)?;
        let Some(payload) = rest.get(HEADER..HEADER + len) else {
            return Ok(None);
        };
        let frame = Frame::decode(kind, payload)?;
        self.done += HEADER + len;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Output, Start, Window};
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let bytes = || prop::collection::vec(any::<u8>(), 1..60);
        let output = prop::sample::select(&Output::ALL[..]);
        prop_oneof![
            bytes().prop_map(Frame::Input),
            any::<u16>().prop_map(Frame::InputEnd),
            any::<[u16; 4]>().prop_map(|words| Frame::Window(Window::from_words(words))),
            (output.clone(), any::<u16>()).prop_map(|(output, errno)| Frame::Broken(output, errno)),
            (output, bytes()).prop_map(|(output, bytes)| Frame::Output(output, bytes)),
            any::<u32>().prop_map(Frame::Want),
            prop::collection::vec(bytes(), 0..4).prop_map(|args| Frame::Start(Start {
                args,
                ..Start::default()
            })),
            Just(Frame::Done),
            Just(Frame::Finish),
        ]
    }

    proptest! {
        #[test]
        fn frames_arrive_whole_however_they_are_cut(
            frames in prop::collection::vec(frames(), 0..8),
            cut in 1_usize..40,
        ) {
            let mut channel = Vec::new();
            frames.iter().for_each(|frame| frame.encode(&mut channel));
            let (mut decoder, mut came) = (Decoder::default(), Vec::new());
            for piece in channel.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    came.push(frame);
                }
            }
            prop_assert_eq!(came, frames);
        }

        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }
}
