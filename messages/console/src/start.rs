//! The program to run: arguments, environment, folder, user and streams.
//!
//! ```text
//!  0  sources of descriptors 0, 1, 2 (u8 each), flags (u8, 0)
//!  4  window: rows, columns, x, y (u16 each)
//! 12  working folder: length (u32), bytes
//!     user: the same; none for root
//!     arguments: count (u32), then each a length (u32) and bytes
//!     environment: the same
//! ```

use alloc::vec::Vec;

use crate::Window;

/// The thing that one of the program's first three descriptors is on the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Source {
    /// A pipe, a file, or anything else that bytes pass through.
    #[default]
    Stream,
    /// The terminal.
    Terminal,
    /// `/dev/null`.
    Null,
    /// `/dev/full`.
    Full,
}

impl Source {
    const ALL: [Self; 4] = [Self::Stream, Self::Terminal, Self::Null, Self::Full];
}

/// The program to run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Start {
    /// Standard input, output and error.
    pub sources: [Source; 3],
    /// The terminal's window.
    pub window: Window,
    /// The working folder.
    pub folder: Vec<u8>,
    /// The user by name or number, with a group perhaps; empty for root.
    pub user: Vec<u8>,
    /// The program and its arguments.
    pub args: Vec<Vec<u8>>,
    /// The environment, each `NAME=VALUE`.
    pub env: Vec<Vec<u8>>,
}

impl Start {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.sources.iter().map(|&source| source as u8).collect();
        bytes.push(0);
        let words = self.window.words().map(u16::to_le_bytes);
        bytes.extend_from_slice(words.as_flattened());
        string(&mut bytes, &self.folder);
        string(&mut bytes, &self.user);
        for list in [&self.args, &self.env] {
            number(&mut bytes, list.len());
            list.iter().for_each(|text| string(&mut bytes, text));
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        let mut sources = [Source::Stream; 3];
        for (source, &raw) in sources.iter_mut().zip(rest.take(4)?) {
            *source = *Source::ALL.get(usize::from(raw))?;
        }
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(rest.take(8)?.chunks_exact(2)) {
            *word = u16::from_le_bytes([bytes[0], bytes[1]]);
        }
        let start = Self {
            sources,
            window: Window::from_words(words),
            folder: rest.string()?,
            user: rest.string()?,
            args: rest.list()?,
            env: rest.list()?,
        };
        rest.0.is_empty().then_some(start)
    }
}

fn number(bytes: &mut Vec<u8>, number: usize) {
    let number = u32::try_from(number).expect("less than MAX_START");
    bytes.extend_from_slice(&number.to_le_bytes());
}

fn string(bytes: &mut Vec<u8>, text: &[u8]) {
    number(bytes, text.len());
    bytes.extend_from_slice(text);
}

/// The bytes that are not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<usize> {
        let bytes = self.take(4)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    }

    fn string(&mut self) -> Option<Vec<u8>> {
        let len = self.number()?;
        self.take(len).map(<[u8]>::to_vec)
    }

    fn list(&mut self) -> Option<Vec<Vec<u8>>> {
        // Each string has a length of four bytes: a count beyond that ends at the first that lacks.
        let count = self.number()?;
        (0..count).map(|_| self.string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> Start {
        Start {
            sources: [Source::Terminal, Source::Full, Source::Null],
            window: Window::from_words([24, 80, 0, 0]),
            folder: b"/a".to_vec(),
            user: b"7:8".to_vec(),
            args: alloc::vec![b"x".to_vec(), Vec::new()],
            env: alloc::vec![b"A=".to_vec()],
        }
    }

    #[test]
    fn a_start_has_these_bytes() {
        let bytes = b"\x01\x03\x02\0\x18\0\x50\0\0\0\0\0\x02\0\0\0/a\x03\0\0\x007:8\
            \x02\0\0\0\x01\0\0\0x\0\0\0\0\x01\0\0\0\x02\0\0\0A=";
        assert_eq!(example().encode(), bytes);
        assert_eq!(Start::decode(bytes), Some(example()));
    }

    proptest! {
        #[test]
        fn damaged_starts_are_refused_or_read(cut in 0_usize..70, at in 0_usize..70, byte: u8) {
            let mut bytes = example().encode();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes.truncate(cut);
            let whole = Start::decode(&bytes);
            prop_assert!(whole.is_none_or(|start| start.encode().len() == bytes.len()));
        }
    }
}
