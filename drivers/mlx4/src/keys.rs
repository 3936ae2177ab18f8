//! Keys of memory regions.
//!
//! A key is the number of an entry of the memory protection table and eight bits that software
//! chooses (Linux `mlx4_mr_alloc`, `hw_index_to_key`). Given a secret, both are drawn by
//! HMAC-SHA256, so that nobody foresees the next key from those that he was given; without one they
//! are given in order. Neither way gives the key that an entry had before: what was taken back
//! stays dead.

use alloc::vec::Vec;

use hmac::{Hmac, Mac};
use mutants::Mutant;
use sha2::Sha256;

/// Bytes of a secret.
pub(crate) const SECRET_LEN: usize = 32;

/// The choice of keys.
pub(crate) struct Keys {
    secret: Option<[u8; SECRET_LEN]>,
    drawn: u64,
    /// Tag of each entry's last key.
    tags: Vec<u8>,
}

impl Keys {
    /// Begins with so many entries of which none had a key. A secret of zeros is none.
    pub(crate) fn new(secret: [u8; SECRET_LEN], entries: usize) -> Self {
        let secret = Some(secret).filter(|secret| *secret != [0; SECRET_LEN]);
        let mut keys = Self {
            secret: secret.filter(|_| !Mutant::KeysInOrder.on()),
            drawn: 0,
            tags: alloc::vec![0; entries],
        };
        let mut place = 0;
        while keys.secret.is_some() && place < entries {
            let bytes = keys.draw();
            let len = bytes.len().min(entries - place);
            keys.tags[place..place + len].copy_from_slice(&bytes[..len]);
            place += len;
        }
        keys
    }

    fn draw(&mut self) -> [u8; 32] {
        self.drawn += 1;
        let secret = self.secret.unwrap_or_default();
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&secret).expect("HMAC takes a key of any length");
        mac.update(&self.drawn.to_le_bytes());
        mac.finalize().into_bytes().into()
    }

    /// Draws the entry from which to look for a free one; `None` if they are given in order.
    pub(crate) fn place(&mut self) -> Option<usize> {
        self.secret?;
        let [a, b, c, d, ..] = self.draw();
        Some(u32::from_le_bytes([a, b, c, d]) as usize % self.tags.len())
    }

    /// Gives an entry another tag than before.
    pub(crate) fn next_tag(&mut self, index: u32) -> u8 {
        let tag = &mut self.tags[index as usize];
        *tag = tag.wrapping_add(1);
        *tag
    }

    /// Returns whether this is the tag of the entry's last key.
    pub(crate) fn is_last(&self, index: u32, tag: u8) -> bool {
        self.tags.get(index as usize) == Some(&tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; SECRET_LEN] = [7; SECRET_LEN];

    #[test]
    fn keys_with_a_secret_follow_no_order_and_are_others_with_another_secret() {
        let draw = |secret| {
            let mut keys = Keys::new(secret, 4096);
            [(); 8].map(|()| {
                let place = keys.place();
                (
                    place,
                    keys.next_tag(u32::try_from(place.unwrap_or(0)).unwrap()),
                )
            })
        };
        let ours = draw(SECRET);
        assert_eq!(ours, draw(SECRET));
        assert_ne!(ours, draw([8; SECRET_LEN]));
        let next = |pair: &[(Option<usize>, u8)]| pair[1].0 == pair[0].0.map(|place| place + 1);
        assert!(ours.iter().all(|(place, _)| place.is_some()));
        assert!(!ours.windows(2).any(next), "{ours:?}");
        let mut tags = ours.map(|(_, tag)| tag);
        tags.sort_unstable();
        assert_ne!(tags[0], tags[7], "{tags:?}");
    }

    #[test]
    fn an_entry_has_no_key_again_for_255_turns() {
        for secret in [SECRET, [0; SECRET_LEN]] {
            let mut keys = Keys::new(secret, 16);
            let mut seen = [(); 256].map(|()| keys.next_tag(3));
            assert!(keys.is_last(3, seen[255]) && !keys.is_last(3, seen[254]));
            assert!(!keys.is_last(16, 0));
            seen.sort_unstable();
            assert!(seen.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    #[test]
    fn without_a_secret_keys_are_given_in_order() {
        assert_eq!(Keys::new([0; SECRET_LEN], 16).place(), None);
    }
}
