//! The console channel between the host and P: any bytes, cut anywhere, against the same bytes
//! whole; what was read is written as it was.

use console::{Decoder, Frame, Output, Window};

use crate::input::Input;

/// Reads all frames of pieces, up to the first that is malformed.
fn frames<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Frame>, bool) {
    let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, false),
            }
        }
    }
    (frames, true)
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let piece = usize::from(input.u8()) + 1;
    let bytes = input.rest();
    let (cut, sound) = frames(bytes.chunks(piece));
    let (whole, _) = frames([bytes].into_iter());
    if sound {
        assert_eq!(cut, whole);
    } else {
        assert_eq!(
            cut[..],
            whole[..cut.len()],
            "before the first malformed one"
        );
    }
    let mut again = Vec::new();
    whole.iter().for_each(|frame| frame.encode(&mut again));
    assert_eq!(frames([&again[..]].into_iter()), (whole, true));
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let frames = [
        Frame::Input(b"hello".to_vec()),
        Frame::Window(Window::from_words([24, 80, 0, 0])),
        Frame::InputEnd(0),
        Frame::Output(Output::Stderr, b"late".to_vec()),
        Frame::Want(4096),
        Frame::Broken(Output::Stdout, 32),
        Frame::Finish,
        Frame::Done,
    ];
    let mut seed = vec![2];
    frames.iter().for_each(|frame| frame.encode(&mut seed));
    vec![seed]
}
