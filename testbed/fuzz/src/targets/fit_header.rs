//! FIT: the header in front of each message, and the message's length behind it.

use fit::HEADER_LEN;
pub(crate) use fit::fuzzing::header as run;

/// Bytes that the target takes.
pub(crate) const LEN: usize = HEADER_LEN + 4;

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let message = |[kind, gathers, scatters]: [u8; 3], body: u32, bulk: u32, len: u32| {
        let mut bytes = vec![kind, gathers, scatters];
        bytes.resize(12, 0);
        for word in [body, bulk, 0, len] {
            bytes.extend(word.to_le_bytes());
        }
        bytes
    };
    vec![
        message([1, 0, 0], 4, 0, 28),
        message([1, 2, 1], 4, 70_000, 24 + 48 + 4),
        message([1, 0, 0], 4, 100, 128),
        message([2, 0, 0], 4, 100, 28),
        message([3, 0, 0], 4, 0, 28),
        message([4, 0, 0], 0, 0, 24),
        message([8, 0, 0], 0, 0, 24),
        message([9, 0, 0], 0, 0, 24),
        message([1, 0, 0], u32::MAX, 0, 23),
    ]
}
