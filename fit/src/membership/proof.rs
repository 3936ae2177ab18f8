//! Proofs that a sender holds the cluster's key, and numbers that nobody can guess.
//!
//! A proof is HMAC-SHA256 (RFC 2104) over what it is for and what it speaks of. Each part is led by
//! its length, so that no two lists of parts read the same.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::Key;

/// The challenge of a caller that does not know the callee's.
pub(crate) const NO_CHALLENGE: u64 = 0;

/// Bytes of a proof.
pub(crate) const PROOF_LEN: usize = 32;
/// Bytes of a nonce.
pub(crate) const NONCE_LEN: usize = 16;

/// A proof.
pub(crate) type Proof = [u8; PROOF_LEN];
/// A number used once.
pub(crate) type Nonce = [u8; NONCE_LEN];

/// Purpose of a proof. A proof holds for one purpose only, so nothing can be sent back to its
/// sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// An announcement.
    Announce,
    /// The caller asks for a connection.
    Request,
    /// The callee accepts.
    Accept,
    /// The callee refuses.
    Refuse,
    /// The caller confirms.
    Confirm,
    /// The caller ends the connection.
    CallerLeaves,
    /// The callee ends the connection.
    CalleeLeaves,
    /// Numbers that this node draws for itself.
    Draw,
}

impl Purpose {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Announce => b"tessera 1 announce",
            Self::Request => b"tessera 1 request",
            Self::Accept => b"tessera 1 accept",
            Self::Refuse => b"tessera 1 refuse",
            Self::Confirm => b"tessera 1 confirm",
            Self::CallerLeaves => b"tessera 1 caller leaves",
            Self::CalleeLeaves => b"tessera 1 callee leaves",
            Self::Draw => b"tessera 1 draw",
        }
    }
}

fn mac(key: &[u8; Key::LEN], purpose: Purpose, parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in core::iter::once(&purpose.label()).chain(parts) {
        mac.update(&(part.len() as u64).to_le_bytes());
        mac.update(part);
    }
    mac
}

/// The proof for these parts.
pub(crate) fn prove(key: &Key, purpose: Purpose, parts: &[&[u8]]) -> Proof {
    mac(&key.0, purpose, parts).finalize().into_bytes().into()
}

/// Returns whether `proof` is the one for these parts; compared in constant time.
pub(crate) fn holds(key: &Key, purpose: Purpose, parts: &[&[u8]], proof: &[u8]) -> bool {
    mac(&key.0, purpose, parts).verify_slice(proof).is_ok()
}

/// A source of numbers that nobody can guess, from a seed that nobody knows.
#[derive(Clone)]
pub(crate) struct Rng {
    seed: [u8; Key::LEN],
    drawn: u64,
}

impl Rng {
    pub(crate) fn new(seed: [u8; Key::LEN]) -> Self {
        Self { seed, drawn: 0 }
    }

    fn draw(&mut self) -> Proof {
        self.drawn += 1;
        let parts: [&[u8]; 1] = [&self.drawn.to_le_bytes()];
        mac(&self.seed, Purpose::Draw, &parts)
            .finalize()
            .into_bytes()
            .into()
    }

    /// Another source, which this one says nothing about.
    pub(crate) fn fork(&mut self) -> Self {
        Self::new(self.draw())
    }

    pub(crate) fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&self.draw()[..NONCE_LEN]);
        nonce
    }

    pub(crate) fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.draw()[..8]);
        u64::from_le_bytes(bytes)
    }

    /// A number below `bound`, or 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key::new([0x0b; 32]);

    #[test]
    fn hmac_is_that_of_rfc_4231() {
        // Test case 2: key "Jefe", data "what do ya want for nothing?".
        let mut mac: Hmac<Sha256> = Hmac::new_from_slice(b"Jefe").unwrap();
        mac.update(b"what do ya want for nothing?");
        let expected = [
            0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e, 0x6a, 0x04, 0x24, 0x26, 0x08, 0x95,
            0x75, 0xc7, 0x5a, 0x00, 0x3f, 0x08, 0x9d, 0x27, 0x39, 0x83, 0x9d, 0xec, 0x58, 0xb9,
            0x64, 0xec, 0x38, 0x43,
        ];
        assert_eq!(mac.finalize().into_bytes()[..], expected);
    }

    #[test]
    fn a_proof_holds_for_its_key_purpose_and_parts_only() {
        let parts: [&[u8]; 2] = [b"ab", b"c"];
        let proof = prove(&KEY, Purpose::Accept, &parts);
        assert!(holds(&KEY, Purpose::Accept, &parts, &proof));
        assert!(!holds(&KEY, Purpose::Confirm, &parts, &proof));
        assert!(!holds(&Key::new([1; 32]), Purpose::Accept, &parts, &proof));
        assert!(!holds(&KEY, Purpose::Accept, &[b"a", b"bc"], &proof));
        assert!(!holds(&KEY, Purpose::Accept, &[b"abc"], &proof));
        assert!(!holds(&KEY, Purpose::Accept, &parts, &proof[..31]));
        assert!(!holds(&KEY, Purpose::Accept, &parts, &[]));
    }

    #[test]
    fn draws_differ_and_follow_from_the_seed() {
        let draw = |seed| {
            let mut rng = Rng::new([seed; 32]);
            [rng.number(), rng.number(), rng.number()]
        };
        assert_eq!(draw(1), draw(1));
        let mut all = [draw(1), draw(2)].concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 6);
    }
}
