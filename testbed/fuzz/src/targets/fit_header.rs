//! FIT: the header in front of each message.

pub(crate) use fit::fuzzing::header as run;

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let message = |kind: u8, body: u32, len: u32| {
        let mut bytes = vec![0; 36];
        bytes[0] = kind;
        bytes[12..16].copy_from_slice(&body.to_le_bytes());
        bytes[32..].copy_from_slice(&len.to_le_bytes());
        bytes
    };
    vec![
        message(1, 4, 36),
        message(2, 0, 32),
        message(8, 0, 32),
        message(9, 0, 32),
        message(1, u32::MAX, 31),
    ]
}
