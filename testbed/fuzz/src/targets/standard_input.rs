//! P: the frames of standard input, cut anywhere, against a reading of the whole.

use processor::Input as Frames;

use crate::input::Input;

/// The bytes of all frames, and whether the end was said.
fn whole(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk() {
        let len = u32::from_le_bytes(*len) as usize;
        if len == 0 {
            return (all, true);
        }
        let (frame, rest) = rest.split_at(len.min(rest.len()));
        all.extend_from_slice(frame);
        bytes = rest;
    }
    (all, false)
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (piece, room) = (usize::from(input.u8()) + 1, usize::from(input.u8()) + 1);
    let bytes = input.rest();
    let mut frames = Frames::default();
    let mut got = Vec::new();
    let mut into = vec![0; room];
    for piece in bytes.chunks(piece) {
        frames.take(piece);
        let count = frames.read(&mut into);
        got.extend_from_slice(&into[..count]);
    }
    loop {
        let count = frames.read(&mut into);
        if count == 0 {
            break;
        }
        got.extend_from_slice(&into[..count]);
    }
    assert_eq!((got, frames.ended()), whole(bytes));
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    vec![b"\x02\x03\x05\0\0\0hello\x01\0\0\0!\0\0\0\0late".to_vec()]
}
